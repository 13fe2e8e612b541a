"""f-DPO: DPO for other divergences than the reverse KL.

Wang et al.: "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints",
ICLR 2024, arXiv 2309.16240.

    max_pi  E[r] - beta D_f(pi || ref)
    L = -log sigmoid(beta f'(u_w) - beta f'(u_l)),      u = pi(y|x)/ref(y|x)             mean over pairs

The optimum has r(x, y) = beta f'(u) + const(x), where f' is invertible and 0 is not in its domain; in the Bradley-Terry
likelihood of the pairs the constant cancels. With a = log u:

    reverse_kl    f' = a                             DPO
    forward_kl    f' = -exp(-a)
    js            f' = log 2 + log sigmoid(a)        at most log 2: margins saturate
    alpha         f' = (1 - exp(-alpha a))/alpha     between the KLs: alpha -> 0 the reverse, alpha -> 1 the forward one

alpha is the paper's; TRL's is 1 - alpha. A beta of one divergence means nothing for another.

Exponentials grow where the policy drops a response: up to exponents of 40 they are followed, and by their tangent from
there (ours, `methods/divergences.py`; TRL clamps at 80).

Defaults: JS with beta 0.1, of the authors' scripts for IMDB; alpha 0.5 is ours (they try 0.1 to 0.9).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Gt, Lt
from torch import Tensor

from methods.divergences import f_score
from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class FDpoConfig(BetaConfig):
    """divergence: of the policy to its reference. alpha: of the alpha divergence."""

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "js"
    alpha: Annotated[float, Gt(0.0), Lt(1.0)] = 0.5


def f_dpo_loss(chosen_score: Tensor, rejected_score: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta f'(u_w) - beta f'(u_l)), of scores f'(u) [P]. Returns [P]."""
    return -F.logsigmoid(beta * (chosen_score - rejected_score))


class FDpo(Paired):
    """f-DPO: DPO with the score f'(pi/ref) of an f-divergence for the log-ratio (arXiv 2309.16240)."""

    config: FDpoConfig

    def score(self, side: Side) -> Tensor:
        """f'(pi/ref) of each response. Returns [P]."""
        return f_score(self.config.divergence, side.log_ratio, self.config.alpha)

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return f_dpo_loss(self.score(chosen), self.score(rejected), self.config.beta)

    def rewards(self, side: Side) -> Tensor:
        """beta times the score. Returns [P]."""
        return self.config.beta * self.score(side)
