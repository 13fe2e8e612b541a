"""Coverage-centric core-set selection: drop the hardest, then take as many points of every stretch of difficulty.

Zheng et al.: "Coverage-centric Coreset Selection for High Pruning Rates", ICLR 2023, arXiv 2210.15809. The share
`cutoff` (the paper's beta) with the highest scores is dropped; the range of what is left is cut into strata of equal
width; the budget is given out from the smallest stratum on, to each an equal part of what is left, or all that it
holds. An extra: no table of GM Matching has it.

Legend: N points, S strata.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Lt
from pydantic import PositiveInt

from methods.selection.points import Array, Indices, check_count
from methods.selection.scores import Scored, ScoredConfig


def select(scores_N: Array, k: int, *, cutoff: float, strata: int, random: np.random.Generator) -> Indices:
    """k points over all difficulties but the highest. Returns [k].

    Raises:
        ValueError: a score is not finite, k is not from 1 to N, cutoff is not in [0, 1) or leaves fewer than k.
    """
    check_count(len(scores_N), k)
    if not np.isfinite(scores_N).all():
        raise ValueError(f"scores: must be finite, got {scores_N[~np.isfinite(scores_N)][0]}")
    if not 0 <= cutoff < 1:
        raise ValueError(f"cutoff={cutoff}: must be at least 0 and less than 1")
    left_M = np.argsort(scores_N, kind="stable")[: len(scores_N) - int(cutoff * len(scores_N))]
    if len(left_M) < k:
        raise ValueError(f"cutoff={cutoff}: must leave at least the {k} points to choose, got {len(left_M)}")
    edges = np.linspace(scores_N[left_M[0]], scores_N[left_M[-1]], strata + 1)
    stratum_M = np.clip(np.searchsorted(edges, scores_N[left_M], side="right") - 1, 0, strata - 1)
    members = sorted((left_M[stratum_M == each] for each in np.unique(stratum_M)), key=len)
    picks: list[Indices] = []
    budget = k
    for number, member_S in enumerate(members):
        share = min(budget // (len(members) - number), len(member_S))
        picks.append(random.permutation(member_S)[:share])
        budget -= share
    return np.concatenate(picks)


@dataclass(frozen=True, kw_only=True)
class CcsConfig(ScoredConfig):
    """cutoff: share of the hardest that is dropped. strata: of equal width."""

    cutoff: Annotated[float, Ge(0.0), Lt(1.0)] = 0.3
    strata: PositiveInt = 50


class Ccs(Scored):
    """Coverage-centric selection: all difficulties but the highest (arXiv 2210.15809)."""

    config: CcsConfig

    def select(self, seen_N: Array, k: int, random: np.random.Generator) -> Indices:
        """By strata of the scores."""
        left = len(seen_N) - int(self.config.cutoff * len(seen_N))
        if left < k:
            raise ValueError(f"method.cutoff={self.config.cutoff}: must leave the {k} points to choose, got {left}")
        return select(seen_N, k, cutoff=self.config.cutoff, strata=self.config.strata, random=random)
