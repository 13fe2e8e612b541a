"""Implicit PRM by KTO on pairs: each side is judged against the mean of the other.

Yuan et al.: "Free Process Rewards without Process Labels", 2024, arXiv 2412.01981, whose reward of a response is
r = beta log pi(y | x) / ref(y | x), see `implicit_prm`. Of a right response y+ and a wrong one y- to one prompt:

    1/2 [ 1 - sigmoid(r+ - beta z-) ] + 1/2 [ 1 - sigmoid(beta z+ - r-) ]                mean over pairs
    z- = max(0, mean log-ratio of the y-),  z+ = max(0, mean log-ratio of the y+), no gradient

The means are over the *micro-batch* of one process. (`kto` itself takes its reference point from mismatched responses.)

Default: beta 0.05 of the paper's code.

Legend: P pairs.
"""

import torch
from torch import Tensor

from methods.preference.base import Paired, Side
from methods.preference.implicit_prm import ImplicitPrmConfig
from methods.preference.kto import kto_losses, kto_z


def paired_kto_losses(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """KTO on pairs: each side's reference point is that of the other side's responses.

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].

    Returns:
        Of each pair the mean of its two losses [P].
    """
    is_good = torch.ones_like(chosen_log_ratio, dtype=torch.bool)
    chosen = kto_losses(chosen_log_ratio, is_good, kto_z(rejected_log_ratio), beta, 1.0, 1.0)
    rejected = kto_losses(rejected_log_ratio, ~is_good, kto_z(chosen_log_ratio), beta, 1.0, 1.0)
    return (chosen + rejected) / 2


class ImplicitPrmKto(Paired):
    """Implicit PRM by KTO on pairs (arXiv 2412.01981)."""

    config: ImplicitPrmConfig
    couples = "micro-batch"

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return paired_kto_losses(chosen.log_ratio, rejected.log_ratio, self.config.beta)
