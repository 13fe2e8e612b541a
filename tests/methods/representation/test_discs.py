"""Discs: that they are where, as bright and as large as their factors say."""

import math

import numpy as np
import pytest

from methods.representation.discs import Discs, DiscsConfig, drawn

FACTORS = np.random.default_rng(0).random((50, 4))


def centres(images: np.ndarray) -> np.ndarray:
    """Centre of mass, x and y, in pixels."""
    weights = images[:, 0].astype(float)
    pixel = np.arange(images.shape[-1])
    total = weights.sum((1, 2))
    return np.stack([(weights.sum(1) @ pixel) / total, (weights.sum(2) @ pixel) / total], 1)


@pytest.mark.parametrize("known", [2, 3, 4])
def test_discs_lie_where_their_factors_say(known: int) -> None:
    images = drawn(FACTORS[:, :known], 32, 3.0)
    radius = 3.0 * (1 + FACTORS[:, 3]) if known == 4 else np.full(50, 3.0)
    margin = radius[:, None] + 0.5
    np.testing.assert_allclose(centres(images), margin + (31 - 2 * margin) * FACTORS[:, :2], atol=0.05)
    assert images.shape == (50, 1, 32, 32) and images.dtype == np.uint8


def test_they_are_as_bright_and_as_large_as_their_factors_say() -> None:
    images = drawn(FACTORS, 32, 3.0)
    np.testing.assert_array_equal(images.max((1, 2, 3)), np.round(255 * (0.3 + 0.7 * FACTORS[:, 2])))
    area = images.sum((1, 2, 3)) / images.max((1, 2, 3))
    np.testing.assert_allclose(area, math.pi * (3.0 * (1 + FACTORS[:, 3])) ** 2, rtol=0.04)


def test_all_of_a_disc_is_visible_at_the_corners() -> None:
    corner = np.array([[0.0, 0, 1], [1, 1, 1], [0, 1, 1]])
    whole = drawn(np.array([[0.5, 0.5, 1]]), 16, 2.5).sum()
    np.testing.assert_allclose(drawn(corner, 16, 2.5).sum((1, 2, 3)), whole, rtol=0.02)


def test_the_data_are_a_function_of_the_seed() -> None:
    data = Discs(DiscsConfig(train=20, test=10)).load(1)
    again, other = Discs(DiscsConfig(train=20, test=10)).load(1), Discs(DiscsConfig(train=20, test=10)).load(2)
    np.testing.assert_array_equal(data.images, again.images)
    assert not np.array_equal(data.images, other.images)
    assert not np.array_equal(data.images[:10], data.test_images)
    fixed = [Discs(DiscsConfig(train=20, test=10, seed=1)).load(seed).images for seed in (1, 2)]
    np.testing.assert_array_equal(*fixed)
    assert data.factors.shape == (20, 3) and data.test_factors.shape == (10, 3)
    np.testing.assert_array_equal(data.test_images, drawn(data.test_factors, 16, 2.5))


@pytest.mark.parametrize(
    "values", [{"radius": 7.0}, {"radius": 3.5, "factors": "xycs"}], ids=["one size", "the largest"]
)
def test_discs_must_fit(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"dataset.radius=.*: discs must fit into 16 pixels"):
        DiscsConfig(**values)  # type: ignore[arg-type]
