"""The rule of Wu et al. against a loop over rounds with HiGHS; whose turn it is; its leading constant."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from methods.bandits.environment import Bandit
from methods.bandits.wu import Wu, WuConfig, alternating


@pytest.mark.parametrize("q", [1.0, 8.04])
@pytest.mark.parametrize("instance", ["standard", "neighbour", "revealing"])
def test_it_does_what_its_rule_says(
    instance: str, q: float, bandit: Callable[..., Bandit], playing: Any, one_by_one: Any
) -> None:
    data = bandit(instance, horizon=150, repetitions=2)

    class Naive(one_by_one):  # type: ignore[misc]
        explored, turn = 0, 0

        def choose(self, now: int) -> int:
            arms = range(len(self.plays))
            means, level = self.means, q * math.log(now)
            best = max(arms, key=means.__getitem__)
            gaps = [max(means[best] - mean, 1e-3) for mean in means]
            gaps[best] = min(gaps[arm] for arm in arms if arm != best)
            if all(self.information[arm] * gaps[arm] ** 2 / 2 >= level for arm in arms):
                return best
            self.explored += 1
            observed = [sum(self.plays[i] for i in arms if self.precision[i, j] > 0) for j in arms]
            least = min(arms, key=observed.__getitem__)
            if observed[least] < 0.5 * (self.explored - 1) ** 0.5 / len(arms):
                return max(arms, key=lambda arm: self.precision[arm, least])
            costs = [0.0 if arm == best else gap for arm, gap in enumerate(gaps)]
            needs = [2 / gap**2 for gap in gaps]
            target = linprog(costs, A_ub=-self.precision.T, b_ub=[-need for need in needs], method="highs").x
            target[best] = 0
            for j in arms:
                if self.precision[best, j] > 0:
                    target[best] = max(
                        target[best], (needs[j] - target @ self.precision[:, j]) / self.precision[best, j]
                    )
            target *= target > 1e-9 * target.max()  # a target of a rounding error is none
            deficient = [arm for arm in arms if self.plays[arm] < target[arm] * level]
            others = [arm for arm in deficient if arm != best]
            self.turn += 1
            if others and (self.turn % 2 == 1 or best not in deficient):
                return min(others, key=lambda arm: self.plays[arm] / target[arm])
            return best

    policy = Wu(WuConfig(q=q))
    policy.run(playing(data))
    expected = [Naive(data, repetition) for repetition in range(data.repetitions)]
    np.testing.assert_array_equal(policy.plays_RK, [each.play() for each in expected])
    assert policy.explored_R.tolist() == [each.explored for each in expected]


def test_turns() -> None:
    plays, best = np.array([[1.0, 4.0, 2.0]]), np.array([0])

    def played(target: list[float], turn: int) -> int:
        return int(alternating(plays, np.array([target]), best, np.array([turn]))[0])

    assert played([10.0, 10.0, 10.0], 0) == 2  # furthest behind of those that are not the best
    assert played([10.0, 10.0, 10.0], 1) == 0
    assert played([10.0, 3.0, 2.0], 0) == 0  # no other one is behind
    assert played([1.0, 5.0, 2.0], 1) == 1  # the best one is not behind
    assert played([1.0, 4.0, 2.0], 0) == 0  # none is


def test_forced_estimation(bandit: Callable[..., Bandit], playing: Any) -> None:
    """With a = b = 1/2 and n_e = 400, an arm needs 10 / K observations."""
    data = bandit("neighbour", repetitions=2)
    policy = Wu(WuConfig(q=1.0))
    policy.run(playing(data))
    policy.explored_R[:] = 400.0
    policy.plays_RK = np.array([[9.0, 1.0, 2.0], [9.0, 4.0, 0.0]])  # 9, 1 and 3 observations; 9, 4 and 4
    seen = policy.seen._replace(information_RK=np.ones((2, 3)), weighted_RK=np.tile([1.0, 0.9, 0.8], (2, 1)))
    before = policy.turn_R.copy()
    assert policy.choose(100, seen, np.empty((0, 0)))[0] == 1  # 1 < 10 / 3: the arm that tells about arm 1
    assert policy.explored_R.tolist() == [401, 401]
    assert (policy.turn_R != before).tolist() == [False, True]  # the second one tracks


@pytest.mark.slow
def test_it_costs_its_leading_constant_times_the_bound(bandit: Callable[..., Bandit], playing: Any) -> None:
    found = Wu(WuConfig()).run(playing(bandit("standard", horizon=20_000, repetitions=20)))
    assert found["regret/mean"] == pytest.approx(8.04 * 6.5 * math.log(20_000), rel=0.1)
