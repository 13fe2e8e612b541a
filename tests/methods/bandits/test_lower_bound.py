"""The lower bound: its known values, scaling, the closed form of Lai and Robbins, both programs by other means."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from methods.bandits.environment import random_instance
from methods.bandits.lower_bound import gaps, lower_bound

Array = NDArray[np.float64]
INF = np.inf
MEANS = np.array([1, 0.5, 0.2])


def precision(*rows: tuple[float, ...]) -> Array:
    return 1 / np.array(rows, dtype=float) ** 2


REVEALING = precision(*(tuple(1 if i == j else INF for j in range(5)) for i in range(4)), (0.2,) * 5)
BLIND = precision((INF, INF, INF), (INF, 1, INF), (1, 1, 1))


def test_standard_bandit() -> None:
    value, plays = lower_bound(MEANS, np.eye(3))
    assert value == pytest.approx(2 / 0.5 + 2 / 0.8) == pytest.approx(6.5)
    np.testing.assert_allclose(plays, [8, 8, 3.125])


def test_full_feedback_costs_nothing() -> None:
    assert lower_bound(MEANS, np.ones((3, 3))).value == 0


def test_an_arm_that_tells_about_another() -> None:
    value, plays = lower_bound(MEANS, precision((1, INF, INF), (INF, 1, 1), (INF, INF, 1)))
    assert value == pytest.approx(4)
    np.testing.assert_allclose(plays[1:], [8, 0], atol=1e-9)


def test_a_poor_arm_that_tells_about_all() -> None:
    means = np.array([0.5, 0.4, 0.4, 0.4, 0])
    value, plays = lower_bound(means, REVEALING)
    assert value == pytest.approx(4)
    np.testing.assert_allclose(plays[1:], [0, 0, 0, 8], atol=1e-9)
    assert lower_bound(means[:4], REVEALING[:4, :4]).value == pytest.approx(60)


def test_a_best_arm_that_tells_nothing_about_itself() -> None:
    means = np.array([1, 0.5, 0])
    value, plays = lower_bound(means, BLIND)
    assert value == pytest.approx(8)
    np.testing.assert_allclose(plays, [0, 0, 8], atol=1e-9)
    value, plays = lower_bound(means, BLIND, "joint")  # I_1 = I_2 = 16
    assert value == pytest.approx(16, rel=1e-6)
    np.testing.assert_allclose(plays @ BLIND, [16, 16, 16], rtol=1e-4)


@pytest.mark.parametrize("constraint", ["lp", "joint"])
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_scaling(constraint: str, factor: float) -> None:
    means = np.array([1, 0.5, 0])
    plain = lower_bound(means, BLIND, constraint).value
    scaled = BLIND / factor**2  # sigma times factor
    assert lower_bound(means, scaled, constraint).value == pytest.approx(factor**2 * plain, rel=1e-6)
    assert lower_bound(factor * means, scaled, constraint).value == pytest.approx(factor * plain, rel=1e-6)


@pytest.mark.parametrize("arms", [2, 5, 12])
def test_without_side_information_it_is_that_of_lai_and_robbins(arms: int) -> None:
    random = np.random.default_rng(arms)
    means, variance = random.normal(size=arms), random.uniform(0.3, 3, arms)
    gap = means.max() - means
    closed_form = sum(2 * v / d for v, d in zip(variance, gap, strict=True) if d > 0)
    for constraint in ("lp", "joint"):
        assert lower_bound(means, np.diag(1 / variance), constraint).value == pytest.approx(closed_form)


def by_vertices(means: Array, precision_KK: Array) -> float:
    """The LP's value as the best of all feasible vertices: K of the 2K constraints hold with equality."""
    gaps_1K, best = gaps(means[None])
    costs, arms = gaps_1K[0].copy(), len(means)
    costs[best] = 0
    left = np.vstack([precision_KK.T, np.eye(arms)])
    right = np.concatenate([2 / gaps_1K[0] ** 2, np.zeros(arms)])
    values = []
    for chosen in map(list, itertools.combinations(range(2 * arms), arms)):
        if abs(np.linalg.det(left[chosen])) > 1e-9:
            plays = np.linalg.solve(left[chosen], right[chosen])
            if (left @ plays >= right - 1e-7 * (1 + right)).all():
                values.append(float(costs @ plays))
    return min(values)


@pytest.mark.parametrize("seed", range(6))
def test_lp_is_the_best_of_its_vertices(seed: int) -> None:
    random = np.random.default_rng(seed)
    means, precision_KK = random_instance(5, 0.4, 0.2, 1.0, random)
    if seed % 2:  # some do not tell about themselves, but are told about
        precision_KK[[0, 1], [0, 1]] = 0
        precision_KK[2, [0, 1]] = 0.7
    assert lower_bound(means, precision_KK).value == pytest.approx(by_vertices(means, precision_KK), rel=1e-6)


def by_slsqp(means: Array, precision_KK: Array) -> float:
    """The joint program by a general method, which comes close where the best arm's plays grow without limit."""
    gaps_1K, best_1 = gaps(means[None])
    gap, best = gaps_1K[0], int(best_1[0])
    others = np.arange(len(means)) != best
    costs = np.where(others, gap, 0)

    def slack(plays: Array) -> Any:
        spread = 1 / np.maximum(plays @ precision_KK, 1e-9)
        return 1 - (spread[others] + spread[best]) * 2 / gap[others] ** 2

    found = [
        minimize(lambda plays: costs @ plays, start * np.ones(len(means)), bounds=[(0, None)] * len(means),
                 constraints={"type": "ineq", "fun": slack}, method="SLSQP", options={"maxiter": 2000, "ftol": 1e-12})
        for start in (10.0, 30.0, 100.0)
    ]  # fmt: skip
    return min(float(each.fun) for each in found if slack(each.x).min() > -1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_joint_program_by_another_method_and_within_a_factor_of_two(seed: int) -> None:
    random = np.random.default_rng(seed)
    means, precision_KK = random_instance(4, 0.5, 0.3, 1.0, random)
    best = int(means.argmax())
    precision_KK[best, best] = 0
    precision_KK[(best + 1) % 4, best] = 1.3
    relaxed, exact = (lower_bound(means, precision_KK, constraint).value for constraint in ("lp", "joint"))
    assert exact == pytest.approx(by_slsqp(means, precision_KK), rel=5e-4)
    assert relaxed < exact <= 2 * relaxed * (1 + 1e-6)


def test_gaps() -> None:
    found, best = gaps(np.array([[0.5, 0.2, 0.4], [0.3, 0.3, 0.0]]), floor=0.01)
    np.testing.assert_allclose(found, [[0.1, 0.3, 0.1], [0.01, 0.01, 0.3]])
    assert best.tolist() == [0, 0]


def test_what_has_no_bound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset.means=\[1.0, 1.0, 0.0\]: must have one best arm"):
        lower_bound(np.array([1.0, 1.0, 0.0]), np.eye(3))
    with pytest.raises(ValueError, match=r"dataset\.sigma: some arm must tell about arm 2"):
        lower_bound(np.array([1.0, 0.5, 0.0]), np.diag([1.0, 1.0, 0.0]))
