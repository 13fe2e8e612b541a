"""Robust DPO: the DPO loss of clean labels, estimated without bias from noisy ones.

Chowdhury, Kini, Natarajan: "Provably Robust DPO: Aligning Language Models with Noisy Feedback", ICML 2024,
arXiv 2403.00409.

    L = [ -(1 - e) log sigmoid(beta D) + e log sigmoid(-beta D) ] / (1 - 2e)            mean over pairs
    D = (W - Wr) - (L - Lr)

Where each label is swapped with probability e, the expectation of L over the swaps is the loss of DPO on the true
labels. A single pair's L has no lower bound: it falls as -beta D e/(1 - 2e) where D is large.

Defaults: e = 0.1 and beta 0.1 of the paper.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side
from methods.preference.dpo import dpo_loss


@dataclass(frozen=True, kw_only=True)
class RobustDpoConfig(BetaConfig):
    """label_smoothing: e, the rate of swapped labels; 0 is DPO."""

    label_smoothing: Annotated[float, Ge(0.0), Lt(0.5)] = 0.1


def robust_dpo_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, label_smoothing: float
) -> Tensor:
    """[-(1 - e) log sigmoid(beta D) + e log sigmoid(-beta D)] / (1 - 2e).

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        beta: > 0.
        label_smoothing: e, in [0, 0.5).

    Returns:
        [P].
    """
    as_labelled = dpo_loss(chosen_log_ratio, rejected_log_ratio, beta)
    swapped = dpo_loss(rejected_log_ratio, chosen_log_ratio, beta)
    return ((1 - label_smoothing) * as_labelled - label_smoothing * swapped) / (1 - 2 * label_smoothing)


class RobustDpo(Paired):
    """Robust DPO: an unbiased estimate of DPO's loss under swapped labels (arXiv 2403.00409)."""

    config: RobustDpoConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return robust_dpo_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta, self.config.label_smoothing)
