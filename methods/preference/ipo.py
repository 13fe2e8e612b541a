"""IPO, identity preference optimisation: the margin is regressed on a number, not pushed to infinity.

Azar et al.: "A General Theoretical Paradigm to Understand Learning from Human Preferences", AISTATS 2024,
arXiv 2310.12036.

    L = (h - 1/(2 beta))^2,     h = (W - Wr) - (L - Lr)                     mean over pairs

With `average: true`, h = (W - Wr)/n_w - (L - Lr)/n_l, the log-ratios per token. The paper's formula has the sums; TRL
has the means, and says that the authors trained with those. A beta of one form means nothing in the other.

beta is the paper's tau. Defaults: the sums, and a beta of 0.1, TRL's; between 0.01 and 1 are in use.
"""

from dataclasses import dataclass

from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class IpoConfig(BetaConfig):
    """beta: the paper's tau; the margin aimed at is 1/(2 beta). average: of log-ratios per token, not their sums."""

    average: bool = False


def ipo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """(a_w - a_l - 1/(2 beta))^2.

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, over a response's tokens or per token [P].
        beta: > 0.

    Returns:
        [P].
    """
    return (chosen_log_ratio - rejected_log_ratio - 1 / (2 * beta)).square()


class Ipo(Paired):
    """IPO: squared distance of the margin to 1/(2 beta) (arXiv 2310.12036)."""

    config: IpoConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        if self.config.average:
            return ipo_loss(chosen.mean_log_ratio, rejected.mean_log_ratio, self.config.beta)
        return ipo_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta)

    def rewards(self, side: Side) -> Tensor:
        """beta times what the margin is a difference of. Returns [P]."""
        return self.config.beta * (side.mean_log_ratio if self.config.average else side.log_ratio)
