"""CPO, contrastive preference optimisation: DPO with a uniform reference, and the likelihood of the chosen response.

Xu et al.: "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
ICML 2024, arXiv 2401.08417.

    L = -log sigmoid( beta (W - L) ) + alpha NLL(y_w)                       mean over pairs

The paper writes NLL(y_w) = -log pi(y_w | x), a sum over the tokens (`nll: sum`), and no alpha. In TRL it is the mean
over all chosen tokens of the *micro-batch*, which weighs long responses more than short ones; `nll: mean` is the mean
of each response, and the same where all have one length. TRL's `simpo` with this term (CPO-SimPO) is not covered.

Defaults: beta 0.1 and alpha 1, TRL's.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from methods.preference.base import Paired, ReferenceFreeConfig, Side


@dataclass(frozen=True, kw_only=True)
class CpoConfig(ReferenceFreeConfig):
    """beta: scale of the log-probabilities. alpha: weight of the NLL. nll: over a response's tokens, sum or mean."""

    beta: PositiveFloat = 0.1
    alpha: NonNegativeFloat = 1.0
    nll: Literal["sum", "mean"] = "sum"


def cpo_loss(chosen_logps: Tensor, rejected_logps: Tensor, chosen_nll: Tensor, beta: float, alpha: float) -> Tensor:
    """-log sigmoid(beta (W - L)) + alpha NLL.

    Args:
        chosen_logps, rejected_logps: log-probabilities, summed over a response's tokens [P].
        chosen_nll: negative log-likelihood of the chosen response, sum or mean [P].
        beta: > 0.
        alpha: >= 0.

    Returns:
        [P].
    """
    return -F.logsigmoid(beta * (chosen_logps - rejected_logps)) + alpha * chosen_nll


class Cpo(Paired):
    """CPO: DPO's loss without a reference, and the likelihood of the chosen response (arXiv 2401.08417)."""

    config: CpoConfig
    referenced = False

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        config = self.config
        nll = -chosen.logps if config.nll == "sum" else -chosen.mean_logps
        return cpo_loss(chosen.logps, rejected.logps, nll, config.beta, config.alpha)
