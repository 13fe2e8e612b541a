"""The three-part rule of Wu, György and Szepesvári (2015, arXiv 1510.08108) for the asymptotic regime.

The structure is that of their algorithm; its constants could not be compared with the paper. With the estimates of
`lp_tracking.py`, a leading constant q, n_e rounds of exploration so far and n_j observations of arm j, in round t, once
every arm has been played,

    exploit    if I_i D_i^2 / 2 >= q log t for all i (N / (q log t) meets the LP's constraints), play i0; otherwise
    estimate   if min_j n_j < a n_e^b / K, play the arm that tells most about the arm of that minimum;
    track      else play an arm with N_i < c_i q log t, where c solves the LP at the estimates;

after the last two n_e += 1. q = 4 alpha with alpha > 2, which makes it optimal up to that factor; q = 1 is ours, and
so is the choice in the last step: by turns the arm other than i0 with the smallest N_i / c_i, and i0. With i0 always
last it may stay with a wrong arm on a standard bandit; with i0 as any other arm, where a wrong i0 costs the LP
nothing.

Legend: R repetitions, K arms, U those of the repetitions that do not exploit.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le, Lt
from numpy.typing import NDArray
from pydantic import PositiveFloat

from methods.bandits.allocation import allocations
from methods.bandits.base import Policy
from methods.bandits.environment import Arms, Array, Bandit, Seen
from methods.bandits.lower_bound import gaps
from methods.bandits.lp_tracking import behind, evidence


@dataclass(frozen=True, kw_only=True)
class WuConfig:
    """q: leading constant. a, b: of the forced estimation. gap_floor: estimated gaps are at least that."""

    q: PositiveFloat = 8.04
    a: Annotated[float, Gt(0.0), Le(0.5)] = 0.5
    b: Annotated[float, Gt(0.0), Lt(1.0)] = 0.5
    gap_floor: PositiveFloat = 1e-3


class Wu(Policy):
    """LP tracking in the manner of Wu et al., optimal up to the factor q (arXiv 1510.08108)."""

    config: WuConfig
    memory = ("explored_R", "turn_R")

    def begin(self, bandit: Bandit) -> None:
        """Nothing has been explored."""
        self.explored_R = np.zeros(bandit.repetitions)
        self.turn_R = np.zeros(bandit.repetitions, dtype=np.int64)
        self.teacher_K = bandit.precision_KK.argmax(0)  # of each arm, the one that tells most about it
        self.tells_KK = (bandit.precision_KK > 0).astype(float)

    def choose(self, now: int, seen: Seen, draws_RK: Array) -> Arms:
        """The best arm where it is known well enough; else what is needed to know it."""
        gaps_RK, best_R = gaps(seen.means_RK, self.config.gap_floor)
        level = self.config.q * np.log(now)
        unsure_U = np.flatnonzero(evidence(seen.information_RK, gaps_RK, best_R) < level)
        if not len(unsure_U):
            return best_R
        arm_R = best_R.copy()
        observed_UK = self.plays_RK[unsure_U] @ self.tells_KK
        asked_U = self.config.a * self.explored_R[unsure_U] ** self.config.b / observed_UK.shape[1]
        forced = observed_UK.min(1) < asked_U
        arm_R[unsure_U[forced]] = self.teacher_K[observed_UK.argmin(1)[forced]]
        tracked_U = unsure_U[~forced]
        if len(tracked_U):
            target_UK = level * allocations(gaps_RK[tracked_U], best_R[tracked_U], self.bandit.precision_KK)
            arm_R[tracked_U] = alternating(
                self.plays_RK[tracked_U], target_UK, best_R[tracked_U], self.turn_R[tracked_U]
            )
            self.turn_R[tracked_U] ^= 1
        self.explored_R[unsure_U] += 1
        return arm_R

    def repeats(self, now_B11: Array, seen: Seen, draws_BRK: Array, arm_R: Arms) -> NDArray[np.bool_]:
        """Whether it is the best, and known well enough."""
        gaps_BRK, best_BR = gaps(seen.means_RK, self.config.gap_floor)
        level_B1 = self.config.q * np.log(now_B11[..., 0])
        return (best_BR == arm_R) & (evidence(seen.information_RK, gaps_BRK, best_BR) >= level_B1)


def alternating(plays_UK: Array, target_UK: Array, best_U: Arms, turn_U: Arms) -> Arms:
    """On turn 0 the arm furthest behind its target that is not the best, on turn 1 the best. Returns [U].

    An arm that is not behind is not played, unless none is: then the best.
    """
    rows_U = np.arange(len(best_U))
    ratio_UK = behind(plays_UK, target_UK)
    best_is_behind = ratio_UK[rows_U, best_U] < 1
    ratio_UK[rows_U, best_U] = np.inf
    other_is_behind = ratio_UK.min(1) < 1
    plays_other = other_is_behind & ((turn_U == 0) | ~best_is_behind)
    return np.where(plays_other, ratio_UK.argmin(1), best_U)
