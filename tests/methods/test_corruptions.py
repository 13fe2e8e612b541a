"""The image corruptions: what each does to images of which it can be worked out, and in which order they come."""

from collections.abc import Callable

import numpy as np
import pytest

from methods import corruptions
from methods.corruptions import Pixels

KINDS = [
    corruptions.gaussian_noise, corruptions.occlusion, corruptions.lower_resolution, corruptions.fog,
    corruptions.motion_blur,
]  # fmt: skip
Kind = Callable[[Pixels, np.random.Generator], Pixels]


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def flat(level: int, count: int = 4, channels: int = 1, height: int = 8, width: int = 8) -> Pixels:
    return np.full((count, channels, height, width), level, dtype=np.uint8)


def any_images(count: int = 5, channels: int = 3, height: int = 9, width: int = 12) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (count, channels, height, width)).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(0, 1, 8, 8), (3, 3, 9, 12), (1, 1, 1, 1)])
def test_shape_and_type_stay_and_the_images_given_too(kind: Kind, size: tuple[int, int, int, int]) -> None:
    images = any_images(*size)
    kept = images.copy()
    found = kind(images, random())
    assert found.shape == size and found.dtype == np.uint8
    assert (images == kept).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_changed(kind: Kind) -> None:
    assert all((one != other).any() for one, other in zip(kind(any_images(), random()), any_images(), strict=True))


def test_noise_has_its_strength_and_stays_in_range() -> None:
    noise = corruptions.gaussian_noise(flat(128, height=200, width=200), random()).astype(float) - 128
    assert noise.mean() == pytest.approx(0, abs=1)
    inside = np.abs(noise) < 100
    from scipy.stats import truncnorm

    scale = 255 * corruptions.NOISE
    assert noise[inside].std() == pytest.approx(truncnorm.std(-100 / scale, 100 / scale, scale=scale), rel=0.02)
    assert (corruptions.gaussian_noise(flat(0, height=200, width=200), random()) == 0).mean() == pytest.approx(
        0.5, abs=0.02
    )


def test_a_square_is_hidden_in_all_channels() -> None:
    for image in corruptions.occlusion(flat(200, 30, 3, 8, 12), random()):
        assert set(np.unique(image)) == {0, 200}
        hidden = image == 0
        assert (hidden == hidden[0]).all() and hidden[0].sum() == 4 * 6
        rows, columns = np.flatnonzero(hidden[0].any(1)), np.flatnonzero(hidden[0].any(0))
        assert rows[-1] - rows[0] == 3 and columns[-1] - columns[0] == 5
    places = {tuple(np.argwhere(image[0] == 0)[0]) for image in corruptions.occlusion(flat(9, 400), random())}
    assert places == {(row, column) for row in range(5) for column in range(5)}  # also at all edges


def test_blocks_take_the_value_of_their_corner() -> None:
    images = any_images()
    found = corruptions.lower_resolution(images, random())
    for row in range(9):
        for column in range(12):
            assert (found[:, :, row, column] == images[:, :, row // 4 * 4, column // 4 * 4]).all()


def test_fog_is_bright_and_smooth() -> None:
    dark, bright = (corruptions.fog(flat(level, 50, height=20, width=20), random()).astype(float) for level in (0, 255))
    assert dark.min() >= np.floor(0.6 * 0.6 * 255) and dark.max() <= 0.6 * 255
    np.testing.assert_allclose(bright - dark, 0.4 * 255, atol=1)  # the veil is the same; the image shines through
    for axis in (2, 3):  # along a row or column the veil is straight, up to rounding
        assert np.abs(np.diff(dark, 2, axis=axis)).max() <= 2
    assert dark.std((1, 2, 3)).min() > 0 and dark.mean((1, 2, 3)).std() > 1  # a veil of its own for every image


def test_motion_blur_is_along_rows() -> None:
    rows = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None] * 30, (2, 1, 8, 10))
    assert (corruptions.motion_blur(np.ascontiguousarray(rows), random()) == rows).all()
    point = flat(0, 1, 1, 3, 10)
    point[0, 0, 1, 8] = 200
    expected = np.zeros((3, 10))
    expected[1, [8, 9, 0, 1]] = 50  # 0.4 of 10 pixels; what leaves comes in again
    assert (corruptions.motion_blur(point, random())[0, 0] == expected).all()


@pytest.mark.parametrize("count", [0, 1, 4, 5, 7, 20])
def test_five_parts_in_order(count: int) -> None:
    images = any_images(count)
    found = corruptions.corrupted(images, random())
    assert found.shape == images.shape
    parts, generator = np.array_split(np.arange(count), 5), random()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for kind, part in zip(KINDS, parts, strict=True):
        assert (found[part] == kind(images[part], generator)).all()
