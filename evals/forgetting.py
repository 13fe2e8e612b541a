"""What fine-tuning keeps and what it costs: the mean general score, the drop against the base model, the Pareto front.

A paper on forgetting reports, for each setting, how well the new task is learned (target) and what is left of the
abilities the base model had (general). Scores are plain numbers, all of the same kind (all accuracies, or all losses).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

DIRECTIONS = ("higher", "lower")


def mean_score(scores: Sequence[float]) -> float:
    """The mean of several scores of one setting (its general score, over benchmarks).

    Raises ValueError for no score, or one that is not a finite number: a mean over fewer benchmarks is another number.
    """
    if not scores:
        raise ValueError("scores must hold at least one number, got none")
    return math.fsum(_finite(score, "scores") for score in scores) / len(scores)


def drop(base: float, tuned: float) -> float:
    """How much of the base model's score is lost: base - tuned, in the units of the scores; below 0 it is a gain.

    Raises ValueError for a score that is not a finite number.
    """
    return _finite(base, "base") - _finite(tuned, "tuned")


def pareto_front(
    points: Sequence[tuple[float | None, float | None]], better: tuple[str, str] = ("higher", "higher")
) -> list[bool]:
    """Which points (x, y) are not beaten: no other is at least as good on both axes and better on one.

    better: "higher" or "lower", for x and for y. Equal points do not beat each other. A point that lacks an axis (None
    or not finite) is never on the front and beats none. Raises ValueError for another direction.
    """
    for direction in better:
        if direction not in DIRECTIONS:
            raise ValueError(f"better must be higher or lower for each axis, got {direction!r}")
    signs = [1.0 if direction == "higher" else -1.0 for direction in better]
    placed = [
        None if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)) else (signs[0] * x, signs[1] * y)
        for x, y in points
    ]
    others = [point for point in placed if point is not None]
    return [point is not None and not any(_beats(other, point) for other in others) for point in placed]


def _beats(other: tuple[float, float], point: tuple[float, float]) -> bool:
    return other != point and other[0] >= point[0] and other[1] >= point[1]


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite numbers, got {value}")
    return value
