"""Every mixture: likelihood, responsibilities and gradients against torch, term by term; the M-step; its data."""

import numpy as np
import pytest
from scipy.optimize import minimize

from methods.mixtures import symmetric_linear
from methods.mixtures.mixture import MixtureData, Parameters, gradient
from methods.mixtures.regression import Solver
from tests.methods.mixtures.brute import ALL, Case

EXACT = Solver(ridge=0.0)


def named(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", ALL, ids=named)
def test_loss_and_gradient_are_those_of_the_likelihood_written_out(case: Case) -> None:
    theta = case.parameters()
    loss, slope = case.loss_and_gradient(theta)
    assert case.mixture.nll(theta, case.x, case.y) == pytest.approx(loss, rel=1e-12)
    found = gradient(case.mixture, theta, case.x, case.y)
    np.testing.assert_allclose(found.w, slope.w, atol=1e-13)
    np.testing.assert_allclose(found.beta, slope.beta, atol=1e-13)


@pytest.mark.parametrize("case", ALL, ids=named)
def test_responsibilities_are_bayes_rule(case: Case) -> None:
    theta = case.parameters()
    joint = np.exp(case.joint_logps(theta))
    expected = joint / joint.sum(1, keepdims=True)
    found = case.mixture.responsibilities(theta, case.x, case.y)
    np.testing.assert_allclose(found, expected[:, 0] if found.ndim == 1 else expected, atol=1e-13)


@pytest.mark.parametrize("case", ALL, ids=named)
def test_m_step_minimises_q(case: Case) -> None:
    """Against BFGS on Q written out, from the same start."""
    theta_t = case.parameters()
    r = case.mixture.responsibilities(theta_t, case.x, case.y)
    found, work = case.mixture.m_step(theta_t, r, case.x, case.y, EXACT)
    cut = theta_t.w.size

    def q(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = Parameters(flat[:cut].reshape(theta_t.w.shape), flat[cut:].reshape(theta_t.beta.shape))
        value, slope = case.q_and_gradient(theta, theta_t)
        return value, np.concatenate([part.ravel() for part in slope])

    other = minimize(q, np.concatenate([part.ravel() for part in theta_t]), jac=True, method="BFGS", tol=1e-9)
    value, slope = case.q_and_gradient(found, theta_t)
    assert value == pytest.approx(other.fun, abs=1e-12)
    assert max(np.abs(part).max() for part in slope) < 1e-9
    own = case.mixture.q_gradient(theta_t, r, case.x, case.y)
    for one, two in zip(own, case.q_and_gradient(theta_t, theta_t)[1], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-13)
    assert work.gate >= 1 and work.experts >= 1


@pytest.mark.parametrize("case", ALL, ids=named)
def test_ridge_of_the_m_step_is_that_of_the_gradient(case: Case) -> None:
    theta = case.parameters()
    r = case.mixture.responsibilities(theta, case.x, case.y)
    found, _ = case.mixture.m_step(theta, r, case.x, case.y, Solver(ridge=0.1))
    slope = case.mixture.q_gradient(found, r, case.x, case.y, ridge=0.1)
    assert max(np.abs(part).max() for part in slope) < 1e-9
    without = case.mixture.q_gradient(found, r, case.x, case.y)
    assert np.abs(without.w).max() > 1e-4


@pytest.mark.parametrize("case", ALL, ids=named)
def test_drawn_points_have_the_mean_that_is_predicted_of_them(case: Case) -> None:
    theta = case.parameters()
    x = np.repeat(case.x[:4], 20_000, axis=0)
    y = case.mixture.draw(theta, x, np.random.default_rng(1)).reshape(4, -1)
    predicted = case.mixture.predict(theta, case.x[:4])
    if "linear" in case.name:
        np.testing.assert_allclose(y.mean(1), predicted, atol=6 * y.std(1).max() / np.sqrt(y.shape[1]))
        return
    for drawn, likely in zip(y, predicted, strict=True):
        classes, counts = np.unique(drawn, return_counts=True)
        share = counts / counts.sum()
        assert share[classes == likely] >= share.max() - 0.02


@pytest.mark.parametrize("case", ALL, ids=named)
def test_drawn_points_have_the_likelihood_of_the_mixture(case: Case) -> None:
    """Of classes their shares, of numbers the distribution function: both as the likelihood written out has them."""
    theta = case.parameters()
    y = case.mixture.draw(theta, np.repeat(case.x[:1], 50_000, axis=0), np.random.default_rng(1))
    if "linear" in case.name:
        grid = np.linspace(-25, 25, 20_001)
        density = case.densities(theta, case.x[0], grid)
        assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
        for at in (-1.0, 0.0, 1.5):
            below = np.trapezoid(density[grid <= at], grid[grid <= at])
            assert float((y <= at).mean()) == pytest.approx(below, abs=0.012)
        return
    values = np.unique(y)
    shares = [float((y == one).mean()) for one in values]
    np.testing.assert_allclose(shares, case.densities(theta, case.x[0], values), atol=0.012)


@pytest.mark.parametrize("case", ALL, ids=named)
def test_error_of_the_truth_is_nothing_whatever_the_experts_are_called(case: Case) -> None:
    theta = case.parameters()
    if theta.w.ndim == 1:
        renamed = Parameters(-theta.w, -theta.beta)
    else:
        gates = np.concatenate([theta.w, np.zeros((1, theta.w.shape[1]))])[::-1]
        renamed = Parameters(gates[:-1] - gates[-1], theta.beta[::-1])
    assert case.mixture.nll(renamed, case.x, case.y) == pytest.approx(
        case.mixture.nll(theta, case.x, case.y), rel=1e-12
    )
    assert case.mixture.errors(renamed, theta) == pytest.approx((0, 0), abs=1e-12)
    error = case.mixture.errors(Parameters(theta.w, theta.beta * 1.01), theta)
    assert error.w == pytest.approx(0, abs=1e-12)
    assert error.beta == pytest.approx(0.01)


def test_error_of_a_symmetric_mixture_has_one_sign_for_both() -> None:
    theta = Parameters(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    half = Parameters(-theta.w, theta.beta)  # another mixture: not the truth with the experts renamed
    assert symmetric_linear.errors(half, theta) == pytest.approx((2, 0))


def problem(x: np.ndarray, y: np.ndarray, classes: int = 0) -> MixtureData:
    return MixtureData(symmetric_linear, x, y, Parameters(np.zeros(2), np.zeros(2)), classes=classes)


def test_features_that_are_not_finite_are_refused() -> None:
    x, y = np.ones((4, 2)), np.ones(4)
    for bad in (np.nan, np.inf):
        spoilt = x.copy()
        spoilt[2, 1] = bad
        with pytest.raises(
            ValueError, match=rf"dataset.features={bad}: must be finite, at point \(and feature\) \[2, 1\]"
        ):
            problem(spoilt, y)
    with pytest.raises(ValueError, match=r"dataset.y=nan: must be finite, at point \(and feature\) \[0\]"):
        problem(x, np.array([np.nan, 1, 1, 1]))


def test_fewer_points_than_classes_are_refused() -> None:
    problem(np.ones((4, 2)), np.ones(4), classes=4)
    with pytest.raises(ValueError, match=r"dataset.points=4: must be at least the number of classes, 5"):
        problem(np.ones((4, 2)), np.ones(4), classes=5)
