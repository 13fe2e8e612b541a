"""GM Matching: its order by hand, where it is herding, and a small experiment with bad points far away."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from methods.selection import gm_matching, herding
from methods.selection.base import measure
from methods.selection.data import ContaminatedGaussian, ContaminatedGaussianConfig, Features
from methods.selection.geometric_median import coordinate, floored, weiszfeld
from methods.selection.gm_matching import GmMatching, GmMatchingConfig

SIX = np.array([(2, 0), (0, 2), (-2, 0), (0, -2), (1, 1), (3, 1)], dtype=float)


def test_order_of_six_points() -> None:
    assert gm_matching.select(SIX, 6).tolist() == [5, 2, 0, 1, 4, 3]
    assert gm_matching.select(SIX, 6, target="mean").tolist() == herding.select(SIX, 6).tolist() == [5, 2, 0, 1, 3, 4]


def test_without_bad_points_and_symmetric_it_is_herding() -> None:
    half = np.random.default_rng(0).standard_normal((40, 3))
    points = np.concatenate([half, -half]) + np.array([4.0, 1.0, 0.5])
    np.testing.assert_allclose(weiszfeld(points, 1e-12), points.mean(0), atol=1e-9)
    # Points come in pairs of equal distance to the centre; a start off the centre leaves no ties.
    for init in ("target", "random"):
        one = gm_matching.select(points, 30, init=init, eps=1e-12, random=np.random.default_rng(1))
        other = herding.select(points, 30, init=init, random=np.random.default_rng(1))
        assert one.tolist() == other.tolist()


def test_medians() -> None:
    points = np.random.default_rng(1).standard_normal((50, 3)) ** 3 + 1
    for solver, median in (("weiszfeld", weiszfeld), ("floored", floored), ("coordinate", coordinate)):
        found = gm_matching.select(points, 20, solver=solver)  # type: ignore[arg-type]
        assert found.tolist() == herding.match(points, median(points), 20).tolist()


def test_median_of_a_share() -> None:
    points = np.random.default_rng(2).standard_normal((50, 3)) ** 3 + 1
    found = gm_matching.select(points, 20, gamma=0.5, random=np.random.default_rng(3))
    drawn = points[np.random.default_rng(3).permutation(50)[:25]]
    assert found.tolist() == herding.match(points, weiszfeld(drawn), 20).tolist()
    assert found.tolist() != gm_matching.select(points, 20).tolist()
    gm_matching.select(points, 20, gamma=1e-9)  # of one point at least
    for gamma in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"^gamma={gamma}: must be greater than 0 and at most 1$"):
            gm_matching.select(points, 20, gamma=gamma)


def bad(psi: float, radius: float, seed: int, dimensions: int = 2, offset: float = 0.0) -> Features:
    config = ContaminatedGaussianConfig(psi=psi, radius=radius, dimensions=dimensions, offset=offset)
    return ContaminatedGaussian(config).load(seed)


@pytest.mark.parametrize(
    ("psi", "radius", "gm", "mean"),
    [
        (0.4, 10.0, (0.22, 1.29), (0.43, 4.07)),
        (0.4, 100.0, (0.03, 1.60), (0.41, 40.7)),
        (0.2, 10.0, (0.16, 0.45), (0.29, 2.05)),
        (0.0, 10.0, (0.0, 0.023), (0.0, 0.009)),
    ],
)
def test_bad_points_far_away(psi: float, radius: float, gm: tuple[float, float], mean: tuple[float, float]) -> None:
    """100 of 1000 points, a mean over 10 seeds: share of bad points, and error of the mean."""
    for target, (share, error) in (("gm", gm), ("mean", mean)):
        found = []
        for seed in range(10):
            points = bad(psi, radius, seed)
            found.append(measure(points, gm_matching.select(points.points_ND, 100, target=target)))  # type: ignore[arg-type]
        assert np.mean([each["bad"] for each in found]) == pytest.approx(share, abs=0.01)
        assert np.mean([each["error"] for each in found]) == pytest.approx(error, rel=0.05, abs=0.002)


def test_in_high_dimension_the_median_is_biased_and_cosine_differs() -> None:
    """64 dimensions, the clean mean 8 from the origin, R = 20."""
    found: dict[tuple[float, str, str], float] = {}
    for psi in (0.4, 0.2):
        clouds = [bad(psi, 20.0, seed, 64, 8.0) for seed in range(3)]
        for target, similarity in (("gm", "inner"), ("gm", "cosine"), ("mean", "inner")):
            chosen = [
                gm_matching.select(each.points_ND, 100, target=target, similarity=similarity)  # type: ignore[arg-type]
                for each in clouds
            ]
            shares = [measure(each, one)["bad"] for each, one in zip(clouds, chosen, strict=True)]
            found[psi, target, similarity] = float(np.mean(shares))
        if psi == 0.4:
            away = [weiszfeld(each.points_ND) - each.points_ND[~each.is_bad_N].mean(0) for each in clouds]
            assert np.mean(np.linalg.norm(away, axis=1)) == pytest.approx(5.7, abs=0.3)
    assert found[0.4, "gm", "inner"] == pytest.approx(0.32, abs=0.02)
    assert found[0.4, "mean", "inner"] == pytest.approx(0.42, abs=0.02)
    assert found[0.4, "gm", "cosine"] == pytest.approx(0.50, abs=0.02)
    assert found[0.2, "gm", "inner"] == pytest.approx(0.14, abs=0.02)
    assert found[0.2, "gm", "cosine"] == pytest.approx(0.065, abs=0.02)


def test_bad_settings_are_refused() -> None:
    method = GmMatching(GmMatchingConfig(batches=5))
    with pytest.raises(ValueError, match=r"^method.batches=5: must be at most the 4 points picked"):
        method.select(SIX, 4, np.random.default_rng(0))
    for wrong in ({"gamma": 0.0}, {"gamma": 1.1}, {"batches": 0}, {"target": "mode"}, {"eps": 0.0}):
        with pytest.raises(ValidationError):
            TypeAdapter(GmMatchingConfig).validate_python(wrong)
