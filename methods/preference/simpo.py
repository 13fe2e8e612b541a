"""SimPO, simple preference optimisation: the reward is the mean log-probability of a token, without a reference.

Meng et al.: "SimPO: Simple Preference Optimization with a Reference-Free Reward", NeurIPS 2024, arXiv 2405.14734.

    L = -log sigmoid( (beta / n_w) W - (beta / n_l) L - gamma )             mean over pairs

The reward is what decides which response greedy decoding prefers, up to length; gamma is the margin by which the
chosen one has to win. The authors' code is given gamma / beta, and its margin is beta times that; TRL is given gamma.

Defaults: beta and gamma / beta of Llama-3-Base (2.0 and 0.5), so gamma = 1. The authors tune both for each model: beta
2.0 to 2.5 (10 for one), gamma / beta 0.1 to 0.8.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from methods.preference.base import Paired, ReferenceFreeConfig, Side


@dataclass(frozen=True, kw_only=True)
class SimpoConfig(ReferenceFreeConfig):
    """beta: scale of the mean log-probability. gamma: margin of the rewards, beta times the code's gamma / beta."""

    beta: PositiveFloat = 2.0
    gamma: NonNegativeFloat = 1.0


def simpo_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta (W / n_w - L / n_l) - gamma).

    Args:
        chosen_mean_logps, rejected_mean_logps: log-probability per token of the response [P].
        beta: > 0.
        gamma: >= 0.

    Returns:
        [P].
    """
    return -F.logsigmoid(beta * (chosen_mean_logps - rejected_mean_logps) - gamma)


class Simpo(Paired):
    """SimPO: logistic loss on mean log-probabilities with a margin, no reference (arXiv 2405.14734)."""

    config: SimpoConfig
    referenced = False

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return simpo_loss(chosen.mean_logps, rejected.mean_logps, self.config.beta, self.config.gamma)

    def rewards(self, side: Side) -> Tensor:
        """beta times the log-probability per token. Returns [P]."""
        return self.config.beta * side.mean_logps
