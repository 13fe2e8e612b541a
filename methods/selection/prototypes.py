"""Self-supervised selection: k-means without labels, then the points that are furthest from their centroid.

Sorscher et al.: "Beyond neural scaling laws: beating power law scaling via data pruning", NeurIPS 2022, arXiv
2206.14486. The score of a point is its distance to the nearest of the centroids, its prototype; the hard ones are kept.
The paper's embedding is a self-supervised network's; whatever embedding is given is used here.

Legend: N points, D dimensions, C centroids.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import PositiveInt

from methods.selection.base import Embedded, EmbeddedConfig
from methods.selection.points import Array, Indices, checked, distances


def select(points_ND: Array, k: int, *, clusters: int, random: np.random.Generator | None = None) -> Indices:
    """The k points furthest from the nearest of C centroids (k-means++, then Lloyd's iteration). Returns [k].

    Raises:
        ValueError: `checked`'s, or clusters is not from 1 to N.
    """
    from scipy.cluster.vq import kmeans2

    points_ND = checked(points_ND, k)
    if not 1 <= clusters <= len(points_ND):
        raise ValueError(f"clusters={clusters}: must be from 1 to {len(points_ND)}, the number of points")
    random = random or np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of clusters that equal points leave empty: they stay where they are
        centroid_CD, _ = kmeans2(points_ND, clusters, iter=50, minit="++", missing="warn", rng=random)
    score_N = np.min([distances(points_ND, centroid_D) for centroid_D in centroid_CD], axis=0)
    return np.argsort(-score_N, kind="stable")[:k]


@dataclass(frozen=True, kw_only=True)
class PrototypesConfig(EmbeddedConfig):
    """clusters: of k-means, at most as many as there are points (of a class)."""

    per_class: bool = False
    embedding: Literal["penultimate", "pca", "logits", "pixels"] = "pixels"
    clusters: PositiveInt = 10


class Prototypes(Embedded):
    """Self-supervised selection: the points furthest from the centroids of k-means (arXiv 2206.14486)."""

    config: PrototypesConfig

    def select(self, seen_N: Array, k: int, random: np.random.Generator) -> Indices:
        """By clusters of what is seen."""
        if self.config.clusters > len(seen_N):
            raise ValueError(
                f"method.clusters={self.config.clusters}: must be at most the {len(seen_N)} points there are"
            )
        return select(seen_N, k, clusters=self.config.clusters, random=random)
