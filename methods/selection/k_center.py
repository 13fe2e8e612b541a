"""Greedy k-center: add, one by one, the point that is furthest from all that were taken, argmax_i min_j ||x_i - x_j||.

Its covering radius is at most twice the least there is (Gonzalez, 1985); as a core-set, Sener and Savarese, ICLR 2018,
arXiv 1708.00489. An extra: no table of GM Matching has it.

Legend: N points, D dimensions.
"""

from dataclasses import dataclass

import numpy as np

from methods.selection.base import Embedded, EmbeddedConfig
from methods.selection.points import Array, Indices, checked, distances


def select(points_ND: Array, k: int, *, random: np.random.Generator | None = None, first: int | None = None) -> Indices:
    """Greedy k-center from the point `first`, or from a random one. Returns [k], in their order.

    Raises:
        ValueError: `checked`'s, or there is no point `first`.
    """
    points_ND = checked(points_ND, k)
    if first is None:
        first = int((random or np.random.default_rng(0)).integers(len(points_ND)))
    if not 0 <= first < len(points_ND):
        raise ValueError(f"first={first}: must be one of the {len(points_ND)} points, counted from 0")
    picks = np.empty(k, dtype=np.int64)
    picks[0] = first
    nearest_N = distances(points_ND, points_ND[first])
    nearest_N[first] = -1.0  # below every distance: equal points may remain, taken ones must not
    for step in range(1, k):
        picks[step] = pick = int(np.argmax(nearest_N))
        np.minimum(nearest_N, distances(points_ND, points_ND[pick]), out=nearest_N)
        nearest_N[pick] = -1.0
    return picks


@dataclass(frozen=True, kw_only=True)
class KCenterConfig(EmbeddedConfig):
    """Nothing of its own."""

    per_class: bool = False


class KCenter(Embedded):
    """Greedy k-center: the points that cover all others best (arXiv 1708.00489)."""

    config: KCenterConfig

    def select(self, seen_N: Array, k: int, random: np.random.Generator) -> Indices:
        """From a random point on."""
        return select(seen_N, k, random=random)
