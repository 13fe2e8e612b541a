"""Image classifiers: the label is the one target of an image, predicted from its pixels.

Legend: B images of a batch, which are its K targets, D width, V classes.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from methods.batch import Batch
from methods.image_batch import ImageBatch


class Image:
    """Adapter of image classifiers as `transformers` defines them (bare, or inside a DeepSpeed engine)."""

    def __init__(self, logits_chunk: int | None = None) -> None:
        """`logits_chunk` is of no use: classes are few."""
        self.logits_chunk = None

    def token_logps(self, model: nn.Module, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Log-probability of every image's label. Returns [K], fp32."""
        logits_KV = self.target_logits(model, batch).float() / temperature
        return -F.cross_entropy(logits_KV, batch.targets_K, reduction="none")

    def target_logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits of the classes for every image that has a target. Returns [K, V], in the model's precision."""
        assert isinstance(batch, ImageBatch) and batch.pixels_BCHW is not None
        precision = next(model.parameters()).dtype
        logits_BV: Tensor = model(pixel_values=batch.pixels_BCHW.to(precision)).logits
        return logits_BV[batch.target_mask_BT.squeeze(1)]

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the head sees of every image. Returns [B, D], fp32."""
        assert isinstance(batch, ImageBatch) and batch.pixels_BCHW is not None
        shown: list[Tensor] = []
        handle = self.head(model).register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].float()))
        try:
            model(pixel_values=batch.pixels_BCHW.to(next(model.parameters()).dtype))
        finally:
            handle.remove()
        return shown[0]

    @staticmethod
    def head(model: nn.Module) -> nn.Linear:
        """The last linear layer, which gives the logits.

        Raises:
            ValueError: the model has none.
        """
        inner: Any = getattr(model, "module", model)
        found = [module for module in inner.modules() if isinstance(module, nn.Linear)]
        if not found:
            raise ValueError("model.architecture: an image classifier must have a linear layer for its classes")
        return found[-1]
