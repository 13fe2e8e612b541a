"""Kinds of model (`model.kind`): how each attends, scores its tokens, generates and is evaluated."""

import importlib

from methods.kinds.causal import Causal

__all__ = ["Causal", "adapter"]


def adapter(kind: str, logits_chunk: int | None = None) -> Causal:
    """The adapter of a kind of model: the class named like its module, `methods.kinds.<kind>`.

    logits_chunk: as in `Causal`.
    """
    name = "".join(part.capitalize() for part in kind.split("_"))
    built = getattr(importlib.import_module(f"methods.kinds.{kind}"), name)(logits_chunk)
    assert isinstance(built, Causal)
    return built
