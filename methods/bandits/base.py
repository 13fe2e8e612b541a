"""What all bandit algorithms share: R repetitions at once, round by round; their regret; checkpoints.

An algorithm says which arm each repetition plays next. Each arm is played once at first. Regret is the pseudo-regret,
sum_i Delta_i N_i(t), without the noise of the rewards. The normal draws of a round are a function of the run's seed and
of the round, so that a longer run begins like a shorter one.

Legend: R repetitions, K arms, D arms that a play tells about at most, B rounds drawn at once.
"""

import math
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from methods.bandits.environment import Arms, Array, Bandit, Feedback, Seen
from methods.method import Context
from methods.simulation import Simulation

_DRAWN = 2**18  # normal draws kept at a time
_LONGEST_BLOCK = 1024  # rounds
_CHECKPOINT_SECONDS = 60.0
_PER_DECADE = 12  # logged rounds
_SHORTEST_STRETCH, _LONGEST_STRETCH = 8, 256  # rounds played at once


class Policy(Simulation):
    """Base of bandit algorithms. A subclass implements `choose` and `repeats`, and `begin` if it has a `memory`."""

    data: ClassVar[tuple[str, ...]] = ("bandit",)
    own_rewards: ClassVar[bool] = False  # it sees no side observations
    randomised: ClassVar[bool] = False  # it draws K normals a round
    memory: ClassVar[tuple[str, ...]] = ()  # names of the arrays of its own

    def begin(self, bandit: Bandit) -> None:
        """Make the arrays of `memory`, and whatever follows from the instance."""

    def choose(self, now: int, seen: Seen, draws_RK: Array) -> Arms:
        """The arm that each repetition plays in round `now` (the first is 1). Returns [R]."""
        raise NotImplementedError(f"{type(self).__name__} must implement choose")

    def repeats(self, now_B11: Array, seen: Seen, draws_BRK: Array, arm_R: Arms) -> NDArray[np.bool_]:
        """Whether `choose` would return `arm_R` in each of several rounds, and change nothing. Returns [B, R].

        False is always right: the rounds are then played one at a time.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement repeats")

    def run(self, context: Context) -> Mapping[str, float]:
        """Play to the horizon; returns regrets, their growth, and the lower bound."""
        bandit: Bandit = context.dataset
        repetitions, arms = bandit.repetitions, len(bandit.means_K)
        self.bandit = bandit
        self.feedback = Feedback(bandit.means_K, self._told(bandit), repetitions)
        self.seen = Seen(np.zeros((repetitions, arms)), np.zeros((repetitions, arms)))
        self.plays_RK = np.zeros((repetitions, arms))
        self.done = 0
        self.noted: dict[int, Array] = {}  # regret_R by round
        self._pace = _Pace()
        self.begin(bandit)
        context.restore(self)
        block = min(max(_DRAWN // (repetitions * arms), 1), _LONGEST_BLOCK)
        first = self.done // block
        kept_at = time.monotonic()
        for number in context.steps("rounds played", math.ceil(bandit.horizon / block) - first):
            self._play_block(context, first + number, block)
            if time.monotonic() - kept_at > _CHECKPOINT_SECONDS and self.done < bandit.horizon:
                context.checkpoint(self, self.done)
                kept_at = time.monotonic()
        return summary(self.noted, bandit.horizon, bandit.lower_bound)

    def _play_block(self, context: Context, number: int, block: int) -> None:
        """Play the rounds of a block: one at a time, or many where all repetitions are likely to keep to their arms."""
        noise_BRD, draws_BRK = self._draw(context.seed, number, block)
        begin, end = number * block, min((number + 1) * block, self.bandit.horizon)
        for stop in [now for now in logged_rounds(self.bandit.horizon) if begin < now < end] + [end]:
            while self.done < stop:
                arm_R = self._play_one(noise_BRD[self.done - begin], draws_BRK[self.done - begin])
                steady = self._pace.after(arm_R)
                while steady and self.done < stop and self._pace.ahead >= _SHORTEST_STRETCH:
                    rounds = slice(self.done - begin, min(self.done + self._pace.ahead, stop) - begin)
                    played = self._play_ahead(arm_R, noise_BRD[rounds], draws_BRK[rounds])
                    self._pace.since += played
                    steady = played == rounds.stop - rounds.start
            self._note(context)

    def _play_one(self, noise_RD: Array, draws_RK: Array) -> Arms:
        """Play the next round; each arm once at first. Returns what was played."""
        repetitions, arms = self.plays_RK.shape
        now = self.done + 1
        arm_R = np.full(repetitions, now - 1) if now <= arms else self.choose(now, self.seen, draws_RK)
        self.feedback.add(self.seen, arm_R, noise_RD)
        self.plays_RK[np.arange(repetitions), arm_R] += 1
        self.done = now
        return arm_R

    def _play_ahead(self, arm_R: Arms, noise_BRD: Array, draws_BRK: Array) -> int:
        """Play the same arms again, up to the first round in which a repetition would choose another.

        Exactly as one at a time: sums are taken in the same order. Returns how many rounds were played.
        """
        all_rounds = self.feedback.ahead(self.seen, arm_R, noise_BRD)
        before = Seen(*(array[:-1] for array in all_rounds))
        now_B11 = self.done + np.arange(1.0, len(noise_BRD) + 1)[:, None, None]
        same_BR = self.repeats(now_B11, before, draws_BRK, arm_R)
        played = len(same_BR) if same_BR.all() else int(same_BR.all(1).argmin())
        self.seen = Seen(*(array[played].copy() for array in all_rounds))
        self.plays_RK[np.arange(len(arm_R)), arm_R] += played
        self.done += played
        return played

    def _told(self, bandit: Bandit) -> Array:
        """The precisions of what it is told."""
        if not self.own_rewards:
            return bandit.precision_KK
        own_K = bandit.precision_KK.diagonal()
        if not own_K.all():
            arm = int(own_K.argmin())
            raise ValueError(
                f"dataset.sigma[{arm}][{arm}]=inf: must be finite for {type(self).__name__}, which sees the reward of "
                "the arm that it plays alone"
            )
        return np.diag(own_K)

    def _draw(self, seed: int, number: int, block: int) -> tuple[Array, Array]:
        """The normal draws of a block of rounds: of what is seen, and of the algorithm's own."""
        repetitions, arms = self.plays_RK.shape
        noise_BRD = np.random.default_rng([seed, number, 0]).standard_normal((block, repetitions, self.feedback.told))
        if not self.randomised:
            return noise_BRD, np.empty((block, 0, 0))
        return noise_BRD, np.random.default_rng([seed, number, 1]).standard_normal((block, repetitions, arms))

    def _note(self, context: Context) -> None:
        """Log the regret so far, in the rounds that are logged."""
        if self.done not in logged_rounds(self.bandit.horizon):
            return
        regret_R = self.plays_RK @ self.bandit.regrets_K
        self.noted[self.done] = regret_R
        log = math.log(self.done)
        measured = {
            "regret/mean": float(regret_R.mean()),
            "regret/se": standard_error(regret_R),
            "regret/lower_bound": self.bandit.lower_bound * log,
            "regret/bound_over_log": self.bandit.lower_bound,
        }
        if log:
            measured["regret/over_log"] = measured["regret/mean"] / log
        context.log(measured, self.done)

    def state_dict(self) -> dict[str, Any]:
        """What was played, seen and noted, and the algorithm's own arrays."""
        arrays = {
            "plays_RK": self.plays_RK,
            **self.seen._asdict(),
            **{name: getattr(self, name) for name in self.memory},
        }
        return {
            "done": self.done,
            "arrays": {name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
            "noted": {now: torch.from_numpy(regret_R) for now, regret_R in self.noted.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        arrays = {name: array.numpy() for name, array in state["arrays"].items()}
        self.done, self.plays_RK = state["done"], arrays["plays_RK"]
        self.noted = {now: regret_R.numpy() for now, regret_R in state["noted"].items()}
        self.seen = Seen(**{name: arrays[name] for name in Seen._fields})
        for name in self.memory:
            setattr(self, name, arrays[name])


class _Pace:
    """How many rounds to play ahead: as many as all repetitions lately kept to their arms. Results stay the same."""

    def __init__(self) -> None:
        self.since, self._typical = 0, 0.0
        self._last_R: Arms = np.empty(0, dtype=np.int64)

    def after(self, arm_R: Arms) -> bool:
        """Note what was played; returns whether it was what was played before."""
        same = np.array_equal(arm_R, self._last_R)
        self._typical += 0 if same else (self.since - self._typical) / 4
        self.since, self._last_R = self.since + 1 if same else 0, arm_R
        return same

    @property
    def ahead(self) -> int:
        """Rounds."""
        return min(int(max(self.since, self._typical)), _LONGEST_STRETCH)


@lru_cache(maxsize=8)
def logged_rounds(horizon: int) -> tuple[int, ...]:
    """Rounds evenly spaced in their logarithm, and all that `summary` needs, in order."""
    steps = round(_PER_DECADE * math.log10(horizon))
    spaced = {min(round(10 ** (step / _PER_DECADE)), horizon) for step in range(steps)}
    return tuple(sorted({*spaced, *milestones(horizon), horizon // 10}))


def milestones(horizon: int) -> list[int]:
    """100, 200, 500, 1000, ... up to the horizon, and the horizon."""
    found = (digit * 10**power for power in range(2, int(math.log10(horizon)) + 1) for digit in (1, 2, 5))
    return [*(now for now in found if now < horizon), horizon]


def standard_error(values_R: NDArray[np.float64]) -> float:
    """Of the mean; 0 for a single value."""
    return float(values_R.std(ddof=1) / math.sqrt(len(values_R))) if len(values_R) > 1 else 0.0


def summary(noted: Mapping[int, Array], horizon: int, lower_bound: float) -> dict[str, float]:
    """What a run returns.

    Args:
        noted: regret_R after rounds, among them the milestones and a tenth of the horizon.
        horizon: T.
        lower_bound: C.

    Returns:
        regret/<round> (means); at T also `mean`, `se`, `largest` and `over_log`, R_T / log T; `slope`, dR / dlog T over
        the last decade, (R_T - R_{T/10}) / log 10, with `slope_se`, both over the repetitions; `lower_bound`, C, and
        `slope_above_bound`, slope - C.
    """
    regret_R = noted[horizon]
    slope_R = (regret_R - noted[horizon // 10]) / math.log(horizon / (horizon // 10))
    return {
        **{f"regret/{now}": float(noted[now].mean()) for now in milestones(horizon)},
        "regret/mean": float(regret_R.mean()),
        "regret/se": standard_error(regret_R),
        "regret/largest": float(regret_R.max()),
        "regret/over_log": float(regret_R.mean()) / math.log(horizon),
        "regret/slope": float(slope_R.mean()),
        "regret/slope_se": standard_error(slope_R),
        "regret/slope_above_bound": float(slope_R.mean()) - lower_bound,
        "regret/lower_bound": lower_bound,
    }
