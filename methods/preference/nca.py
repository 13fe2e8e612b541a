"""NCA, noise contrastive alignment, on pairs: each response's own likelihood is held, not only the margin.

Chen et al.: "Noise Contrastive Alignment of Language Models with Explicit Rewards", NeurIPS 2024, arXiv 2402.05369.

    L = -log sigmoid(beta a_w) - 1/2 log sigmoid(-beta a_w) - 1/2 log sigmoid(-beta a_l)            mean over pairs
    a_w = W - Wr,  a_l = L - Lr

The middle term pulls the chosen response back: beta a_w has its optimum at log 2, so the likelihood of neither response
runs away, as it may under DPO, which sees their difference alone.

Default: beta 0.01 of the paper.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class NcaConfig(BetaConfig):
    """beta: as in `BetaConfig`."""

    beta: PositiveFloat = 0.01


def nca_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta a_w) - 1/2 log sigmoid(-beta a_w) - 1/2 log sigmoid(-beta a_l).

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        beta: > 0.

    Returns:
        [P].
    """
    chosen, rejected = beta * chosen_log_ratio, beta * rejected_log_ratio
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


class Nca(Paired):
    """NCA: response against noise, chosen and rejected each on its own (arXiv 2402.05369)."""

    config: NcaConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return nca_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta)
