"""Hinge loss on DPO's margin: pairs that are far enough apart are left alone.

Liu et al.: "Statistical Rejection Sampling Improves Preference Optimization" (RSO), ICLR 2024, arXiv 2309.06657, which
takes the hinge of SLiC (arXiv 2305.10425) on log-ratios to the reference.

    L = max(0, 1 - beta D),     D = (W - Wr) - (L - Lr)                     mean over pairs

Default: beta 0.05 of RSO. Its sampling of responses is no part of this loss.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class HingeConfig(BetaConfig):
    """beta: a margin D of 1/beta is enough."""

    beta: PositiveFloat = 0.05


def hinge_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta (a_w - a_l)).

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        beta: > 0.

    Returns:
        [P].
    """
    return F.relu(1 - beta * (chosen_log_ratio - rejected_log_ratio))


class Hinge(Paired):
    """Hinge loss on the difference of log-ratios to the reference (arXiv 2309.06657)."""

    config: HingeConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return hinge_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta)
