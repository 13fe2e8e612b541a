"""DPOP, DPO-positive: the likelihood of the chosen response may not fall below the reference's.

Pal et al.: "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive", arXiv 2402.13228.

    L = -log sigmoid(beta [(W - Wr) - (L - Lr) - lambda max(0, Wr - W)])    mean over pairs

DPO is content with a chosen response that becomes less likely, as long as the rejected one falls more; which happens
where the two differ in few tokens. The added term takes that back.

Defaults: lambda 50 of the paper's code; beta 0.1 is ours.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class DpopConfig(BetaConfig):
    """penalty: lambda, of a chosen response that has become less likely; 0 is DPO."""

    penalty: NonNegativeFloat = 50.0


def dpop_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, penalty: float) -> Tensor:
    """-log sigmoid(beta (a_w - a_l - lambda max(0, -a_w))).

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        beta: > 0.
        penalty: lambda >= 0.

    Returns:
        [P].
    """
    fallen = F.relu(-chosen_log_ratio)
    return -F.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio - penalty * fallen))


class Dpop(Paired):
    """DPOP: DPO that does not let the chosen response become less likely (arXiv 2402.13228)."""

    config: DpopConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return dpop_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta, self.config.penalty)
