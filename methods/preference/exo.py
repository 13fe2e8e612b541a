"""EXO, efficient exact optimisation, on pairs: the reverse KL of the policy's preference to the label's.

Ji et al.: "Towards Efficient Exact Optimization of Language Model Alignment", ICML 2024, arXiv 2402.00856.

    L = q [log q - log(1 - e)] + (1 - q) [log(1 - q) - log e],      q = sigmoid(beta D),  D = (W - Wr) - (L - Lr)
                                                                            mean over pairs

KL((q, 1 - q) || (1 - e, e)), where (1 - e, e) is the label: mode-seeking as the KL in RLHF's own objective is, while
DPO has the other direction. Without e it would be infinite; it is 0 at beta D = log((1 - e)/e).

Defaults: e = 0.001 and beta 0.1 of the paper.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt, Lt
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class ExoConfig(BetaConfig):
    """label_smoothing: e, what the label leaves to the rejected response; above 0."""

    label_smoothing: Annotated[float, Gt(0.0), Lt(0.5)] = 1e-3


def exo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """KL((q, 1 - q) || (1 - e, e)), q = sigmoid(beta (a_w - a_l)).

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        beta: > 0.
        label_smoothing: e, in (0, 0.5).

    Returns:
        [P].
    """
    margin = beta * (chosen_log_ratio - rejected_log_ratio)
    chosen = torch.sigmoid(margin) * (F.logsigmoid(margin) - math.log1p(-label_smoothing))
    return chosen + torch.sigmoid(-margin) * (F.logsigmoid(-margin) - math.log(label_smoothing))


class Exo(Paired):
    """EXO: reverse KL of the policy's preference to the smoothed label (arXiv 2402.00856)."""

    config: ExoConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return exo_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta, self.config.label_smoothing)
