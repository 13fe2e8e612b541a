"""Contaminated points: how many are bad, where they are, that they depend on the seed alone."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from methods.selection import gm_matching
from methods.selection.data import ContaminatedGaussian, ContaminatedGaussianConfig, Features


def load(seed: int = 1, **settings: float) -> Features:
    return ContaminatedGaussian(ContaminatedGaussianConfig(**settings)).load(seed)  # type: ignore[arg-type]


def test_bad_points_are_as_many_and_as_far_as_asked() -> None:
    points = load(n=4000, dimensions=3, psi=0.3, radius=50.0, offset=7.0)
    assert points.is_bad_N.sum() == 1200 and points.points_ND.shape == (4000, 3)
    np.testing.assert_allclose(points.points_ND[points.is_bad_N].mean(0), [7, 0, 50], atol=0.1)
    np.testing.assert_allclose(points.points_ND[~points.is_bad_N].mean(0), [7, 0, 0], atol=0.1)
    np.testing.assert_allclose(points.points_ND[points.is_bad_N].std(0), 1, atol=0.06)
    assert 0.2 < points.is_bad_N[:400].mean() < 0.4  # anywhere among the others


def test_feature_noise() -> None:
    points = load(n=4000, psi=0.5, radius=0.0, noise=3.0)
    np.testing.assert_allclose(points.points_ND[points.is_bad_N].std(0), np.sqrt(10), atol=0.15)
    np.testing.assert_allclose(points.points_ND[~points.is_bad_N].std(0), 1, atol=0.05)


def test_the_seed_decides() -> None:
    assert (load(1).points_ND == load(1).points_ND).all()
    assert not np.isclose(load(1).points_ND, load(2).points_ND).any()


def test_no_bad_points() -> None:
    assert not load(psi=0.0).is_bad_N.any()


def test_the_furthest_points_there_can_be_are_selectable() -> None:
    points = load(n=200, dimensions=1, psi=0.5, radius=1e98, noise=1e98, offset=1e98)
    assert len(set(gm_matching.select(points.points_ND, 20).tolist())) == 20


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^dataset.psi=0.9: must leave at least one of 2 points clean$"):
        load(n=2, psi=0.9)
    for wrong in (
        {"psi": 1.0},
        {"psi": -0.1},
        {"radius": float("inf")},
        {"radius": -1.0},
        {"radius": 1e99},
        {"noise": float("nan")},
        {"n": 0},
    ):
        with pytest.raises(ValidationError):
            TypeAdapter(ContaminatedGaussianConfig).validate_python(wrong)
