"""The geometric median: by hand, against a general optimiser, at points of the data, and how far bad points move it."""

import logging
import re
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from methods.selection import geometric_median as gm

SIX = np.array([(2, 0), (0, 2), (-2, 0), (0, -2), (1, 1), (3, 1)], dtype=float)
Solver = Callable[..., NDArray[np.float64]]
SOLVERS: list[Solver] = [gm.weiszfeld, gm.floored]


@pytest.mark.parametrize("solver", SOLVERS)
def test_six_points(solver: Solver) -> None:
    np.testing.assert_allclose(solver(SIX, 1e-12), [0.973403, 0.828285], atol=5e-7)


def test_in_one_dimension_it_is_the_median() -> None:
    assert gm.weiszfeld(np.array([[0.0], [1], [2], [3], [100]])) == pytest.approx(2, abs=0)


def test_in_a_convex_quadrilateral_the_diagonals_cross_there() -> None:
    points = np.array([(0, 0), (1, 0), (0, 1), (10, 10)], dtype=float)
    np.testing.assert_allclose(gm.weiszfeld(points, 1e-10), [0.5, 0.5], atol=1e-8)
    np.testing.assert_allclose(points.mean(0), [2.75, 2.75])


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_what_a_general_optimiser_finds(solver: Solver) -> None:
    for seed in range(5):
        points = np.random.default_rng(seed).standard_normal((40, 3)) ** 3
        found = minimize(lambda z, x=points: gm.objective(x, z), points.mean(0), tol=1e-14, method="BFGS")
        assert gm.objective(points, solver(points, 1e-10)) <= found.fun * (1 + 1e-9)
        np.testing.assert_allclose(solver(points, 1e-10), found.x, atol=1e-5)


def test_the_default_accuracy_is_that_of_the_definition() -> None:
    """sum ||m - x|| <= (1 + eps) times the least there is."""
    points = np.random.default_rng(3).standard_normal((500, 6))
    assert gm.objective(points, gm.weiszfeld(points)) <= (1 + gm.EPS) * gm.objective(
        points, gm.weiszfeld(points, 1e-13)
    )


def test_it_moves_and_turns_with_the_points() -> None:
    random = np.random.default_rng(0)
    points, move = random.standard_normal((60, 4)), random.standard_normal(4) * 10
    turn, _ = np.linalg.qr(random.standard_normal((4, 4)))
    np.testing.assert_allclose(
        gm.weiszfeld(points @ turn + move, 1e-12), gm.weiszfeld(points, 1e-12) @ turn + move, atol=1e-9
    )


@pytest.mark.parametrize("scale", [1e-60, 1e-6, 0.01, 1e6, 1e60])
def test_it_is_measured_in_the_unit_of_the_points(scale: float) -> None:
    """What eps leaves of the way, 1e-5 of the points' own distances at most, is all that may differ."""
    for points in (SIX, np.random.default_rng(1).standard_normal((500, 6)) + 2):
        found = gm.weiszfeld(scale * points) / scale
        np.testing.assert_allclose(found, gm.weiszfeld(points), rtol=1e-4)
        assert np.linalg.norm(found - points.mean(0)) > 1e-2


def test_points_far_away_do_not_make_it_coarse() -> None:
    points = 1e-6 * np.random.default_rng(0).standard_normal((1000, 2))
    points[:400, 1] += 1e3
    np.testing.assert_allclose(gm.weiszfeld(points), gm.weiszfeld(points, 1e-9), atol=1e-10)
    assert np.linalg.norm(gm.weiszfeld(points) - points[400:].mean(0)) < 2e-6


def test_small_points_that_are_there_often_outweigh_the_others() -> None:
    points = 1e-9 * np.concatenate([np.tile([[5.0, -3.0]], (6, 1)), np.random.default_rng(0).standard_normal((5, 2))])
    assert gm.weiszfeld(points).tolist() == points[0].tolist()


@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_that_do_not_suffice_are_told_of(solver: Solver, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        solver(SIX)
        assert not caplog.messages
        solver(SIX, steps=3)
    (said,) = caplog.messages
    assert re.fullmatch(r"the geometric median has not converged: step 3 was [0-9.e-]+ long, more than 1e-05", said)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_of_rounding_alone_is_not_told_of(solver: Solver, caplog: pytest.LogCaptureFixture) -> None:
    solver(np.random.default_rng(0).standard_normal((50, 3)) + 1e6, 1e-30, steps=300)
    assert not caplog.messages


def test_a_start_at_a_point_that_is_not_the_median_is_left() -> None:
    """The mean is the last point; the authors' rule for a distance of zero stays there, which is wrong."""
    points = np.array([(0, 0), (1, 0), (0, 1), (10, 10), (11 / 4, 11 / 4)])
    assert np.allclose(points.mean(0), points[4])
    best = minimize(
        lambda z: gm.objective(points, z), (0.5, 0.6), method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12}
    )
    np.testing.assert_allclose(gm.weiszfeld(points, 1e-10), best.x, atol=1e-6)
    np.testing.assert_allclose(gm.floored(points), points[4], atol=1e-6)


def test_a_median_that_is_a_point_is_found_exactly() -> None:
    """The pull of the others, of unit vectors, is less than one point's own weight."""
    points = np.array([(0.0, 0), (3, 0), (-1, 2), (-1, -2), (-3, 4)])
    found = gm.weiszfeld(points)
    others = np.delete(points, 0, axis=0)
    assert np.linalg.norm((others / np.linalg.norm(others, axis=1, keepdims=True)).sum(0)) <= 1
    assert found.tolist() == [0.0, 0.0]


def test_a_point_that_is_there_often_outweighs_the_others() -> None:
    points = np.concatenate([np.tile([[5.0, -3.0]], (6, 1)), np.random.default_rng(0).standard_normal((5, 2))])
    assert gm.weiszfeld(points).tolist() == [5.0, -3.0]
    assert gm.weiszfeld(points[:6]).tolist() == [5.0, -3.0]
    assert gm.weiszfeld(points[:1]).tolist() == [5.0, -3.0]


def test_median_of_each_coordinate() -> None:
    assert gm.coordinate(SIX).tolist() == [0.5, 0.5]


def far(share: float, radius: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = np.random.default_rng(0).standard_normal((1000, 2))
    points[: round(share * 1000), 1] += radius
    return points, points[round(share * 1000) :]


@pytest.mark.parametrize(("radius", "mean", "median"), [(10, 4.0, 1.25), (100, 40.0, 1.27)])
def test_bad_points_pull_the_mean_along_and_the_median_not(radius: float, mean: float, median: float) -> None:
    points, clean = far(0.4, radius)
    assert np.linalg.norm(points.mean(0) - clean.mean(0)) == pytest.approx(mean, abs=0.1)
    assert np.linalg.norm(gm.weiszfeld(points) - clean.mean(0)) == pytest.approx(median, abs=0.06)


def test_beyond_a_half_the_median_breaks_down() -> None:
    for radius in (1e2, 1e6):
        points, clean = far(0.45, radius)
        assert np.linalg.norm(gm.weiszfeld(points) - clean.mean(0)) < 3
        points, clean = far(0.55, radius)
        assert np.linalg.norm(gm.weiszfeld(points) - clean.mean(0)) > 0.9 * radius


def test_bound_by_hand_and_that_it_holds() -> None:
    clean = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    assert gm.error_bound(clean, 2, eps=3.0) == pytest.approx((8 * 4 * 4 + 2 * 9) / 4)
    for share in (0.0, 0.2, 0.4):
        points, clean = far(share, 1000.0)
        error = np.linalg.norm(gm.weiszfeld(points) - clean.mean(0)) ** 2
        assert error < gm.error_bound(clean, len(points) - len(clean))
    with pytest.raises(ValueError, match=r"^bad=4: must be fewer than the 4 clean points$"):
        gm.error_bound(clean[:4], 4)


@pytest.mark.parametrize("solver", [*SOLVERS, gm.coordinate])
def test_what_has_no_median_is_refused(solver: Solver) -> None:
    with pytest.raises(ValueError, match=r"^points: must be finite, got nan in row 1$"):
        solver(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match=r"^k=1: must be from 1 to 0, the number of points$"):
        solver(np.zeros((0, 2)))
