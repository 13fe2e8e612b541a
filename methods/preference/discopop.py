"""DiscoPOP: a loss that a language model has found, between the logistic and the exponential one.

Lu et al.: "Discovering Preference Optimization Algorithms with and for Large Language Models", NeurIPS 2024,
arXiv 2406.08414 (there also LRML, log-ratio modulated loss).

    L = (1 - s) [-log sigmoid(z)] + s exp(-z),      z = beta D,  s = sigmoid(z / tau),  D = (W - Wr) - (L - Lr)
                                                                            mean over pairs

Where z is below 0 it is DPO's loss, above it the exponential one; between them it is not convex. At the defaults its
slope at D = 0, where training starts, is +0.039: the loss falls towards the wrong order, down to a minimum at D = -2.4,
and a pair is pushed apart the right way only from D = 1.4 on.

The exponential never gets large for tau <= 1, because s goes to 0 faster: both are taken together, in logarithms. For a
larger tau it is followed up to an exponent of 40, and by its tangent from there (ours, `methods/divergences.py`).

Defaults: tau 0.05 of the paper; beta 0.05, with which s = sigmoid(D), as in the authors' code.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from methods.divergences import exp_then_linear
from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class DiscoPopConfig(BetaConfig):
    """tau: how sharply one loss gives way to the other."""

    beta: PositiveFloat = 0.05
    tau: PositiveFloat = 0.05


def discopop_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, tau: float) -> Tensor:
    """(1 - s) [-log sigmoid(z)] + s exp(-z), z = beta (a_w - a_l), s = sigmoid(z / tau).

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        beta, tau: > 0.

    Returns:
        [P].
    """
    margin = beta * (chosen_log_ratio - rejected_log_ratio)
    logistic = -F.logsigmoid(margin) * torch.sigmoid(-margin / tau)
    return logistic + exp_then_linear(F.logsigmoid(margin / tau) - margin)


class DiscoPop(Paired):
    """DiscoPOP: logistic loss for pairs in the wrong order, exponential for others (arXiv 2406.08414)."""

    config: DiscoPopConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return discopop_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta, self.config.tau)
