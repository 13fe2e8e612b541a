"""Mergers: methods whose final model is made of the weights of finished runs, without training.

A merging run starts from another run (`model.from_run`) or from several (`model.from_runs`), so a sweep over a
coefficient trains nothing. Arithmetic is in fp32 whatever the weights are stored in; the result is stored as they are.

Weights of a large model barely fit in memory twice: a merger goes through them tensor by tensor, and never holds more
than two whole copies, what it has made so far among them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from methods.method import Context, Method

Weights = dict[str, Tensor]


class Merger(Method):
    """Base of all mergers. A subclass says what it `merges` ("run" or "runs") and how."""

    kinds = ("causal", "image")

    def run(self, context: Context) -> Mapping[str, float]:
        """Make the run's final model; returns what there is to report."""
        weights, report = self.merge(context)
        context.save_weights(weights)
        return report

    def merge(self, context: Context) -> tuple[Weights, Mapping[str, float]]:
        """The final weights, and what there is to report."""
        raise NotImplementedError(f"{type(self).__name__} must implement merge")


def check_alike(first: Mapping[str, Tensor], second: Mapping[str, Tensor], names: tuple[str, str]) -> None:
    """Refuse to merge models that do not have the same tensors.

    Args:
        first, second: weights by name.
        names: what to call the two.

    Raises:
        ValueError: a tensor is missing on one side, or has another shape; names the first one.
    """
    for name in (*first, *second):
        if name not in first or name not in second:
            has, lacks = names if name in first else names[::-1]
            raise ValueError(
                f"model.from_run: models to be merged must have the same tensors; {has} has {name}, {lacks} has not"
            )
        if first[name].shape != second[name].shape:
            shapes = f"{list(first[name].shape)} in {names[0]}, {list(second[name].shape)} in {names[1]}"
            raise ValueError(f"model.from_run: tensors to be merged must have the same shape; {name} is {shapes}")


def in_fp32(tensor: Tensor) -> Tensor:
    """A floating-point tensor in the precision of merging: fp32, or its own where that is higher."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def between(start: Tensor, end: Tensor, share: float) -> Tensor:
    """(1 - share) start + share end, in fp32; bitwise `start` at 0 and `end` at 1. What holds no fractions is `end`'s.

    Args:
        start, end: of one shape. Integers (counters, indices) have no mean.
        share: of `end`, in [0, 1].
    """
    if not end.is_floating_point():
        return end
    start, end = in_fp32(start), in_fp32(end)
    if share in (0.0, 1.0):  # also where the other end is infinite, or 0 has a sign
        return end if share else start
    return torch.lerp(start, end, share)


def dtypes(weights: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """How each tensor is stored."""
    return {name: tensor.dtype for name, tensor in weights.items()}


def cast(weights: Weights, stored: Mapping[str, torch.dtype]) -> Weights:
    """Weights stored as `dtypes` says, one tensor at a time; uses `weights` up."""
    for name, tensor in weights.items():
        weights[name] = tensor.to(stored[name])
    return weights
