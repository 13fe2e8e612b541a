"""UCB on own rewards against a loop over rounds with running averages."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from methods.bandits.environment import Bandit
from methods.bandits.ucb import Ucb, UcbConfig


@pytest.mark.parametrize("instance", ["standard", "revealing", "random"])
def test_it_plays_the_largest_index_of_its_own_rewards(
    instance: str, bandit: Callable[..., Bandit], playing: Any, one_by_one: Any
) -> None:
    data = bandit(instance, horizon=400)

    class Naive(one_by_one):  # type: ignore[misc]
        def choose(self, now: int) -> int:
            index = [
                mean
                + math.sqrt(2 * math.log(now) / (self.plays[arm] * self.precision[arm, arm]))  # 2 sigma^2 log t / N
                for arm, mean in enumerate(self.means)
            ]
            return max(range(len(index)), key=index.__getitem__)

    policy = Ucb(UcbConfig())
    policy.run(playing(data))
    expected = [Naive(data, repetition, own=True).play() for repetition in range(data.repetitions)]
    np.testing.assert_array_equal(policy.plays_RK, expected)


def test_side_observations_do_not_matter(bandit: Callable[..., Bandit], playing: Any) -> None:
    found = [Ucb(UcbConfig()).run(playing(bandit(name, horizon=300))) for name in ("standard", "full", "neighbour")]
    assert found[0]["regret/mean"] == found[1]["regret/mean"] == found[2]["regret/mean"]


def test_an_arm_without_rewards_of_its_own_is_refused(bandit: Callable[..., Bandit], playing: Any) -> None:
    with pytest.raises(ValueError, match=r"dataset.sigma\[0\]\[0\]=inf: must be finite for Ucb"):
        Ucb(UcbConfig()).run(playing(bandit("blind")))


def test_a_larger_width_explores_more(bandit: Callable[..., Bandit], playing: Any) -> None:
    data = bandit("standard", horizon=1000, repetitions=20)
    narrow, wide = (Ucb(UcbConfig(width=width)).run(playing(data))["regret/mean"] for width in (2.0, 20.0))
    assert wide > 2 * narrow
