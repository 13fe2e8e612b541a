"""LP tracking: play so that the plays follow the solution of the lower bound's program at the estimates.

A rule of ours in the manner of OSSB (Combes, Magureanu and Proutiere, 2017, arXiv 1711.00400), for Gaussian bandits
with side observations. The asymptotically optimal algorithm of Atsidakou et al. (ICML 2022, arXiv 2505.10698) itself
was not in our sources. With m the weighted means, i0 the best of them, D_i the gap to it (D_i0: that of the second
best) and

    F(t) = log t + 2 log log t,

in round t, once every arm has been played,

    exploit    if I_i D_i^2 / 2 >= F(t) for all i, play i0; otherwise s += 1, and
    estimate   if min_i I_i < eps s, play the arm that tells most about the arm of that minimum;
    track      else play the arm with the least N_i / c_i among those with c_i > 0, where c solves the program at m.

c_i0, which costs nothing, is the least that meets the program's constraints: i0 is tracked like the others, but not
beyond what its estimate needs. (With a c_i0 that may be as large as it likes, i0 would always be behind, and a wrong i0
be played for good.) The program is solved again once t has grown by 2%, or i0 is another one. The rule is
asymptotically optimal only for eps -> 0, and where the program has one solution at mu: where it has several, those at
the estimates may jump from one to another.

`constraint: joint` (`lower_bound.py`) exploits if 1 / I_i + 1 / I_i0 <= D_i^2 / (2 F(t)) for all i but i0. It is needed
where the best arm does not tell about itself: the LP then asks for half of what tells it from the others.

Legend: R repetitions, K arms, U those of the repetitions that do not exploit.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat

from methods.bandits.allocation import allocations
from methods.bandits.base import Policy
from methods.bandits.environment import Arms, Array, Bandit, Seen
from methods.bandits.lower_bound import gaps


@dataclass(frozen=True, kw_only=True)
class LpTrackingConfig:
    """eps: forced estimation, in information per round that is not exploited. constraint: of the program: lp or joint.

    gap_floor: estimated gaps are at least that. renewal: growth of t after which the program is solved again.
    """

    eps: NonNegativeFloat = 0.1
    constraint: Literal["lp", "joint"] = "lp"
    gap_floor: PositiveFloat = 1e-3
    renewal: NonNegativeFloat = 0.02


class LpTracking(Policy):
    """Tracks the solution of the lower bound's linear program, a rule of ours in the manner of OSSB."""

    config: LpTrackingConfig
    memory = ("unsure_R", "target_RK", "solved_at_R", "solved_for_R")

    def begin(self, bandit: Bandit) -> None:
        """No program has been solved."""
        arms, repetitions = len(bandit.means_K), bandit.repetitions
        self.unsure_R, self.solved_at_R = np.zeros(repetitions), np.zeros(repetitions)
        self.solved_for_R = np.full(repetitions, -1)
        self.target_RK = np.zeros((repetitions, arms))
        self.teacher_K = bandit.precision_KK.argmax(0)  # of each arm, the one that tells most about it

    def choose(self, now: int, seen: Seen, draws_RK: Array) -> Arms:
        """The best arm where it is known well enough; else what is needed to know it."""
        gaps_RK, best_R = gaps(seen.means_RK, self.config.gap_floor)
        unsure_U = np.flatnonzero(self._evidence(seen, gaps_RK, best_R) < threshold(now))
        if not len(unsure_U):
            return best_R
        arm_R = best_R.copy()
        self.unsure_R[unsure_U] += 1
        information_UK = seen.information_RK[unsure_U]
        least_U = information_UK.argmin(1)
        forced = information_UK.min(1) < self.config.eps * self.unsure_R[unsure_U]
        arm_R[unsure_U[forced]] = self.teacher_K[least_U[forced]]
        tracked_U = unsure_U[~forced]
        if len(tracked_U):
            self._solve(now, tracked_U, gaps_RK, best_R)
            arm_R[tracked_U] = behind(self.plays_RK[tracked_U], self.target_RK[tracked_U]).argmin(1)
        return arm_R

    def repeats(self, now_B11: Array, seen: Seen, draws_BRK: Array, arm_R: Arms) -> NDArray[np.bool_]:
        """Whether it is the best, and known well enough."""
        gaps_BRK, best_BR = gaps(seen.means_RK, self.config.gap_floor)
        return (best_BR == arm_R) & (self._evidence(seen, gaps_BRK, best_BR) >= threshold(now_B11[..., 0]))

    def _evidence(self, seen: Seen, gaps_RK: Array, best_R: Arms) -> Array:
        of = joint_evidence if self.config.constraint == "joint" else evidence
        return of(seen.information_RK, gaps_RK, best_R)

    def _solve(self, now: int, tracked_U: Arms, gaps_RK: Array, best_R: Arms) -> None:
        """Solve the program again where it is out of date."""
        late = now >= (1 + self.config.renewal) * self.solved_at_R[tracked_U]
        old_U = tracked_U[late | (self.solved_for_R[tracked_U] != best_R[tracked_U])]
        if len(old_U):
            self.target_RK[old_U] = allocations(
                gaps_RK[old_U], best_R[old_U], self.bandit.precision_KK, self.config.constraint
            )
            self.solved_at_R[old_U], self.solved_for_R[old_U] = now, best_R[old_U]


def threshold(now: int | Array) -> Array:
    """F(t) = log t + 2 log log t."""
    log: Array = np.log(now)
    return log + 2 * np.log(log)


def evidence(information_RK: Array, gaps_RK: Array, best_R: Arms) -> Array:
    """min_i I_i D_i^2 / 2: all LP constraints hold at a level that is no larger. Returns [(B,) R]."""
    least_R: Array = (information_RK * gaps_RK**2).min(-1) / 2
    return least_R


def joint_evidence(information_RK: Array, gaps_RK: Array, best_R: Arms) -> Array:
    """min over i but i0 of D_i^2 / (2 (1 / I_i + 1 / I_i0)): likewise of the joint program. Returns [(B,) R]."""
    at_R1 = best_R[..., None]
    spread_RK = 1 / information_RK
    ratio_RK = gaps_RK**2 / (spread_RK + np.take_along_axis(spread_RK, at_R1, -1))
    np.put_along_axis(ratio_RK, at_R1, np.inf, -1)
    least_R: Array = ratio_RK.min(-1) / 2
    return least_R


def behind(plays_UK: Array, target_UK: Array) -> Array:
    """N / c, infinite where c is 0. Returns [U, K]."""
    return np.divide(plays_UK, target_UK, out=np.full_like(plays_UK, np.inf), where=target_UK > 0)
