"""SymMoLinE: numbers worked out by hand, its symmetry, EM as mirror descent, its information."""

import numpy as np
import pytest
from scipy.special import expit

from methods.mixtures import symmetric_linear
from methods.mixtures.mixture import Parameters, gradient
from methods.mixtures.regression import Solver

X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])
Y = np.array([1.0, -1.0, 2.0, 0.5])
THETA = Parameters(np.array([0.5, -0.5]), np.array([1.0, 0.2]))


def test_known_numbers() -> None:
    r = symmetric_linear.responsibilities(THETA, X, Y)
    np.testing.assert_allclose(r, [0.92414182, 0.28905050, 0.99183743, 0.14185106], atol=5e-9)
    assert symmetric_linear.nll(THETA, X, Y) == pytest.approx(1.43352492, abs=5e-9)
    slope = gradient(symmetric_linear, THETA, X, Y)
    np.testing.assert_allclose(slope.w, [-0.23015257, -0.06906423], atol=5e-9)
    np.testing.assert_allclose(slope.beta, [-0.04344557, -0.35777495], atol=5e-9)
    after, _ = symmetric_linear.m_step(THETA, r, X, Y, Solver(ridge=0.0))
    np.testing.assert_allclose(after.beta, [1.05792743, 0.67703326], atol=5e-9)
    np.testing.assert_allclose(after.w, [2.51934558, -0.19931545], atol=5e-9)


def test_the_tiny_ridge_changes_the_step_by_less_than_1e_6() -> None:
    r = symmetric_linear.responsibilities(THETA, X, Y)
    after, _ = symmetric_linear.m_step(THETA, r, X, Y, Solver())
    np.testing.assert_allclose(after.w, [2.51934558, -0.19931545], atol=1e-6)


def test_experts_can_be_renamed() -> None:
    flipped = Parameters(-THETA.w, -THETA.beta)
    assert symmetric_linear.nll(flipped, X, Y) == pytest.approx(symmetric_linear.nll(THETA, X, Y), rel=1e-15)
    r, other = (symmetric_linear.responsibilities(theta, X, Y) for theta in (THETA, flipped))
    np.testing.assert_allclose(r + other, 1, atol=1e-15)


def test_divergence_of_the_mirror_map_is_kl_of_the_complete_model() -> None:
    """KL(p_phi(y, z | x) || p_theta(y, z | x)): that of two Bernoulli variables, and of two Gaussians of unit noise."""
    random = np.random.default_rng(2)
    theta, phi = (Parameters(*random.standard_normal((2, 2))) for _ in range(2))
    slope = symmetric_linear.mirror_gradient(phi, X)
    divergence = symmetric_linear.mirror_map(theta, X) - symmetric_linear.mirror_map(phi, X)
    divergence -= float(slope.w @ (theta.w - phi.w) + slope.beta @ (theta.beta - phi.beta))
    s, t = expit(X @ phi.w), expit(X @ theta.w)
    kl = s * np.log(s / t) + (1 - s) * np.log((1 - s) / (1 - t)) + (X @ (phi.beta - theta.beta)) ** 2 / 2
    assert divergence == pytest.approx(float(kl.mean()), rel=1e-12)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="the least squares of the expert must be invertible, got features of rank 1 "):
        symmetric_linear.m_step(THETA, np.array([0.5]), X[:1], Y[:1], Solver())
