"""Accuracy of image classifiers: on the test images of the data set, on its hardest training images, on the source.

The source is what the model could do before its head was replaced. A model tuned to other classes is measured on it
with its original head and batch norms put back (arXiv 2502.02797, remark 4.1): what is left are the tuned convolutions.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from evals.harness import Evaluation
from methods.images import ImageData, Images, ImagesConfig, Transform
from methods.kinds.image import Image
from runners import record
from runners.engine import device
from runners.image_batches import prepared
from runners.image_context import ImageContext

TASK = "accuracy"
_SEED = 0  # of the source's data: what is tested on is the same for all runs


def with_accuracy(measured: Evaluation, context: ImageContext, model: nn.Module, dtype: str) -> Evaluation:
    """`measured` with one task more, `accuracy`: target; hardest and source where they are asked for.

    Args:
        measured: by others.
        context: of the run.
        model: the final one, placed, in evaluation mode.
        dtype: in which other models are loaded.
    """
    settings, batch_size = context.config["evaluation"]["accuracy"], context.config["evaluation"]["batch_size"]
    data: ImageData = context.dataset
    limit = context.config["evaluation"]["limit"]
    images, labels = data.test_images[:limit], data.test_labels[:limit]
    scores = {"target": is_right(model, images, labels, data.transform, batch_size).mean()}
    counts = {"target": len(labels)}
    if settings["hardest"] is not None:
        start = context.load(context.config["model"], context.parent, dtype).to(device()).eval()
        losses = -label_logps(start, data.images, data.labels, data.transform, batch_size)
        hardest = np.argsort(-losses, kind="stable")[: max(int(settings["hardest"] * len(losses)), 1)]
        right = is_right(model, data.images[hardest], data.labels[hardest], data.transform, batch_size)
        scores["hardest"] = right.mean()
        counts["hardest"] = len(hardest)
    if settings["source"] is not None:
        source = Images(ImagesConfig(**{k: v for k, v in settings["source"].items() if k != "_target_"})).load(_SEED)
        restored = with_original_head(context, model, dtype)
        images, labels = source.test_images[:limit], source.test_labels[:limit]
        scores["source"] = is_right(restored, images, labels, source.transform, batch_size).mean()
        counts["source"] = len(labels)
        scores["mean"] = (scores["source"] + scores["target"]) / 2
    own = {f"{name},none": float(value) for name, value in scores.items()}
    return dataclasses.replace(
        measured,
        metrics={**measured.metrics, TASK: own},
        n_samples={**measured.n_samples, TASK: {"original": counts["target"], "effective": counts["target"]}},
        higher_is_better={**measured.higher_is_better, TASK: dict.fromkeys(scores, True)},
    )


def with_original_head(context: ImageContext, model: nn.Module, dtype: str) -> nn.Module:
    """The model from before its head was replaced, with the tuned weights of all but head and batch norms."""
    before = context.spec.before_new_head
    assert before is not None
    folder = record.weights(before.parent)[0] if before.parent else None
    original = context.load({**before.config["model"], "classes": None}, folder, dtype).to(device()).eval()
    head = Image.head(original)
    kept = (head, *(module for module in original.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)))
    own = {id(tensor) for module in kept for tensor in (*module.parameters(), *module.buffers())}
    tuned = dict(getattr(model, "module", model).state_dict())
    state: dict[str, Any] = dict(original.state_dict(keep_vars=True))
    with torch.no_grad():
        for name, tensor in state.items():
            if id(tensor) not in own:
                tensor.copy_(tuned[name])
    return original


def label_logps(
    model: nn.Module, images_NCHW: NDArray[np.uint8], labels_N: NDArray[np.int64], transform: Transform, batch_size: int
) -> NDArray[np.float64]:
    """Log-probability of each image's label. Returns [N]."""
    logps_NV = _logps(model, images_NCHW, transform, batch_size)
    found_N: NDArray[np.float64] = logps_NV[np.arange(len(labels_N)), labels_N]
    return found_N


def is_right(
    model: nn.Module, images_NCHW: NDArray[np.uint8], labels_N: NDArray[np.int64], transform: Transform, batch_size: int
) -> NDArray[np.bool_]:
    """Whether the likeliest class is the label. Returns [N]."""
    right_N: NDArray[np.bool_] = _logps(model, images_NCHW, transform, batch_size).argmax(1) == labels_N
    return right_N


def _logps(
    model: nn.Module, images_NCHW: NDArray[np.uint8], transform: Transform, batch_size: int
) -> NDArray[np.float64]:
    precision = next(model.parameters()).dtype
    found = []
    with torch.no_grad():
        for begin in range(0, len(images_NCHW), batch_size):
            pixels = prepared(images_NCHW[begin : begin + batch_size], transform).to(device(), precision)
            found.append(model(pixel_values=pixels).logits.float().log_softmax(-1).double().cpu().numpy())
    return np.concatenate(found)
