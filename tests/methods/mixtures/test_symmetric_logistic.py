"""SymMoLogE: a value by hand, its symmetry, its divergence as the KL of the complete model."""

import math

import numpy as np
import pytest
from scipy.special import expit

from methods.mixtures import symmetric_logistic
from methods.mixtures.mixture import Parameters
from methods.mixtures.regression import Solver

X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])
Y = np.array([1.0, -1.0, -1.0, 1.0])
THETA = Parameters(np.array([0.5, -0.5]), np.array([1.0, 0.2]))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_first_point_by_hand() -> None:
    p = sigmoid(0.5) * sigmoid(1.0) + sigmoid(-0.5) * sigmoid(-1.0)
    assert symmetric_logistic.nll(THETA, X[:1], Y[:1]) == pytest.approx(-math.log(p), rel=1e-14)
    r = symmetric_logistic.responsibilities(THETA, X[:1], Y[:1])
    assert float(r[0]) == pytest.approx(sigmoid(0.5) * sigmoid(1.0) / p, rel=1e-14)
    assert float(r[0]) == pytest.approx(sigmoid(1.5), rel=1e-14)


def test_probabilities_of_both_classes_have_a_sum_of_one() -> None:
    p = [np.exp(-symmetric_logistic.nll(THETA, X[2:3], np.array([y]))) for y in (1.0, -1.0)]
    assert sum(p) == pytest.approx(1, rel=1e-14)


def test_experts_can_be_renamed() -> None:
    flipped = Parameters(-THETA.w, -THETA.beta)
    assert symmetric_logistic.nll(flipped, X, Y) == pytest.approx(symmetric_logistic.nll(THETA, X, Y), rel=1e-15)


def test_divergence_of_the_mirror_map_is_kl_of_the_complete_model() -> None:
    """Summed over y and z by hand."""
    random = np.random.default_rng(2)
    theta, phi = (Parameters(*random.standard_normal((2, 2))) for _ in range(2))
    slope = symmetric_logistic.mirror_gradient(phi, X)
    divergence = symmetric_logistic.mirror_map(theta, X) - symmetric_logistic.mirror_map(phi, X)
    divergence -= float(slope.w @ (theta.w - phi.w) + slope.beta @ (theta.beta - phi.beta))
    kl = 0.0
    for y in (1, -1):
        for z in (1, -1):
            p, q = (expit(z * (X @ own.w)) * expit(y * z * (X @ own.beta)) for own in (phi, theta))
            kl += float((p * np.log(p / q)).mean())
    assert divergence == pytest.approx(kl, rel=1e-12)


def test_predicts_the_likelier_class() -> None:
    predicted = symmetric_logistic.predict(THETA, X)
    for one, said in zip(X, predicted, strict=True):
        p = np.exp(-symmetric_logistic.nll(THETA, one[None], np.array([said])))
        assert p >= 0.5


def test_m_step_of_hard_responsibilities_is_two_logistic_regressions() -> None:
    """With z seen, beta is regressed on y z and w on z."""
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(4)
    x = random.standard_normal((200, 2))
    z = np.where(random.random(200) < expit(x @ np.array([1.0, 0.5])), 1.0, -1.0)
    y = np.where(random.random(200) < expit(z * (x @ np.array([0.5, -1.0]))), 1.0, -1.0)
    found, _ = symmetric_logistic.m_step(THETA, (z + 1) / 2, x, y, Solver(ridge=0.0))
    for own, label in ((found.w, z), (found.beta, y * z)):
        other = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(x, label)
        np.testing.assert_allclose(own, other.coef_[0], atol=1e-4)
