"""What a run with an image classifier offers its method: images in place of text, no tokenizer, no generation."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from methods.examples import Examples
from methods.image_batch import ImageExamples
from methods.images import ImageData
from runners.batches import Batches
from runners.errors import UserError
from runners.image_batches import ImageBatches
from runners.model_context import ModelContext
from runners.models import load_classifier


class ImageContext(ModelContext):
    """What a run with an image classifier offers its method."""

    tokenizer = None

    @cached_property
    def _everything(self) -> Batches:
        data: ImageData = self.dataset
        return self._batches_of(ImageExamples.of_images(data.images, data.labels))

    @property
    def _classes_to_select(self) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self.dataset.labels
        return labels

    def _note_kept(self, kept_K: NDArray[np.int64]) -> None:
        super()._note_kept(kept_K)
        data: ImageData = self.dataset
        wrong_K = data.labels[kept_K] != data.clean_labels[kept_K]
        self._reports["data/wrong_labels_kept"] = float(wrong_K.mean())
        self._reports["data/corrupted_kept"] = float(data.is_corrupted[kept_K].mean())

    def _batches_of(self, examples: Examples, ratio: float = 1.0) -> Batches:
        training = self.config["training"]
        return ImageBatches(
            examples,
            training["batch_size"],
            training["micro_batch_size"],
            False,
            1,
            0,
            self.seed,
            self._rank,
            self._world,
            transform=self.dataset.transform,
        )

    def load(self, settings: Mapping[str, Any], folder: Path | None, dtype: str | None = None) -> nn.Module:
        """The classifier of `model:` settings, or the final one of a run's folder."""
        return load_classifier(settings, folder, dtype)

    def _starting_model(self) -> nn.Module:
        model: Any = super()._starting_model()
        if model.config.num_labels < self.dataset.classes:
            raise UserError(
                f"model.classes={self.config['model']['classes']}: the model tells {model.config.num_labels} classes "
                f"apart, the data set has {self.dataset.classes}"
            )
        return model

    def _save_tokenizer(self, folder: Path) -> None:
        """There is none."""
