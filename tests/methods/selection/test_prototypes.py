"""Self-supervised selection: the points furthest from the centroids of clusters that are plain to see."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from methods.selection import prototypes
from methods.selection.prototypes import Prototypes, PrototypesConfig


def test_the_furthest_of_three_clusters() -> None:
    random = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    points = np.repeat(centres, 30, axis=0) + random.standard_normal((90, 2))
    chosen = prototypes.select(points, 10, clusters=3, random=random)
    own = KMeans(3, n_init=5, random_state=0).fit(points).transform(points).min(1)
    assert chosen.tolist() == np.argsort(-own)[:10].tolist()


def test_one_cluster_is_the_mean() -> None:
    points = np.random.default_rng(1).standard_normal((40, 3))
    away = np.linalg.norm(points - points.mean(0), axis=1)
    assert prototypes.select(points, 5, clusters=1).tolist() == np.argsort(-away)[:5].tolist()


def test_more_clusters_than_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^clusters=6: must be from 1 to 5, the number of points$"):
        prototypes.select(np.zeros((5, 2)), 2, clusters=6)
    with pytest.raises(ValueError, match=r"^method.clusters=6: must be at most the 5 points there are$"):
        Prototypes(PrototypesConfig(clusters=6)).select(np.zeros((5, 2)), 2, np.random.default_rng(0))
