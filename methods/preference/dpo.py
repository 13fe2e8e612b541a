"""DPO, direct preference optimisation: the policy is its own reward model.

Rafailov et al.: "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", NeurIPS 2023,
arXiv 2305.18290.

    L = -log sigmoid(beta [(W - Wr) - (L - Lr)])                            mean over pairs

The optimum of reward - beta KL(pi || ref) has r(x, y) = beta log pi(y|x)/ref(y|x) + const(x); put into the
Bradley-Terry likelihood of the pairs, the constant cancels.

Defaults: beta of the paper's code and of TRL.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class DpoConfig(BetaConfig):
    """beta: as in `BetaConfig`."""


def dpo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (a_w - a_l)).

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        beta: > 0.

    Returns:
        [P].
    """
    return -F.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio))


class Dpo(Paired):
    """DPO: logistic loss on the difference of log-ratios to the reference (arXiv 2305.18290)."""

    config: DpoConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return dpo_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta)
