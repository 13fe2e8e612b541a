"""Batches and examples of images: an image is a sequence of one target, its label.

So what a method computes per target token it computes per image, and fine-tuning methods need not know which they see.

Legend: as in `methods/batch.py`; n examples, C channels, H rows, W columns. B, S and K are the images of a batch.
"""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from methods.batch import Batch
from methods.examples import Examples


@dataclass(frozen=True)
class ImageBatch(Batch):
    """A batch whose target tokens are labels. pixels_BCHW: float, normalised."""

    pixels_BCHW: Tensor | None = None


@dataclass(frozen=True)
class ImageExamples(Examples):
    """Images with a label each, which is the one token of its sequence. pixels: uint8 [n, C, H, W]."""

    pixels: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 1, 1, 1), dtype=np.uint8))

    @classmethod
    def of_images(cls, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> "ImageExamples":
        """From images [n, C, H, W] and their labels [n]."""
        count = len(labels)
        return cls(
            tokens=labels.astype(np.int32),
            starts=np.arange(count + 1, dtype=np.int64),
            targets=np.zeros(count, dtype=np.int64),
            pixels=pixels,
        )

    def _of_members(self, members_M: NDArray[np.int64], sizes_K: NDArray[np.int64]) -> Self:
        return dataclasses.replace(super()._of_members(members_M, sizes_K), pixels=self.pixels[members_M])

    def digest(self) -> str:
        """A hash of images and labels."""
        found = hashlib.sha256(super().digest().encode())
        found.update(np.ascontiguousarray(self.pixels).tobytes())
        return found.hexdigest()
