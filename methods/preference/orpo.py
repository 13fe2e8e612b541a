"""ORPO, odds ratio preference optimisation: supervised fine-tuning on the chosen response with a push on the odds.

Hong, Lee, Thorne: "ORPO: Monolithic Preference Optimization without Reference Model", EMNLP 2024, arXiv 2403.07691.

    L = -W / n_w - lambda log sigmoid( log odds(y_w) - log odds(y_l) )      mean over pairs
    odds(y) = p / (1 - p),      p = exp(W / n_w) or exp(L / n_l)            the geometric mean over the tokens

so log odds = log p - log(1 - p). It starts from a base model: the first term is the supervised fine-tuning.

TRL's first term is another one: over the tokens of prompt *and* chosen response, and their mean over the micro-batch,
not that of each response; TRL calls lambda beta. The second term is the same.

log p is kept 1 epsilon of its precision (1.2e-7) below 0, where the odds have no bound (ours).

Default: lambda 0.1, the paper's for Mistral and TRL's.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from methods.preference.base import Paired, ReferenceFreeConfig, Side


@dataclass(frozen=True, kw_only=True)
class OrpoConfig(ReferenceFreeConfig):
    """weight: lambda, of the odds ratio's term; 0 is SFT on the chosen responses, each with the same weight."""

    weight: NonNegativeFloat = 0.1


def log1mexp(logps: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact at both ends; x above -epsilon is taken as -epsilon. Any shape."""
    below = logps.clamp_max(-torch.finfo(logps.dtype).eps)
    # Each form is exact where the other cancels; both are finite everywhere here, and so is their gradient.
    return torch.where(below > -math.log(2), torch.log(-torch.expm1(below)), torch.log1p(-torch.exp(below)))


def log_odds_ratio(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor) -> Tensor:
    """log odds(y_w) - log odds(y_l), of log-probabilities per token [P]. Returns [P]."""
    ratio = chosen_mean_logps - rejected_mean_logps
    return ratio - (log1mexp(chosen_mean_logps) - log1mexp(rejected_mean_logps))


def orpo_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, weight: float) -> Tensor:
    """-W / n_w - lambda log sigmoid(log odds ratio).

    Args:
        chosen_mean_logps, rejected_mean_logps: log-probability per token of the response [P].
        weight: lambda.

    Returns:
        [P].
    """
    return -chosen_mean_logps - weight * F.logsigmoid(log_odds_ratio(chosen_mean_logps, rejected_mean_logps))


class Orpo(Paired):
    """ORPO: SFT on the chosen response and a logistic loss on the odds ratio, no reference (arXiv 2403.07691)."""

    config: OrpoConfig
    referenced = False

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return orpo_loss(chosen.mean_logps, rejected.mean_logps, self.config.weight)

    def rewards(self, side: Side) -> Tensor:
        """lambda times the log-probability per token. Returns [P]."""
        return self.config.weight * side.mean_logps
