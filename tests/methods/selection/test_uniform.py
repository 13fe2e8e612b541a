"""Random points: any of them, and those of a smaller choice among those of a larger one."""

import numpy as np

from methods.selection import uniform


def test_every_point_as_often() -> None:
    random = np.random.default_rng(0)
    counted = np.bincount(np.concatenate([uniform.select(10, 3, random) for _ in range(4000)]))
    np.testing.assert_allclose(counted / 4000, 0.3, atol=0.03)


def test_a_smaller_choice_is_part_of_a_larger_one() -> None:
    small, large = (uniform.select(50, k, np.random.default_rng(1)).tolist() for k in (5, 20))
    assert large[:5] == small
