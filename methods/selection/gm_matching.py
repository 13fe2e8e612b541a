"""GM Matching: herding to the geometric median of all points, which up to half of them cannot move far.

Acharya et al.: "Geometric Median (GM) Matching for Robust k-Subset Selection from Noisy Data",
ICML 2025, arXiv 2504.00564; earlier "... for Robust Data Pruning", arXiv 2406.17188. With mu_GM = argmin_z sum
||z - x_i||, the k steps are those of herding (`herding.py`) to mu_GM, from theta_0 = mu_GM, by inner products, which

    greedily minimise || mu_GM - (1/k) sum of the chosen ||^2.

The authors' code (anishacharya/GM-Matching) differs: it selects within each class, compares by cosine (points and
median are brought to length 1 after the median was computed), and starts at a random point of the class. For many
points the later paper computes mu_GM of a random share gamma, and picks batch by batch.

Legend: N points, D dimensions.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt, Le
from pydantic import PositiveFloat, PositiveInt

from methods.selection.base import Embedded, EmbeddedConfig
from methods.selection.geometric_median import EPS, STEPS, coordinate, floored, weiszfeld
from methods.selection.herding import Similarity, Start, match
from methods.selection.points import Array, Indices, checked

Target = Literal["gm", "mean"]
Solver = Literal["weiszfeld", "floored", "coordinate"]


def select(
    points_ND: Array,
    k: int,
    *,
    target: Target = "gm",
    similarity: Similarity = "inner",
    init: Start = "target",
    batches: int = 1,
    gamma: float = 1.0,
    solver: Solver = "weiszfeld",
    eps: float = EPS,
    steps: int = STEPS,
    random: np.random.Generator | None = None,
) -> Indices:
    """Match the geometric median (or the mean: herding). Returns [k], in the order in which they are picked.

    Args:
        gamma: share of the points, drawn at random, of which the target is computed; at least one.
        solver, eps, steps: of the geometric median (`geometric_median.py`).
        similarity, init, batches, random: `match`'s.

    Raises:
        ValueError: `checked`'s, gamma is not in (0, 1], or batches is not from 1 to k.
    """
    points_ND = checked(points_ND, k)
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma={gamma}: must be greater than 0 and at most 1")
    random = random or np.random.default_rng(0)
    drawn_ND = points_ND
    if gamma < 1:
        drawn_ND = points_ND[random.permutation(len(points_ND))[: max(int(gamma * len(points_ND)), 1)]]
    if target == "mean":
        target_D = drawn_ND.mean(0)
    elif solver == "coordinate":
        target_D = coordinate(drawn_ND)
    else:
        target_D = (weiszfeld if solver == "weiszfeld" else floored)(drawn_ND, eps, steps)
    return match(points_ND, target_D, k, similarity=similarity, init=init, batches=batches, random=random)


@dataclass(frozen=True, kw_only=True)
class GmMatchingConfig(EmbeddedConfig):
    """target: gm or mean (herding). similarity: inner (products), cosine or l2.

    init: theta_0 is the target, the mean or a random point. batches: picked from in turn. gamma: share of the points of
    which the target is computed. solver: weiszfeld (safe at points of the data), floored (a distance of zero counts as
    1e-8) or coordinate (a median of each coordinate). eps: length of the solver's last step; weiszfeld has it in units
    of the points' median distance to the median, where that is less than 1. solver_steps: at most.
    """

    target: Literal["gm", "mean"] = "gm"
    similarity: Literal["inner", "cosine", "l2"] = "inner"
    init: Literal["target", "mean", "random"] = "target"
    batches: PositiveInt = 1
    gamma: Annotated[float, Gt(0.0), Le(1.0)] = 1.0
    solver: Literal["weiszfeld", "floored", "coordinate"] = "weiszfeld"
    eps: PositiveFloat = 1e-5
    solver_steps: PositiveInt = 5000


class GmMatching(Embedded):
    """GM Matching: a subset whose mean herds to the geometric median (arXiv 2504.00564)."""

    config: GmMatchingConfig

    def select(self, seen_N: Array, k: int, random: np.random.Generator) -> Indices:
        """The first k that GM Matching takes."""
        config = self.config
        if config.batches > k:
            raise ValueError(f"method.batches={config.batches}: must be at most the {k} points picked (of a class)")
        return select(
            seen_N, k, target=config.target, similarity=config.similarity, init=config.init, batches=config.batches,
            gamma=config.gamma, solver=config.solver, eps=config.eps, steps=config.solver_steps, random=random,
        )  # fmt: skip
