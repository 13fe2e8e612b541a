"""Thompson sampling against a loop over rounds, and the probability with which it plays an arm."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from methods.bandits.environment import Bandit, Seen
from methods.bandits.thompson import Thompson, ThompsonConfig


@pytest.mark.parametrize("instance", ["standard", "neighbour", "blind", "random"])
def test_it_plays_the_largest_draw(instance: str, bandit: Callable[..., Bandit], playing: Any, one_by_one: Any) -> None:
    data = bandit(instance, horizon=400)

    class Naive(one_by_one):  # type: ignore[misc]
        def choose(self, now: int) -> int:
            theta = [
                mean + draw / known**0.5
                for mean, draw, known in zip(self.means, self.draws[now - 1], self.information, strict=True)
            ]
            return max(range(len(theta)), key=theta.__getitem__)

    policy = Thompson(ThompsonConfig())
    policy.run(playing(data))
    np.testing.assert_array_equal(policy.plays_RK, [Naive(data, each).play() for each in range(data.repetitions)])


def test_an_arm_is_played_as_often_as_it_is_likely_to_be_the_best() -> None:
    many = 20_000
    seen = Seen(np.tile([4.0, 1.0], (many, 1)), np.tile([2.0, 0.0], (many, 1)))  # N(0.5, 1/4) and N(0, 1)
    draws_RK = np.random.default_rng(1).standard_normal((many, 2))
    share = Thompson(ThompsonConfig()).choose(7, seen, draws_RK).mean()
    assert share == pytest.approx(norm.sf(0.5 / 1.25**0.5), abs=4 * (0.25 / many) ** 0.5)
