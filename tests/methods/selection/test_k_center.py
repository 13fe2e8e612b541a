"""Greedy k-center: by hand, and never more than twice the best covering radius."""

import itertools

import numpy as np
import pytest

from methods.selection import k_center


def radius(points: np.ndarray, chosen: list[int] | tuple[int, ...]) -> float:
    return float(np.linalg.norm(points[:, None] - points[list(chosen)], axis=2).min(1).max())


def test_by_hand() -> None:
    points = np.array([[0.0], [1.0], [10.0], [4.0]])
    assert k_center.select(points, 4, first=0).tolist() == [0, 2, 3, 1]


@pytest.mark.parametrize("seed", range(5))
def test_it_covers_at_most_twice_as_wide_as_the_best(seed: int) -> None:
    points = np.random.default_rng(seed).standard_normal((12, 2))
    best = min(radius(points, chosen) for chosen in itertools.combinations(range(12), 3))
    assert best <= radius(points, k_center.select(points, 3, first=seed).tolist()) <= 2 * best


def test_it_starts_anywhere_where_no_start_is_given() -> None:
    points = np.random.default_rng(0).standard_normal((20, 2))
    assert len({int(k_center.select(points, 1, random=np.random.default_rng(n))[0]) for n in range(20)}) > 5
    with pytest.raises(ValueError, match=r"^first=20: must be one of the 20 points, counted from 0$"):
        k_center.select(points, 2, first=20)
