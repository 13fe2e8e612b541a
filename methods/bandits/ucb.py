"""UCB for Gaussian rewards (after Auer, Cesa-Bianchi and Fischer, 2002): the rewards of the played arm alone.

Plays the arm with the largest  mean_i + sqrt(2 sigma_ii^2 log t / N_i).  With nothing but own rewards the information
is I_i = N_i / sigma_ii^2, so that the index is that of UCB-N on the diagonal of Sigma.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat

from methods.bandits.base import Policy
from methods.bandits.environment import Arms, Array, Seen


@dataclass(frozen=True, kw_only=True)
class UcbConfig:
    """width: what the logarithm is multiplied with."""

    width: PositiveFloat = 2.0


class Ucb(Policy):
    """UCB for Gaussian rewards, on the rewards of the played arm alone."""

    config: UcbConfig
    own_rewards = True

    def choose(self, now: int, seen: Seen, draws_RK: Array) -> Arms:
        """The arm with the largest index."""
        return self._index(now, seen).argmax(-1)

    def repeats(self, now_B11: Array, seen: Seen, draws_BRK: Array, arm_R: Arms) -> NDArray[np.bool_]:
        """Whether it has the largest index."""
        return self._index(now_B11, seen).argmax(-1) == arm_R

    def _index(self, now: int | Array, seen: Seen) -> Array:
        """m + sqrt(2 log t / I). Returns [(B,) R, K]."""
        index_RK: Array = np.sqrt(self.config.width * np.log(now) / seen.information_RK)
        index_RK += seen.means_RK
        return index_RK
