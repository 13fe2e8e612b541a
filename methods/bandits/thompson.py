"""Thompson sampling with a flat prior and all observations (Thompson, 1933).

Draws theta_i ~ N(m_i, 1 / I_i) and plays the arm with the largest. An arm whose plays tell nothing about itself is
played for as long as what others tell about it leaves it likely to be the best.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from methods.bandits.base import Policy
from methods.bandits.environment import Arms, Array, Seen


@dataclass(frozen=True, kw_only=True)
class ThompsonConfig:
    """No hyper-parameters."""


class Thompson(Policy):
    """Thompson sampling on all observations, those of side information included."""

    config: ThompsonConfig
    randomised = True

    def choose(self, now: int, seen: Seen, draws_RK: Array) -> Arms:
        """The arm with the largest draw."""
        return drawn(seen, draws_RK).argmax(-1)

    def repeats(self, now_B11: Array, seen: Seen, draws_BRK: Array, arm_R: Arms) -> NDArray[np.bool_]:
        """Whether it has the largest draw."""
        return drawn(seen, draws_BRK).argmax(-1) == arm_R


def drawn(seen: Seen, draws_RK: Array) -> Array:
    """theta, from standard normal draws. Returns [(B,) R, K]."""
    theta_RK: Array = draws_RK / np.sqrt(seen.information_RK)
    theta_RK += seen.means_RK
    return theta_RK
