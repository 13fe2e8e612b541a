"""Easy, hard and moderate points by hand; and which of them are bad when those are far away."""

import numpy as np
import pytest

from methods.selection import distance
from methods.selection.base import measure
from methods.selection.data import ContaminatedGaussian, ContaminatedGaussianConfig


def test_by_hand() -> None:
    points = np.array([[3.0], [-1.0], [-5.0], [1.0], [7.0], [-5.0]])
    assert points.mean() == 0
    assert distance.select(points, 2, which="easy").tolist() == [1, 3]
    assert distance.select(points, 2, which="hard").tolist() == [4, 5]
    assert sorted(distance.select(points, 2, which="moderate").tolist()) == [0, 2]  # 3rd and 4th of six


@pytest.mark.parametrize(("n", "k", "first"), [(1000, 100, 450), (10, 3, 4), (9, 3, 3), (9, 2, 4), (5, 5, 0)])
def test_where_the_moderate_window_begins(n: int, k: int, first: int) -> None:
    """round(n / 2 - k / 2), where a half goes to the even number."""
    points = np.concatenate([np.arange(1.0, n), [-n * (n - 1) / 2]])[:, None]  # mean 0, sorted by distance but the last
    assert sorted(distance.select(points, k, which="moderate").tolist()) == list(range(first, first + k))


@pytest.mark.parametrize(
    ("psi", "radius", "expected"),
    [
        (0.4, 10.0, {"easy": (0.0, 1.49), "hard": (0.98, 10.97), "moderate": (0.30, 2.09)}),
        (0.4, 100.0, {"easy": (0.0, 1.49), "hard": (1.0, 101.3), "moderate": (0.0, 1.00)}),
        (0.2, 10.0, {"easy": (0.0, 1.47), "hard": (1.0, 10.8), "moderate": (0.0, 0.31)}),
        (0.0, 10.0, {"easy": (0.0, 0.029), "hard": (0.0, 0.174), "moderate": (0.0, 0.085)}),
    ],
)
def test_bad_points_far_away(psi: float, radius: float, expected: dict[str, tuple[float, float]]) -> None:
    """100 of 1000 points, a mean over 10 seeds, which leaves the moderate ones at psi 0.4, R 10 uncertain by 0.2."""
    for which, (share, error) in expected.items():
        found = []
        for seed in range(10):
            points = ContaminatedGaussian(ContaminatedGaussianConfig(psi=psi, radius=radius)).load(seed)
            found.append(measure(points, distance.select(points.points_ND, 100, which=which)))  # type: ignore[arg-type]
        assert np.mean([each["bad"] for each in found]) == pytest.approx(share, abs=0.03)
        assert np.mean([each["error"] for each in found]) == pytest.approx(error, rel=0.09, abs=0.01)
        if which == "easy" and psi:
            assert np.mean([each["trace"] for each in found]) < 0.6  # the least diverse
