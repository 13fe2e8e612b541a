"""Kinds of model (`model.kind`): how each attends, scores its tokens, generates and is evaluated."""

import importlib
from typing import Protocol

from torch import Tensor, nn

from methods.batch import Batch

__all__ = ["Kind", "adapter"]


class Kind(Protocol):
    """What methods ask of a model, whatever its kind. S sequences, K target tokens, D width, V classes or tokens."""

    logits_chunk: int | None  # target tokens whose logits are in memory at a time; None: all

    def token_logps(self, model: nn.Module, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Log-probability of every target, at a temperature of sampling. Returns [K], fp32."""
        ...

    def target_logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits from which every target is predicted. Returns [K, V], in the model's precision."""
        ...

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the output layer sees of every sequence of a batch. Returns [S, D], fp32."""
        ...


def adapter(kind: str, logits_chunk: int | None = None) -> Kind:
    """The adapter of a kind of model: the class named like its module, `methods.kinds.<kind>`.

    logits_chunk: as in `methods.kinds.causal.Causal`.
    """
    name = "".join(part.capitalize() for part in kind.split("_"))
    built: Kind = getattr(importlib.import_module(f"methods.kinds.{kind}"), name)(logits_chunk)
    return built
