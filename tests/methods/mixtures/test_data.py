"""Problems that are drawn, and inverted images: where theta* and the start lie, what is inverted, what is refused."""

from typing import Any

import numpy as np
import pytest

from methods.images import Images, ImagesConfig
from methods.mixtures import symmetric_linear
from methods.mixtures.data import (
    InvertedImages,
    InvertedImagesConfig,
    SyntheticMixture,
    SyntheticMixtureConfig,
    features,
    nearby,
)
from methods.mixtures.mixture import MixtureData


def drawn(seed: int = 1, **settings: Any) -> list[MixtureData]:
    return SyntheticMixture(SyntheticMixtureConfig(**settings)).load(seed)


@pytest.mark.parametrize("model", ["symmetric_linear", "symmetric_logistic", "linear", "logistic", "softmax"])
def test_truth_lies_on_spheres(model: str) -> None:
    experts = 2 if model.startswith("symmetric") else 4
    (data,) = drawn(model=model, experts=experts, snr=3.0, gate_snr=1.5, n=50, d=6)
    assert data.truth is not None and data.x_ND.shape == (50, 6) and data.y_N.shape == (50,)
    np.testing.assert_allclose(np.linalg.norm(data.truth.beta, axis=-1), 3.0)
    np.testing.assert_allclose(np.linalg.norm(data.truth.w, axis=-1), 1.5)
    shapes = {"symmetric_linear": ((6,), (6,)), "symmetric_logistic": ((6,), (6,)), "softmax": ((3, 6), (4, 3, 6))}
    assert (data.truth.w.shape, data.truth.beta.shape) == shapes.get(model, ((3, 6), (4, 6)))
    assert data.start.beta.shape == data.truth.beta.shape
    values = {"symmetric_logistic": {-1.0, 1.0}, "logistic": {0.0, 1.0}, "softmax": {0.0, 1.0, 2.0}}
    if model in values:
        assert set(np.unique(data.y_N)) == values[model]


@pytest.mark.parametrize(("orientation", "cosine"), [("parallel", 1.0), ("orthogonal", 0.0)])
def test_orientation(orientation: str, cosine: float) -> None:
    (data,) = drawn(orientation=orientation, n=20)
    assert data.truth is not None
    assert float(data.truth.w @ data.truth.beta) / 4 == pytest.approx(cosine, abs=1e-12)
    assert float(np.linalg.norm(data.truth.w)) == pytest.approx(2)


def test_start_is_as_far_away_as_asked() -> None:
    random = np.random.default_rng(1)
    true = random.standard_normal((3, 7))
    away = [np.linalg.norm(nearby(true, 0.8, random) - true) / np.linalg.norm(true) for _ in range(2000)]
    assert float(np.mean(np.square(away))) == pytest.approx(0.64, rel=0.03)
    (data,) = drawn(error=0.0, n=20)
    assert data.truth is not None and np.array_equal(data.start.w, data.truth.w)


def test_points_are_standard_normal_and_the_noise_has_a_variance_of_one() -> None:
    (data,) = drawn(n=50_000, d=2, snr=2.0)
    assert data.truth is not None
    np.testing.assert_allclose(data.x_ND.T @ data.x_ND / 50_000, np.eye(2), atol=0.02)
    # E y^2 = 1 + snr^2, whichever expert it is.
    assert float((data.y_N**2).mean()) == pytest.approx(5, rel=0.03)
    r = symmetric_linear.responsibilities(data.truth, data.x_ND, data.y_N)
    assert float(r.mean()) == pytest.approx(0.5, abs=0.02)


def test_the_seed_decides_and_every_problem_differs() -> None:
    first, second = drawn(seed=4, n=20, instances=2)
    again, _ = drawn(seed=4, n=20, instances=2)
    (other,) = drawn(seed=5, n=20)
    assert np.array_equal(first.x_ND, again.x_ND) and np.array_equal(first.start.w, again.start.w)
    for one in (second, other):
        assert not np.allclose(first.x_ND, one.x_ND) and not np.allclose(first.start.beta, one.start.beta)
    assert np.array_equal(drawn(seed=4, n=20)[0].x_ND, first.x_ND)


def test_pixels_are_turned_to_their_negative() -> None:
    pixels = np.array([[[[0, 255], [51, 102]]]] * 2, dtype=np.uint8)
    found = features(pixels, np.array([False, True]))
    np.testing.assert_allclose(found, [[0, 1, 0.2, 0.4, 1], [1, 0, 0.8, 0.6, 1]], atol=1e-15)


def test_half_of_the_digits_are_inverted_to_train_on_and_to_test_on() -> None:
    (data,) = InvertedImages(InvertedImagesConfig()).load(1)
    plain = Images(ImagesConfig()).load(1)
    assert data.test_x_MD is not None and data.test_y_M is not None and data.classes == 10
    assert data.x_ND.shape == (1297, 65) and data.test_x_MD.shape == (500, 65)
    assert data.start.w.shape == (1, 65) and data.start.beta.shape == (2, 10, 65)
    assert float(data.start.beta.std()) == pytest.approx(0.1, rel=0.1)
    for x, images, y, labels in (
        (data.x_ND, plain.images, data.y_N, plain.labels),
        (data.test_x_MD, plain.test_images, data.test_y_M, plain.test_labels),
    ):
        original = images.reshape(len(images), -1) / 255
        same = np.isclose(x[:, :-1], original).all(1)
        inverted = np.isclose(x[:, :-1], 1 - original).all(1)
        assert (same ^ inverted).all() and 0.4 < inverted.mean() < 0.6
        assert np.array_equal(y, labels) and (x[:, -1] == 1).all()


def test_inversion_is_the_seeds() -> None:
    first, again, other = (InvertedImages(InvertedImagesConfig()).load(seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first.x_ND, again.x_ND) and np.array_equal(first.start.beta, again.start.beta)
    assert not np.allclose(first.x_ND, other.x_ND) and not np.allclose(first.start.beta, other.start.beta)
    (never,) = InvertedImages(InvertedImagesConfig(inversion=0.0)).load(1)
    assert (never.x_ND[:, 0] == 0).all()  # a digit's corner


def test_validation_is_a_part_of_the_training_images() -> None:
    (data,) = InvertedImages(InvertedImagesConfig(validation=0.2, inversion=0.0)).load(1)
    assert data.test_x_MD is not None
    assert (len(data.x_ND), len(data.test_x_MD)) == (1297 - 259, 259)
    plain = Images(ImagesConfig()).load(1)
    known = {image.tobytes() for image in np.round(plain.images.reshape(1297, -1)).astype(np.uint8)}
    held = np.round(data.test_x_MD[:, :-1] * 255).astype(np.uint8)
    assert all(image.tobytes() in known for image in held)
    own = {image.tobytes() for image in np.round(data.x_ND[:, :-1] * 255).astype(np.uint8)}
    assert sum(image.tobytes() in own for image in held) <= 2  # two digits may be alike


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 9}, "dataset.n=9: must be at least dataset.d=10"),
        ({"n": 1, "d": 1, "model": "logistic"}, "dataset.n=1: must be at least the number of classes, 2"),
        ({"n": 3, "d": 1, "model": "softmax", "classes": 4}, "dataset.n=3: must be at least the number of classes, 4"),
        ({"experts": 3}, "dataset.experts=3: must be 2 for model symmetric_linear"),
        (
            {"model": "linear", "orientation": "parallel"},
            "dataset.orientation=parallel: must be random for model linear",
        ),
        ({"d": 1, "orientation": "orthogonal"}, "dataset.d=1: must be at least 2 for orientation orthogonal"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SyntheticMixtureConfig(**settings)


def test_fewer_images_than_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset.limit=9: must leave at least one point for each of 10 classes"):
        InvertedImages(InvertedImagesConfig(limit=9)).load(1)
    with pytest.raises(ValueError, match=r"dataset.path=None: must be given for source hub"):
        InvertedImagesConfig(source="hub")
