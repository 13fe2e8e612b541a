"""Squared MMD: two points against two by hand, brute force, invariances, what it finds between known distributions."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.representation import mmd
from methods.representation.mmd import squared_mmd

CODES = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
SAMPLES = torch.tensor([[0.0, 1.0], [2.0, 2.0]], dtype=torch.float64)


def test_two_points_against_two() -> None:
    assert float(squared_mmd(CODES, SAMPLES, sigma=1.0)) == pytest.approx(2.2244045, abs=5e-8)
    assert float(mmd.median_distance(CODES, SAMPLES)) == pytest.approx(1.8251408, abs=5e-8)
    assert float(squared_mmd(CODES, SAMPLES)) == pytest.approx(1.4904213, abs=5e-8)


def drawn(seed: int, count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("m", "n"), [(5, 5), (4, 7), (6, 3)])
@pytest.mark.parametrize("biased", [True, False])
def test_both_estimators_are_their_double_sums(m: int, n: int, biased: bool) -> None:
    z, w = drawn(0, m, 3).numpy(), drawn(1, n, 3).numpy() + 0.5
    pooled = np.concatenate([z, w])
    sigma = float(np.median([np.linalg.norm(a - b) for a, b in itertools.combinations(pooled, 2)]))

    def k(a: np.ndarray, b: np.ndarray) -> float:
        square = float(((a - b) ** 2).sum())
        return sum(math.exp(-square / (2 * (c * sigma) ** 2)) for c in (0.5, 1.0, 2.0))

    def within(points: np.ndarray) -> float:
        size = len(points)
        total = sum(k(points[i], points[j]) for i in range(size) for j in range(size) if biased or i != j)
        return total / (size * size if biased else size * (size - 1))

    across = sum(k(a, b) for a in z for b in w) / (m * n)
    found = squared_mmd(torch.from_numpy(z), torch.from_numpy(w), biased=biased)
    assert float(found) == pytest.approx(within(z) + within(w) - 2 * across, abs=1e-12)


def test_limits_and_invariances() -> None:
    z, w = drawn(0, 20, 4), drawn(1, 20, 4) * 2
    value = float(squared_mmd(z, w))
    assert float(squared_mmd(z, z.clone())) == pytest.approx(0, abs=1e-12)
    assert float(squared_mmd(w, z)) == pytest.approx(value) and value > 0
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    assert float(squared_mmd(z[order], w)) == pytest.approx(value)
    # Moved, turned and scaled together: the median scales along.
    turn, _ = torch.linalg.qr(drawn(3, 4, 4))
    assert float(squared_mmd(7 + 3 * z @ turn, 7 + 3 * w @ turn)) == pytest.approx(value)


def test_unbiased_estimate_can_be_negative_and_the_biased_one_cannot() -> None:
    pairs = [(drawn(seed, 10, 2), drawn(seed + 100, 10, 2)) for seed in range(20)]
    assert min(float(squared_mmd(z, w, biased=False)) for z, w in pairs) < 0
    assert min(float(squared_mmd(z, w)) for z, w in pairs) > 0
    assert np.mean([float(squared_mmd(z, w, biased=False)) for z, w in pairs]) == pytest.approx(0, abs=0.05)


def test_no_gradient_goes_through_the_median() -> None:
    z, w = drawn(0, 8, 2).requires_grad_(), drawn(1, 8, 2)
    (free,) = torch.autograd.grad(squared_mmd(z, w), z)
    (fixed,) = torch.autograd.grad(squared_mmd(z, w, sigma=float(mmd.median_distance(z, w))), z)
    torch.testing.assert_close(free, fixed)
    assert torch.autograd.gradcheck(lambda codes: squared_mmd(codes, w, sigma=1.3), (z,))


@pytest.mark.parametrize(("count", "width"), [(3, 2), (4, 2), (6, 3), (7, 3)])
def test_median_of_even_and_odd_numbers_of_pairs(count: int, width: int) -> None:
    z, w = drawn(0, count, width), drawn(1, count + 1, width)
    every = [float((a - b).norm()) for a, b in itertools.combinations(torch.cat([z, w]), 2)]
    assert float(mmd.median_distance(z, w)) == pytest.approx(float(np.median(every)))


# Means over draws of 512 points each, as the paper's batch: the floor of the biased estimator, half the scale, and a
# uniform of the same variance, which in many dimensions is not told from the Gaussian.
POPULATIONS = {
    2: (0.0051, 0.242, 0.0164),
    12: (0.0053, 0.277, 0.0053),
    64: (0.0054, 0.281, 0.0054),
}
# Standard deviations of one draw: at the floor, and of the uniform.
SPREADS = {2: (0.003, 0.005), 12: (0.001, 0.001), 64: (0.0005, 0.0005)}
DRAWS = 8


@pytest.mark.parametrize("width", POPULATIONS)
def test_what_it_finds_between_known_distributions(width: int) -> None:
    random = torch.Generator().manual_seed(0)

    def mean(codes) -> float:
        found = [squared_mmd(codes(), torch.randn(512, width, generator=random)) for _ in range(DRAWS)]
        return float(torch.stack(found).mean())

    same, half, uniform = POPULATIONS[width]
    floor_allowed, uniform_allowed = (2.5 * spread / math.sqrt(DRAWS) for spread in SPREADS[width])
    assert mean(lambda: torch.randn(512, width, generator=random)) == pytest.approx(same, abs=floor_allowed)
    assert mean(lambda: torch.randn(512, width, generator=random) / 2) == pytest.approx(half, rel=0.05)
    side = math.sqrt(12)
    found = mean(lambda: side * (torch.rand(512, width, generator=random) - 0.5))
    assert found == pytest.approx(uniform, abs=uniform_allowed)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: squared_mmd(CODES, SAMPLES[:, :1]), "codes and samples must be of one width"),
        (lambda: squared_mmd(CODES[:1], SAMPLES, biased=False), "needs at least 2 of each, got 1 codes"),
        (lambda: squared_mmd(CODES[:0], SAMPLES), "needs at least 1 of each, got 0 codes"),
        (lambda: squared_mmd(torch.zeros(3, 2), torch.zeros(3, 2)), "the median distance .* must be > 0, got 0.0"),
        (lambda: mmd.median_distance(CODES[:1], SAMPLES[:0]), "needs at least two points, got 1"),
    ],
)
def test_what_has_no_mmd_is_refused(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
