"""R-DPO: DPO that pays for length, so that the policy need not.

Park et al.: "Disentangling Length from Quality in Direct Preference Optimization", ACL Findings 2024, arXiv 2403.19159.

    L = -log sigmoid(beta [(W - Wr) - (L - Lr)] + alpha (n_w - n_l))        mean over pairs

DPO's derivation with the reward r(x, y) - alpha |y|: a chosen response that is longer has part of its margin from its
length, and the policy earns the rest.

Defaults: alpha 0.05 is ours, the smallest of the search that the SimPO paper made (0.05, 0.1, 0.5, 1); beta of DPO.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class RDpoConfig(BetaConfig):
    """alpha: what a token of length costs, in units of reward; 0 is DPO."""

    alpha: NonNegativeFloat = 0.05


def r_dpo_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, longer: Tensor, beta: float, alpha: float
) -> Tensor:
    """-log sigmoid(beta (a_w - a_l) + alpha (n_w - n_l)).

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        longer: n_w - n_l, by how many tokens the chosen response is longer [P].
        beta: > 0.
        alpha: >= 0.

    Returns:
        [P].
    """
    return -F.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio) + alpha * longer)


class RDpo(Paired):
    """R-DPO: DPO with the lengths' difference in the margin (arXiv 2403.19159)."""

    config: RDpoConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        longer = chosen.tokens - rejected.tokens
        return r_dpo_loss(chosen.log_ratio, rejected.log_ratio, longer, self.config.beta, self.config.alpha)

    def rewards(self, side: Side) -> Tensor:
        """beta times the log-ratio, plus alpha for each token: r, before the length is paid for. Returns [P]."""
        return super().rewards(side) + self.config.alpha * side.tokens
