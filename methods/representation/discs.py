"""Images of one disc each, made from known factors: where it is, how bright and how large.

After the XY, XYC and XYCS images of Cha and Thiyagalingam (2023), on which AE-MMD is measured too (arXiv 2510.11953):
discs on black whose factors are position (XY), intensity (C) and size (S). Sizes, ranges and the blurred edge are ours.

Legend: N images, K factors, S side of an image in pixels.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat

from methods.dataset import Dataset
from methods.images import ImageData

Floats = NDArray[np.float64]

_DIMMEST = 0.3  # of 1, white
_LARGEST = 2.0  # radius of the largest disc over that of the smallest


@dataclass(frozen=True, kw_only=True)
class FactoredImages(ImageData):
    """Images whose factors are known, each in [0, 1]: factors [N, K] and test_factors."""

    factors: Floats = field(repr=False)
    test_factors: Floats = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class DiscsConfig:
    """factors: xy, xyc (with intensity) or xycs (with intensity and size). size: S. radius: of the smallest disc.

    train, test: how many images. seed: of the images; null: the run's.
    """

    factors: Literal["xy", "xyc", "xycs"] = "xyc"
    size: Annotated[int, Ge(8)] = 16
    radius: PositiveFloat = 2.5
    train: Annotated[int, Ge(10)] = 4000
    test: Annotated[int, Ge(10)] = 1000
    seed: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        largest = self.radius * (_LARGEST if self.factors == "xycs" else 1.0)
        if 2 * (largest + 1) >= self.size:
            raise ValueError(
                f"dataset.radius={self.radius}: discs must fit into {self.size} pixels and leave room to move"
            )


class Discs(Dataset):
    """One grey disc on black in every image, all of it visible."""

    config: DiscsConfig
    type = "factored_images"

    def load(self, seed: int) -> FactoredImages:
        """Draw the factors, uniformly and independently, and the images."""
        config = self.config
        random = np.random.default_rng([seed if config.seed is None else config.seed, 5])
        factors, test_factors = (random.random((count, len(config.factors))) for count in (config.train, config.test))
        images, test_images = (drawn(each, config.size, config.radius) for each in (factors, test_factors))
        labels, test_labels = (np.zeros(len(each), np.int64) for each in (factors, test_factors))  # one class
        clean = np.zeros(len(factors), dtype=bool)
        return FactoredImages(
            images=images, labels=labels, test_images=test_images, test_labels=test_labels, classes=1,
            clean_labels=labels, is_corrupted=clean, factors=factors, test_factors=test_factors,
        )  # fmt: skip


def drawn(factors_NK: Floats, size: int, radius: float) -> NDArray[np.uint8]:
    """Images of x, y and, where given, intensity and size, each in [0, 1]. Returns [N, 1, S, S].

    A pixel is as bright as the disc up to half a pixel within its edge, and black from half a pixel beyond.
    """
    count, known = factors_NK.shape
    radius_N = radius * (1 + (_LARGEST - 1) * factors_NK[:, 3]) if known > 3 else np.full(count, radius)
    brightness_N = _DIMMEST + (1 - _DIMMEST) * factors_NK[:, 2] if known > 2 else np.ones(count)
    margin_N = radius_N + 0.5
    x_N, y_N = (margin_N + (size - 1 - 2 * margin_N) * factors_NK[:, k] for k in (0, 1))
    pixel = np.arange(size)
    distance = np.hypot(pixel[None, None, :] - x_N[:, None, None], pixel[None, :, None] - y_N[:, None, None])
    covered = np.clip(radius_N[:, None, None] + 0.5 - distance, 0, 1)
    return np.round(255 * brightness_N[:, None, None] * covered).astype(np.uint8)[:, None]
