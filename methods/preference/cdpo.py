"""cDPO, conservative DPO: the label of a pair may be wrong.

Mitchell: "A note on DPO with noisy preferences & relationship to IPO", 2023.

    L = -(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D),       D = (W - Wr) - (L - Lr)        mean over pairs

Cross-entropy to a label that is 1 with probability 1 - e: the loss is smallest at beta D = log((1 - e)/e), where DPO's
is at infinity.

Defaults: e = 0.1, the value in common use; beta of DPO.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side
from methods.preference.dpo import dpo_loss


@dataclass(frozen=True, kw_only=True)
class CDpoConfig(BetaConfig):
    """label_smoothing: e, the probability that chosen and rejected are swapped; 0 is DPO."""

    label_smoothing: Annotated[float, Ge(0.0), Lt(0.5)] = 0.1


def cdpo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """-(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D).

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        beta: > 0.
        label_smoothing: e, in [0, 0.5).

    Returns:
        [P].
    """
    as_labelled = dpo_loss(chosen_log_ratio, rejected_log_ratio, beta)
    swapped = dpo_loss(rejected_log_ratio, chosen_log_ratio, beta)
    return (1 - label_smoothing) * as_labelled + label_smoothing * swapped


class CDpo(Paired):
    """cDPO: DPO with smoothed labels (Mitchell 2023)."""

    config: CDpoConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return cdpo_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta, self.config.label_smoothing)
