"""The programs of many estimates at once, against HiGHS on each of them."""

import numpy as np
import pytest

from methods.bandits import allocation
from methods.bandits.allocation import allocations
from methods.bandits.environment import random_instance
from methods.bandits.lower_bound import gaps, lower_bound


@pytest.mark.parametrize("patience", [10, 0])  # 0: Bland's rule from the start
@pytest.mark.parametrize("arms", [2, 4, 9, 16])
def test_linear_programs_are_those_of_highs(arms: int, patience: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "_PATIENCE", patience)
    random = np.random.default_rng(arms)
    for blind in (0, arms // 2):
        means, precision_KK = random_instance(arms, 0.3, 0.2, 1.0, random)
        precision_KK[range(blind), range(blind)] = 0  # they tell nothing about themselves, but are told about
        precision_KK[-1, :blind] = 0.5
        means_UK = means + 0.3 * random.standard_normal((8, arms))
        found_UK = allocations(*gaps(means_UK), precision_KK)
        for each, plays in zip(means_UK, found_UK, strict=True):
            value, plays_K = lower_bound(each, precision_KK)
            np.testing.assert_allclose(plays, plays_K, rtol=1e-8, atol=1e-8 * plays_K.max())
            assert (each.max() - each) @ plays == pytest.approx(value, rel=1e-10)


def test_gaps_far_apart() -> None:
    means_UK = np.array([[1.0, 1.0 - 1e-3, 0.0], [1e-3, 0.0, 1.0]])
    found_UK = allocations(*gaps(means_UK), np.diag([1e-4, 1.0, 1e4]))
    for each, plays in zip(means_UK, found_UK, strict=True):
        np.testing.assert_allclose(plays, lower_bound(each, np.diag([1e-4, 1.0, 1e4])).plays_K, rtol=1e-9)


def test_equal_gaps_are_no_obstacle() -> None:
    found_1K = allocations(*gaps(np.array([[1.0, 0.5, 0.5, 0.5, 0.5]])), np.ones((5, 5)) - np.eye(5))
    assert found_1K[0] @ [0, 0.5, 0.5, 0.5, 0.5] == pytest.approx(0.5 * 2 / 0.5**2)  # one play tells about the best


@pytest.mark.parametrize("arms", [3, 6])
def test_joint_programs_are_those_of_the_lower_bound(arms: int) -> None:
    random = np.random.default_rng(arms)
    means, precision_KK = random_instance(arms, 0.5, 0.3, 1.0, random)
    best = int(means.argmax())
    precision_KK[best, best] = 0
    precision_KK[(best + 1) % arms, best] = 1.3
    means_UK = means + 0.03 * random.standard_normal((3, arms))
    found_UK = allocations(*gaps(means_UK), precision_KK, "joint")
    for each, plays in zip(means_UK, found_UK, strict=True):
        assert (each.max() - each) @ plays == pytest.approx(lower_bound(each, precision_KK, "joint").value, rel=1e-6)


def test_both_programs_are_one_where_the_best_arm_tells_about_itself() -> None:
    means_UK = np.random.default_rng(3).normal(size=(5, 4))
    args = (*gaps(means_UK), np.eye(4) + 0.2)
    np.testing.assert_array_equal(allocations(*args, "joint"), allocations(*args, "lp"))
