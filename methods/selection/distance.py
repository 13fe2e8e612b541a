"""Selection by the distance r to the centre, the mean of the points: the easy, the hard or the moderate ones.

easy      the k smallest r: near the centre, all alike
hard      the k largest r: far from it, or wrong
moderate  the k in the middle of all points sorted by r, from the place round(N / 2 - k / 2) on: Xia et al., "Moderate
          Coreset", ICLR 2023

All three as in the authors' code of GM Matching (arXiv 2504.00564), which they are baselines of, within each class.

Legend: N points, D dimensions.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from methods.selection.base import Embedded, EmbeddedConfig
from methods.selection.points import Array, Indices, checked, distances

Which = Literal["easy", "hard", "moderate"]


def select(points_ND: Array, k: int, *, which: Which) -> Indices:
    """k points by their distance to the mean. Returns [k]: easy from the nearest on, hard from the furthest on.

    Raises:
        ValueError: `checked`'s.
    """
    points_ND = checked(points_ND, k)
    order_N = np.argsort(distances(points_ND, points_ND.mean(0)), kind="stable")
    if which == "easy":
        return order_N[:k]
    if which == "hard":
        return order_N[::-1][:k]
    first = min(max(round(0.5 * len(order_N) - k / 2), 0), len(order_N) - k)
    return order_N[first : first + k]


@dataclass(frozen=True, kw_only=True)
class DistanceConfig(EmbeddedConfig):
    """which: easy, hard or moderate points."""

    which: Literal["easy", "hard", "moderate"] = "moderate"


class Distance(Embedded):
    """Easy, hard or moderate points by their distance to the mean; moderate is Moderate-DS (ICLR 2023)."""

    config: DistanceConfig

    def select(self, seen_N: Array, k: int, random: np.random.Generator) -> Indices:
        """Nothing is random here."""
        return select(seen_N, k, which=self.config.which)
