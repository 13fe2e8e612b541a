"""RRHF, rank responses to align: the better response must have the larger log-probability per token. Here on pairs.

Yuan et al.: "RRHF: Rank Responses to Align Language Models with Human Feedback without tears", arXiv 2304.05302.

    L = max(0, -W / n_w + L / n_l) + lambda NLL(y_w)                        mean over pairs

There is no margin: a pair in the right order has only the second term, supervised fine-tuning on the best response.
The paper ranks several responses of a prompt and sums the first term over all pairs of them; a pair is two.

`nll`: the paper's NLL(y_w) is the sum over the tokens. The authors' code takes the mean over the padded micro-batch,
to which the mean of each response (`mean`) is near, and gives the first term the weight 100: lambda 0.01, up to a
factor.

Default: lambda 1, the paper's; SimPO's comparison (arXiv 2405.14734) tries 0.1, 0.5, 1 and 10 with the sum.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from methods.preference.base import Paired, ReferenceFreeConfig, Side


@dataclass(frozen=True, kw_only=True)
class RrhfConfig(ReferenceFreeConfig):
    """weight: lambda, of the chosen response's NLL. nll: over its tokens, sum or mean."""

    weight: NonNegativeFloat = 1.0
    nll: Literal["sum", "mean"] = "sum"


def rrhf_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, chosen_nll: Tensor, weight: float) -> Tensor:
    """max(0, L / n_l - W / n_w) + lambda NLL.

    Args:
        chosen_mean_logps, rejected_mean_logps: log-probability per token of the response [P].
        chosen_nll: negative log-likelihood of the chosen response, sum or mean [P].
        weight: lambda.

    Returns:
        [P].
    """
    return F.relu(rejected_mean_logps - chosen_mean_logps) + weight * chosen_nll


class Rrhf(Paired):
    """RRHF on pairs: rank by mean log-probability, and SFT on the chosen response (arXiv 2304.05302)."""

    config: RrhfConfig
    referenced = False

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        nll = -chosen.logps if self.config.nll == "sum" else -chosen.mean_logps
        return rrhf_loss(chosen.mean_logps, rejected.mean_logps, nll, self.config.weight)

    def rewards(self, side: Side) -> Tensor:
        """The log-probability per token, by which responses are ranked. Returns [P]."""
        return side.mean_logps
