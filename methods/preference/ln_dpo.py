"""Length-normalised DPO: log-ratios per token, so that a long response does not weigh more for its length.

The preference tuning of Lambert et al.: "Tulu 3: Pushing Frontiers in Open Language Model Post-Training",
arXiv 2411.15124.

    L = -log sigmoid(beta [(W - Wr)/n_w - (L - Lr)/n_l])                    mean over pairs

Default: beta 5 of Tulu 3; log-ratios per token are smaller than those of responses, and beta is larger than DPO's.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side
from methods.preference.dpo import dpo_loss


@dataclass(frozen=True, kw_only=True)
class LnDpoConfig(BetaConfig):
    """beta: scale of the log-ratios per token."""

    beta: PositiveFloat = 5.0


class LnDpo(Paired):
    """Length-normalised DPO: DPO on log-ratios per token (Tulu 3, arXiv 2411.15124)."""

    config: LnDpoConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return dpo_loss(chosen.mean_log_ratio, rejected.mean_log_ratio, self.config.beta)

    def rewards(self, side: Side) -> Tensor:
        """beta times the log-ratio per token. Returns [P]."""
        return self.config.beta * side.mean_log_ratio
