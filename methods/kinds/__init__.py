"""Kinds of model (`model.kind`): how each attends, scores its tokens, generates and is evaluated."""

import importlib

from methods.kinds.causal import Causal

__all__ = ["Causal", "adapter"]


def adapter(kind: str) -> Causal:
    """The adapter of a kind of model: the class named like its module, `methods.kinds.<kind>`."""
    name = "".join(part.capitalize() for part in kind.split("_"))
    built = getattr(importlib.import_module(f"methods.kinds.{kind}"), name)()
    assert isinstance(built, Causal)
    return built
