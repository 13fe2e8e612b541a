"""UCB-N against a loop over rounds, and UCB where there are no side observations."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from methods.bandits.environment import Bandit
from methods.bandits.ucb import Ucb, UcbConfig
from methods.bandits.ucb_n import UcbN


@pytest.mark.parametrize("instance", ["neighbour", "revealing", "random", "full"])
def test_it_plays_the_largest_index_of_all_observations(
    instance: str, bandit: Callable[..., Bandit], playing: Any, one_by_one: Any
) -> None:
    data = bandit(instance, horizon=400)

    class Naive(one_by_one):  # type: ignore[misc]
        def choose(self, now: int) -> int:
            index = [m + math.sqrt(2 * math.log(now) / i) for m, i in zip(self.means, self.information, strict=True)]
            return max(range(len(index)), key=index.__getitem__)

    policy = UcbN(UcbConfig())
    policy.run(playing(data))
    np.testing.assert_array_equal(policy.plays_RK, [Naive(data, each).play() for each in range(data.repetitions)])


def test_without_side_observations_it_is_ucb(bandit: Callable[..., Bandit], playing: Any) -> None:
    data = bandit("standard", horizon=500)
    assert UcbN(UcbConfig()).run(playing(data)) == Ucb(UcbConfig()).run(playing(data))
