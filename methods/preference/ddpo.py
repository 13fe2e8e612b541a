"""DDPO, diversified DPO: each pair weighs how much its chosen response deviates from the prompt's other responses.

"Modifying Large Language Model Post-Training for Diverse Creative Writing", arXiv 2503.17126.

    L = delta_w [ -log sigmoid(beta [(W - Wr) - (L - Lr)]) ]                mean over pairs

delta_w, the deviation of the chosen text, is measured once (methods/preference/deviation.py): rare good responses
count for more, and the policy keeps what plain DPO gives up. All delta = 1: DPO.

Defaults: beta of the authors' code; the embeddings are those of the paper's variant "both", meaning and style.
"""

from dataclasses import dataclass

from torch import Tensor

from methods.preference.base import BetaConfig, Side
from methods.preference.deviation import Deviating, DeviationConfig
from methods.preference.dpo import dpo_loss


@dataclass(frozen=True, kw_only=True)
class DdpoConfig(DeviationConfig, BetaConfig):
    """beta, reference: as in `BetaConfig`; embedding, weight_min: as in `DeviationConfig`."""


def ddpo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, weights: Tensor, beta: float) -> Tensor:
    """delta_w times DPO's loss.

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        weights: delta of the chosen responses [P].
        beta: > 0.

    Returns:
        [P].
    """
    return weights * dpo_loss(chosen_log_ratio, rejected_log_ratio, beta)


class Ddpo(Deviating):
    """DDPO: DPO with each pair weighed by the deviation of its chosen response (arXiv 2503.17126)."""

    config: DdpoConfig

    def weighted_losses(self, chosen: Side, rejected: Side, weights_P: Tensor) -> Tensor:
        """The loss of each pair, with its weight in it. Returns [P]."""
        return ddpo_loss(chosen.log_ratio, rejected.log_ratio, weights_P, self.config.beta)
