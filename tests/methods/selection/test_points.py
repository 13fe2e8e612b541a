"""What every selector asks of its points, and the few things that are computed of them everywhere."""

import re

import numpy as np
import pytest

from methods.selection import (
    ccs,
    distance,
    gm_matching,
    herding,
    influence,
    k_center,
    points,
    prototypes,
    scores,
    uniform,
)

SELECTORS = {
    "easy": lambda x, k: distance.select(x, k, which="easy"),
    "hard": lambda x, k: distance.select(x, k, which="hard"),
    "moderate": lambda x, k: distance.select(x, k, which="moderate"),
    "gm": gm_matching.select,
    "gm_cosine": lambda x, k: gm_matching.select(x, k, similarity="cosine", init="random"),
    "gm_l2": lambda x, k: gm_matching.select(x, k, similarity="l2"),
    "gm_batches": lambda x, k: gm_matching.select(x, k, batches=min(k, 3), gamma=0.5),
    "herding": herding.select,
    "influence": influence.select,
    "k_center": k_center.select,
    "prototypes": lambda x, k: prototypes.select(x, k, clusters=3),
    "uniform": lambda x, k: uniform.select(len(x), k, np.random.default_rng(0)),
    "scores": lambda x, k: scores.select(x[:, 0], k),
    "ccs": lambda x, k: ccs.select(x[:, 0], k, cutoff=0.0, strata=5, random=np.random.default_rng(0)),
}
LOOK_AT_NO_ROW = ("uniform", "scores", "ccs")


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("k", [1, 7, 30])
def test_k_points_each_once(name: str, k: int) -> None:
    x = np.random.default_rng(1).standard_normal((30, 4))
    chosen = SELECTORS[name](x, k)
    assert len(chosen) == k == len(set(chosen.tolist())) and set(chosen.tolist()) <= set(range(30))
    assert chosen.dtype == np.int64


@pytest.mark.parametrize("name", SELECTORS)
def test_equal_points_are_chosen_once_each_too(name: str) -> None:
    assert sorted(SELECTORS[name](np.zeros((9, 2)), 9).tolist()) == list(range(9))


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("k", [0, 31])
def test_more_points_than_there_are_or_none_are_refused(name: str, k: int) -> None:
    x = np.random.default_rng(1).standard_normal((30, 4))
    with pytest.raises(ValueError, match=f"^k={k}: must be from 1 to 30, the number of points$"):
        SELECTORS[name](x, k)


@pytest.mark.parametrize("name", [name for name in SELECTORS if name not in LOOK_AT_NO_ROW])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_points_that_are_not_finite_are_refused(name: str, value: float) -> None:
    x = np.random.default_rng(1).standard_normal((30, 4))
    x[17, 2] = value
    with pytest.raises(ValueError, match=f"^points: must be finite, got {value} in row 17$"):
        SELECTORS[name](x, 5)


def test_points_are_rows() -> None:
    with pytest.raises(ValueError, match=r"^points: must have one row for each point, got shape \(3,\)$"):
        points.checked(np.zeros(3), 1)


@pytest.mark.parametrize("name", [name for name in SELECTORS if name not in LOOK_AT_NO_ROW])
@pytest.mark.parametrize("size", [1e200, -1e308])
def test_points_whose_squares_overflow_are_refused(name: str, size: float) -> None:
    x = np.random.default_rng(1).standard_normal((30, 4))
    x[17] = [0, size, 0, size]
    with pytest.raises(
        ValueError, match=rf"^points: must be at most 1e\+100 in size, got {re.escape(str(size))} in row 17$"
    ):
        SELECTORS[name](x, 5)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.filterwarnings("error")
def test_points_may_be_as_large_as_that(name: str) -> None:
    x = points.LARGEST * np.sign(np.random.default_rng(1).standard_normal((30, 4)))
    assert len(set(SELECTORS[name](x, 20).tolist())) == 20


def test_points_without_coordinates_are_points() -> None:
    assert points.checked(np.zeros((4, 0)), 2).shape == (4, 0)


def test_distances_are_exact_for_near_points() -> None:
    """Of points far from the origin, where ||x||^2 - 2 <x, c> + ||c||^2 has lost all digits."""
    x = np.array([[1e8, 0.0], [1e8, 3e-3], [1e8 + 4.0, 3.0]])
    np.testing.assert_allclose(points.distances(x, x[0]), [0, 3e-3, 5], rtol=1e-12)
    many = np.random.default_rng(0).standard_normal((3000, 3))  # more than a block
    np.testing.assert_allclose(points.distances(many, many[7]), np.linalg.norm(many - many[7], axis=1), rtol=1e-12)


def test_normalised_leaves_the_origin() -> None:
    np.testing.assert_allclose(points.normalised(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])
    np.testing.assert_allclose(points.normalised(np.array([0.0, 2.0])), [0, 1])
