"""The global batches of image classifiers: as those of sequences, with pixels, moved and mirrored at random.

How an image is changed in a step is a function of seed, step and image alone, as which images the step sees is: it does
not depend on how the batch is laid out over micro-batches and processes.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from methods.batch import Batch
from methods.image_batch import ImageBatch, ImageExamples
from methods.images import Transform
from runners.batches import Batches

_CHANGES = 11  # of the seed: apart from the order of the images


@dataclass(frozen=True)
class ImageBatches(Batches):
    """The stream of global batches of images. `transform`: what is done to an image before the model sees it."""

    transform: Transform = dataclasses.field(kw_only=True)

    def of_step(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step, their images changed at random."""
        changes = self._changes(step)
        return [self._with_pixels(batch, changes) for batch in super().of_step(step)]

    def once(self) -> Iterator[Batch]:
        """All images once, as they are."""
        for batch in super().once():
            yield self._with_pixels(batch, {})

    def _changes(self, step: int) -> dict[int, tuple[int, int, bool]]:
        """Of each image of a step: rows and columns it is moved by, and whether it is mirrored."""
        indices = self.global_batch(step)
        random = np.random.default_rng([self.seed, _CHANGES, step])
        room = self.transform.crop_padding
        moves_N2 = random.integers(-room, room + 1, (len(indices), 2))
        mirrored_N = (random.random(len(indices)) < 0.5) & self.transform.flip
        return {
            int(index): (int(down), int(right), bool(mirrored))
            for index, (down, right), mirrored in zip(indices, moves_N2, mirrored_N, strict=True)
        }

    def _with_pixels(self, batch: Batch, changes: dict[int, tuple[int, int, bool]]) -> ImageBatch:
        assert isinstance(self.examples, ImageExamples)
        pixels = self.examples.pixels[batch.example_S.numpy()]
        if changes and (self.transform.crop_padding or self.transform.flip):
            of_batch = [changes[int(index)] for index in batch.example_S]
            pixels = np.stack([moved(image, *change) for image, change in zip(pixels, of_batch, strict=True)])
        return ImageBatch(**vars(batch), pixels_BCHW=prepared(pixels, self.transform))


def moved(image_CHW: NDArray[np.uint8], down: int, right: int, mirrored: bool) -> NDArray[np.uint8]:
    """An image moved inside its frame, black where it was not, and mirrored left to right."""
    height, width = image_CHW.shape[1:]
    found = np.zeros_like(image_CHW)
    rows = slice(max(down, 0), height + min(down, 0)), slice(max(-down, 0), height + min(-down, 0))
    columns = slice(max(right, 0), width + min(right, 0)), slice(max(-right, 0), width + min(-right, 0))
    found[:, rows[0], columns[0]] = image_CHW[:, rows[1], columns[1]]
    return found[:, :, ::-1].copy() if mirrored else found


def prepared(pixels_BCHW: NDArray[np.uint8], transform: Transform) -> torch.Tensor:
    """Pixels as a model sees them: in [0, 1], resized, less their mean, over their deviation. Returns [B, C, H, W]."""
    found_BCHW = torch.from_numpy(np.ascontiguousarray(pixels_BCHW)).float() / 255
    if transform.resize is not None:
        size = (transform.resize, transform.resize)
        found_BCHW = F.interpolate(found_BCHW, size, mode="bilinear", align_corners=False, antialias=True)
    mean_C11, std_C11 = (torch.tensor(values).view(-1, 1, 1) for values in (transform.mean, transform.std))
    return (found_BCHW - mean_C11) / std_C11
