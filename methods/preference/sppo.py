"""SPPO, self-play preference optimisation, with hard labels: each log-ratio is regressed on a number of its own.

Wu et al.: "Self-Play Preference Optimization for Language Model Alignment", arXiv 2405.00675.

    L = (a_w - 1/(2 beta))^2 + (a_l + 1/(2 beta))^2,       a = log pi - log ref              mean over pairs

The paper's target of a response is eta (P(y beats the policy) - 1/2), eta = 1/beta, with P from a preference model;
here the chosen response always wins and the rejected one always loses. The paper's rounds, in which the policy answers
anew and becomes the next reference, are runs of their own: `model.from_run`.

Default: beta 0.001 of the paper, so that log-ratios of +-500 are aimed at.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class SppoConfig(BetaConfig):
    """beta: 1/eta; the log-ratios aimed at are +-1/(2 beta)."""

    beta: PositiveFloat = 0.001


def sppo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """(a_w - 1/(2 beta))^2 + (a_l + 1/(2 beta))^2.

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        beta: > 0.

    Returns:
        [P].
    """
    target = 1 / (2 * beta)
    return (chosen_log_ratio - target).square() + (rejected_log_ratio + target).square()


class Sppo(Paired):
    """SPPO: squared distance of each log-ratio to +-1/(2 beta) (arXiv 2405.00675)."""

    config: SppoConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return sppo_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta)
