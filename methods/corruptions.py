"""Image corruptions of GM Matching's experiments (arXiv 2406.17188): noise, occlusion, resolution, fog, motion blur.

How strong they are is not in the sources: the strengths below are ours.

Legend: N images, C channels, H rows, W columns.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # [N, C, H, W]

NOISE = 0.25  # standard deviation, as a share of the range
OCCLUDED = 0.5  # side of the black square, as a share of the image's
REDUCTION = 4  # factor of the resolution
FOG = 0.6  # share of the fog in a pixel
BLUR = 0.4  # length of the motion, as a share of the image's width


def corrupted(images_NCHW: Pixels, random: np.random.Generator) -> Pixels:
    """The images, in their order the first fifth noisy, the next occluded, and so on. Returns [N, C, H, W]."""
    kinds: tuple[Callable[[Pixels, np.random.Generator], Pixels], ...] = (
        gaussian_noise, occlusion, lower_resolution, fog, motion_blur,
    )  # fmt: skip
    parts = np.array_split(np.arange(len(images_NCHW)), len(kinds))
    return np.concatenate([kind(images_NCHW[part], random) for kind, part in zip(kinds, parts, strict=True)])


def gaussian_noise(images_NCHW: Pixels, random: np.random.Generator) -> Pixels:
    """Independent noise in every pixel."""
    return _pixels(images_NCHW + random.normal(0.0, 255 * NOISE, images_NCHW.shape))


def occlusion(images_NCHW: Pixels, random: np.random.Generator) -> Pixels:
    """A black square at a random place."""
    count, _, height, width = images_NCHW.shape
    tall, wide = max(round(OCCLUDED * height), 1), max(round(OCCLUDED * width), 1)
    top_N, left_N = random.integers(0, height - tall + 1, count), random.integers(0, width - wide + 1, count)
    rows_NH = (np.arange(height) >= top_N[:, None]) & (np.arange(height) < top_N[:, None] + tall)
    columns_NW = (np.arange(width) >= left_N[:, None]) & (np.arange(width) < left_N[:, None] + wide)
    hidden_N1HW = (rows_NH[:, :, None] & columns_NW[:, None, :])[:, None]
    return np.where(hidden_N1HW, np.uint8(0), images_NCHW)


def lower_resolution(images_NCHW: Pixels, _: np.random.Generator) -> Pixels:
    """Every block of pixels takes the value of its upper left one."""
    height, width = images_NCHW.shape[2:]
    rows, columns = np.arange(height) // REDUCTION * REDUCTION, np.arange(width) // REDUCTION * REDUCTION
    return images_NCHW[:, :, rows][:, :, :, columns]


def fog(images_NCHW: Pixels, random: np.random.Generator) -> Pixels:
    """A bright veil that varies smoothly over the image."""
    count, _, height, width = images_NCHW.shape
    corners_N22 = random.uniform(0.6, 1.0, (count, 2, 2))
    down_H, across_W = np.linspace(0, 1, height), np.linspace(0, 1, width)
    sides_N2W = corners_N22[:, :, :1] * (1 - across_W) + corners_N22[:, :, 1:] * across_W
    veil_NHW = sides_N2W[:, :1] * (1 - down_H)[None, :, None] + sides_N2W[:, 1:] * down_H[None, :, None]
    return _pixels((1 - FOG) * images_NCHW + FOG * 255 * veil_NHW[:, None])


def motion_blur(images_NCHW: Pixels, _: np.random.Generator) -> Pixels:
    """The mean of the image moved to the side, step by step; what leaves the image comes in on the other side."""
    steps = max(round(BLUR * images_NCHW.shape[3]), 2)
    moved = [np.roll(images_NCHW.astype(np.float64), shift, axis=3) for shift in range(steps)]
    return _pixels(np.mean(moved, axis=0))


def _pixels(values_NCHW: NDArray[np.floating]) -> Pixels:
    return np.clip(np.round(values_NCHW), 0, 255).astype(np.uint8)
