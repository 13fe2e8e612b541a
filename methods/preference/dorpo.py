"""DORPO, diversified ORPO: the deviation of the chosen response weighs its likelihood and the log odds.

"Modifying Large Language Model Post-Training for Diverse Creative Writing", arXiv 2503.17126.

    L = delta_w (-W / n_w) - lambda log sigmoid( delta_w [log odds(y_w) - log odds(y_l)] )      mean over pairs

with the odds of ORPO (methods/preference/orpo.py) and delta_w, the deviation of the chosen text, measured once
(methods/preference/deviation.py). In the second term delta is inside the sigmoid. All delta = 1: ORPO.

The authors' code takes ORPO's first term from TRL, the mean over the tokens of prompt and chosen response in the whole
micro-batch, and multiplies that by each pair's delta; the mean of each response, which is meant, is taken here.

Defaults: lambda 0.25 (beta in the authors' code); the embeddings are those of the paper's variant "both".
"""

from dataclasses import dataclass

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from methods.preference.base import ReferenceFreeConfig, Side
from methods.preference.deviation import Deviating, DeviationConfig
from methods.preference.orpo import log_odds_ratio


@dataclass(frozen=True, kw_only=True)
class DorpoConfig(DeviationConfig, ReferenceFreeConfig):
    """weight: lambda, of the odds ratio's term; embedding, weight_min: as in `DeviationConfig`."""

    weight: NonNegativeFloat = 0.25


def dorpo_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, weights: Tensor, weight: float) -> Tensor:
    """delta_w (-W / n_w) - lambda log sigmoid(delta_w log odds ratio).

    Args:
        chosen_mean_logps, rejected_mean_logps: log-probability per token of the response [P].
        weights: delta of the chosen responses [P].
        weight: lambda.

    Returns:
        [P].
    """
    odds = weights * log_odds_ratio(chosen_mean_logps, rejected_mean_logps)
    return -weights * chosen_mean_logps - weight * F.logsigmoid(odds)


class Dorpo(Deviating):
    """DORPO: ORPO with the deviation of the chosen response on both terms (arXiv 2503.17126)."""

    config: DorpoConfig
    referenced = False

    def weighted_losses(self, chosen: Side, rejected: Side, weights_P: Tensor) -> Tensor:
        """The loss of each pair, with its weight in it. Returns [P]."""
        return dorpo_loss(chosen.mean_logps, rejected.mean_logps, weights_P, self.config.weight)

    def rewards(self, side: Side) -> Tensor:
        """lambda times the log-probability per token. Returns [P]."""
        return self.config.weight * side.mean_logps
