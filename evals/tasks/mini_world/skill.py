"""The items and the scores of the mini world's tasks, as lm-eval wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evals import mini_world

if TYPE_CHECKING:
    import datasets


def items(
    skill: str, split: str, count: int, seed: int, part: str | None = None, **ignored: Any
) -> dict[str, datasets.Dataset]:
    """The items to evaluate, under one name whatever their split. Arguments as for `mini_world.items`."""
    return {"items": mini_world.load(skill, split, count, seed, part)[split]}


def score(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """The metrics of one item: whether its answer is the greedy one, and minus its log-probability."""
    ((answer_logp, is_greedy),) = results
    return {"acc": float(is_greedy), "nll": -answer_logp}
