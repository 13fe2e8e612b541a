"""K experts with a softmax gate: ties, the gate's shift, equality with the symmetric mixture, the naming of experts."""

from itertools import permutations

import numpy as np
import pytest
from scipy.special import logsumexp

from methods.mixtures import symmetric_linear
from methods.mixtures.general import (
    LinearExperts,
    LogisticExperts,
    MixtureOfExperts,
    SoftmaxExperts,
    all_gates,
    best_naming,
    gate_logps,
)
from methods.mixtures.mixture import Parameters, gradient
from methods.mixtures.regression import Solver

SHAPES: list[tuple[MixtureOfExperts, tuple[int, ...]]] = [
    (LinearExperts(), (3, 2)),
    (LogisticExperts(), (3, 2)),
    (SoftmaxExperts(), (3, 4, 2)),
]


def points(
    mixture: MixtureOfExperts, shape: tuple[int, ...], count: int = 80
) -> tuple[Parameters, np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    theta = Parameters(random.standard_normal((2, 2)), random.standard_normal(shape))
    x = random.standard_normal((count, 2))
    return theta, x, mixture.draw(theta, x, random)


@pytest.mark.parametrize(("mixture", "shape"), SHAPES)
def test_equal_experts_stay_equal(mixture: MixtureOfExperts, shape: tuple[int, ...]) -> None:
    """EM cannot break the tie: gates stay 0, and from the second step on nothing moves."""
    _, x, y = points(mixture, shape)
    theta = Parameters(np.zeros((2, 2)), np.broadcast_to(np.full(shape[1:], 0.3), shape).copy())
    for step in range(2):
        r = mixture.responsibilities(theta, x, y)
        np.testing.assert_allclose(r, 1 / 3, atol=1e-9)
        before, (theta, _) = theta, mixture.m_step(theta, r, x, y, Solver())
        np.testing.assert_allclose(theta.w, 0, atol=1e-8)
        np.testing.assert_allclose(theta.beta, np.broadcast_to(theta.beta[0], shape), atol=1e-8)
        if step:
            np.testing.assert_allclose(theta.beta, before.beta, atol=1e-7)
    assert np.abs(theta.beta - 0.3).max() > 0.01  # it did move before


def test_gate_is_a_softmax_whose_last_logit_is_nothing() -> None:
    w, x = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.5, 1.0]])
    logits = np.array([0.5, 2.0, 0.0])
    np.testing.assert_allclose(np.exp(gate_logps(w, x))[0], np.exp(logits) / np.exp(logits).sum(), rtol=1e-14)
    np.testing.assert_allclose(all_gates(w).sum(0), 0, atol=1e-15)


def test_naming_is_the_best_of_all() -> None:
    random = np.random.default_rng(1)
    truth, own = (Parameters(random.standard_normal((3, 2)), random.standard_normal((4, 2))) for _ in range(2))

    def distance(naming: tuple[int, ...]) -> float:
        order = list(naming)
        gates = all_gates(own.w)[order] - all_gates(truth.w)
        return float((gates**2).sum() + ((own.beta[order] - truth.beta) ** 2).sum())

    assert distance(tuple(best_naming(own, truth))) == min(distance(one) for one in permutations(range(4)))


def test_two_opposite_linear_experts_are_the_symmetric_mixture() -> None:
    random = np.random.default_rng(3)
    w, beta, x, y = random.standard_normal(2), random.standard_normal(2), random.standard_normal((9, 2)), np.ones(9)
    general, symmetric = Parameters(w[None], np.stack([beta, -beta])), Parameters(w, beta)
    assert LinearExperts().nll(general, x, y) == pytest.approx(symmetric_linear.nll(symmetric, x, y), rel=1e-14)
    own, other = gradient(LinearExperts(), general, x, y), gradient(symmetric_linear, symmetric, x, y)
    np.testing.assert_allclose(own.w[0], other.w, atol=1e-15)
    np.testing.assert_allclose(own.beta[0] - own.beta[1], other.beta, atol=1e-14)


def test_logistic_experts_are_softmax_experts_of_two_classes() -> None:
    theta, x, y = points(*SHAPES[1])
    softmax = Parameters(theta.w, np.stack([np.zeros_like(theta.beta), theta.beta], axis=1))
    assert LogisticExperts().nll(theta, x, y) == pytest.approx(SoftmaxExperts().nll(softmax, x, y), rel=1e-13)
    assert np.array_equal(LogisticExperts().predict(theta, x), SoftmaxExperts().predict(softmax, x))


def test_one_feature_and_many_experts() -> None:
    random = np.random.default_rng(3)
    theta = Parameters(random.standard_normal((5, 1)), random.standard_normal((6, 1)))
    x, y = random.standard_normal((50, 1)), random.standard_normal(50)
    after, _ = LinearExperts().m_step(theta, LinearExperts().responsibilities(theta, x, y), x, y, Solver())
    assert LinearExperts().nll(after, x, y) < LinearExperts().nll(theta, x, y)


def test_em_step_is_projected_mirror_descent_in_the_parameters_of_each_point() -> None:
    """Logistic experts: with a_k, b_k the natural parameters of (1[z = k], y 1[z = k]) given one x, what mirror descent
    of unit step minimises, <grad L, eta - eta_t> + D_A(eta, eta_t) is Q(theta | theta_t) plus a constant.
    """
    mixture = LogisticExperts()
    theta_t, x, y = points(mixture, (3, 2))

    def natural(theta: Parameters) -> np.ndarray:
        """[N, 2, K]: a, b; A is the log of their normaliser."""
        slope = x @ theta.beta.T
        gate = np.concatenate([x @ theta.w.T, np.zeros((len(x), 1))], axis=1)
        return np.stack([gate - np.logaddexp(0, slope), slope], axis=1)

    def normaliser(eta: np.ndarray) -> np.ndarray:
        return np.asarray(logsumexp(eta[:, 0] + np.logaddexp(0, eta[:, 1]), axis=1))

    def moments(eta: np.ndarray, y_known: bool) -> np.ndarray:
        """Means of 1[z = k] and y 1[z = k], of the complete model or with y known."""
        chance = 1 / (1 + np.exp(-eta[:, 1]))
        if y_known:
            p = np.exp(eta[:, 0] + y[:, None] * eta[:, 1])
            p /= p.sum(1, keepdims=True)
            return np.stack([p, y[:, None] * p], axis=1)
        p = np.exp(eta[:, 0] + np.logaddexp(0, eta[:, 1]) - normaliser(eta)[:, None])
        return np.stack([p, chance * p], axis=1)

    eta_t = natural(theta_t)
    slope = moments(eta_t, False) - moments(eta_t, True)  # of L = A - log sum_k exp(a_k + y b_k), point by point

    def mirror_descent(theta: Parameters) -> float:
        eta = natural(theta)
        step = ((slope - moments(eta_t, False)) * (eta - eta_t)).sum((1, 2)) + normaliser(eta) - normaliser(eta_t)
        return float(step.mean())

    r = mixture.responsibilities(theta_t, x, y)

    def q(theta: Parameters) -> float:
        return float(-(r * mixture.joint_logps(theta, x, y)).sum(1).mean())

    random = np.random.default_rng(8)
    others = [Parameters(random.standard_normal((2, 2)), random.standard_normal((3, 2))) for _ in range(5)]
    np.testing.assert_allclose([mirror_descent(one) - q(one) for one in others], -q(theta_t), atol=1e-12)
    after, _ = mixture.m_step(theta_t, r, x, y, Solver(ridge=0.0))
    for part in range(2):  # and so its minimiser is EM's
        for index in np.ndindex(after[part].shape):
            ends = []
            for sign in (1, -1):
                moved = Parameters(after.w.copy(), after.beta.copy())
                moved[part][index] += sign * 1e-4
                ends.append(mirror_descent(moved))
            assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(0, abs=1e-8)
            assert min(ends) > mirror_descent(after)


def test_singular_regression_says_whose_it_is() -> None:
    theta, x, y = points(*SHAPES[0])
    r = np.zeros((80, 3))
    r[:, 0], r[0, 0], r[0, 2] = 1, 0, 1
    with pytest.raises(ValueError, match="the least squares of expert 1 must be invertible, got features of rank 0 "):
        LinearExperts().m_step(theta, r, x, y, Solver())


def test_a_shift_of_all_classes_of_an_expert_is_no_error() -> None:
    random = np.random.default_rng(0)
    truth = Parameters(random.standard_normal((1, 4)), random.standard_normal((2, 3, 4)))
    shifted = Parameters(truth.w, truth.beta + random.standard_normal((2, 1, 4)))
    x = random.standard_normal((50, 4))
    y = SoftmaxExperts().draw(truth, x, random)
    assert SoftmaxExperts().nll(shifted, x, y) == pytest.approx(SoftmaxExperts().nll(truth, x, y), rel=1e-12)
    assert SoftmaxExperts().errors(shifted, truth).beta == pytest.approx(0, abs=1e-12)
    assert SoftmaxExperts().errors(Parameters(truth.w, truth.beta * 1.1), truth).beta == pytest.approx(0.1)
