"""Selection within classes: quotas, and that a selector sees one class at a time."""

import numpy as np
import pytest

from methods.selection import class_wise, distance


@pytest.mark.parametrize(
    ("sizes", "k", "expected"),
    [
        ([10, 10, 10], 9, [3, 3, 3]),
        ([10, 10, 10], 11, [4, 4, 3]),  # what is left over goes to the first
        ([2, 10, 10], 12, [2, 5, 5]),  # what a small class lacks, to the others
        ([1, 10, 3], 11, [1, 7, 3]),
        ([4, 0, 4], 3, [2, 0, 1]),  # an empty class has no quota
        ([5, 6, 7], 18, [5, 6, 7]),
        ([1, 1, 1], 3, [1, 1, 1]),
    ],
)
def test_quotas(sizes: list[int], k: int, expected: list[int]) -> None:
    assert class_wise.quotas(np.array(sizes), k).tolist() == expected


def test_quotas_always_add_up() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        sizes = random.integers(0, 9, 6)
        classes, total = int((sizes > 0).sum()), int(sizes.sum())
        for k in range(max(classes, 1), total + 1):
            quota = class_wise.quotas(sizes, k)
            assert quota.sum() == k and (quota <= sizes).all() and (quota[sizes > 0] >= 1).all()


def test_fewer_points_than_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^k=2: must be at least one for each of the 3 classes$"):
        class_wise.quotas(np.array([5, 5, 0, 5]), 2)
    with pytest.raises(ValueError, match=r"^k=16: must be from 1 to 15, the number of points$"):
        class_wise.quotas(np.array([5, 5, 0, 5]), 16)


def test_each_class_has_a_centre_of_its_own() -> None:
    points = np.concatenate([np.arange(5.0), 100 + np.arange(5.0)])[:, None]
    labels = np.array([0, 0, 0, 0, 0, 2, 2, 2, 2, 2])
    chosen = class_wise.select(labels, 2, lambda members, k: distance.select(points[members], k, which="easy"))
    assert chosen.tolist() == [2, 7]
    assert sorted(distance.select(points, 2, which="easy").tolist()) == [4, 5]
