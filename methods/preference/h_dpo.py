"""H-DPO: DPO with a weight of its own on the policy's entropy.

Omura, Fujita, Kataoka: "Entropy Controllable Direct Preference Optimization", arXiv 2411.07595.

    max_pi  E[r] + alpha beta H(pi) - beta H(pi, ref)                       reverse KL when alpha = 1
    L = -log sigmoid(alpha beta (W - L) - beta (Wr - Lr))                   mean over pairs

The optimum is proportional to ref^(1/alpha) exp(r / (alpha beta)): alpha < 1 sharpens the policy, > 1 flattens it.
At pi = ref the argument is (alpha - 1) beta (Wr - Lr), which is not 0, and grows with the difference in length.

Defaults: alpha 0.95 and beta 0.01 are ours; the paper tries alpha between 0.8 and 1.2.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class HDpoConfig(BetaConfig):
    """alpha: weight of the policy's entropy; 1 is DPO."""

    beta: PositiveFloat = 0.01
    alpha: PositiveFloat = 0.95


def h_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_reference: Tensor,
    rejected_reference: Tensor,
    beta: float,
    alpha: float,
) -> Tensor:
    """-log sigmoid(alpha beta (W - L) - beta (Wr - Lr)). All tensors [P], summed over tokens; returns [P]."""
    policy = alpha * beta * (chosen_logps - rejected_logps)
    return -F.logsigmoid(policy - beta * (chosen_reference - rejected_reference))


class HDpo(Paired):
    """H-DPO: DPO with alpha times the policy's log-ratio, to control its entropy (arXiv 2411.07595)."""

    config: HDpoConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        config = self.config
        return h_dpo_loss(chosen.logps, rejected.logps, chosen.reference, rejected.reference, config.beta, config.alpha)

    def rewards(self, side: Side) -> Tensor:
        """beta (alpha log pi - log ref). Returns [P]."""
        return self.config.beta * (self.config.alpha * side.logps - side.reference)
