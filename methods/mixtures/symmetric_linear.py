"""SymMoLinE: two linear experts beta and -beta of unit noise, gate sigmoid(x.w) (arXiv 2411.06056).

    p(y | x) = sigmoid(x.w) N(y; x.beta, 1) + sigmoid(-x.w) N(y; -x.beta, 1)
    E-step    r_n = sigmoid(x_n.w + 2 y_n x_n.beta)                    P(z = +1 | x_n, y_n)
    M-step    beta = (X^T X)^{-1} X^T ((2 r - 1) y),  w = logistic regression of r on x
    A(theta) = mean_n (x_n.beta)^2 / 2 + log(1 + exp(x_n.w))           mirror map

One EM step is a step of mirror descent of size 1: grad A(theta+) = grad A(theta) - grad L(theta). The noise stays 1, or
this would not hold. The formulas of E-step, M-step and information are derived here.

Legend: N points, D features. theta = (w, beta), each [D].
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit

from methods.mixtures.mixture import Errors, Parameters, Work, symmetric_errors
from methods.mixtures.regression import Solver, softmax_regression, weighted_least_squares

Array = NDArray[np.float64]

_LOG_2PI = float(np.log(2 * np.pi))


def nll(theta: Parameters, x_ND: Array, y_N: Array) -> float:
    """-mean log p(y | x), in nats, the constant log(2 pi) / 2 included."""
    gate_N, mean_N = x_ND @ theta.w, x_ND @ theta.beta
    plus_N = log_expit(gate_N) - (y_N - mean_N) ** 2 / 2
    minus_N = log_expit(-gate_N) - (y_N + mean_N) ** 2 / 2
    return float(_LOG_2PI / 2 - np.logaddexp(plus_N, minus_N).mean())


def responsibilities(theta: Parameters, x_ND: Array, y_N: Array) -> Array:
    """P(z = +1 | x, y) [N]."""
    return np.asarray(expit(x_ND @ theta.w + 2 * y_N * (x_ND @ theta.beta)))


def q_gradient(theta: Parameters, r: Array, x_ND: Array, y_N: Array, ridge: float = 0.0) -> Parameters:
    """mean x (sigmoid(x.w) - r), mean x (x.beta - (2 r - 1) y)."""
    w_D = (expit(x_ND @ theta.w) - r) @ x_ND / len(x_ND) + ridge * theta.w
    beta_D = (x_ND @ theta.beta - (2 * r - 1) * y_N) @ x_ND / len(x_ND)
    return Parameters(w_D, beta_D)


def m_step(theta: Parameters, r: Array, x_ND: Array, y_N: Array, solver: Solver) -> tuple[Parameters, Work]:
    """Logistic regression of the gate, least squares of the expert."""
    beta_D = weighted_least_squares(x_ND, (2 * r - 1) * y_N, np.ones(len(x_ND)))
    label_N2 = np.stack([r, 1 - r], axis=1)
    w_1D, evaluations = softmax_regression(x_ND, label_N2, np.ones(len(x_ND)), theta.w[None], solver)
    return Parameters(w_1D[0], beta_D), Work(evaluations, 1)


def draw(theta: Parameters, x_ND: Array, random: np.random.Generator) -> Array:
    """y given x [N]."""
    z_N = np.where(random.random(len(x_ND)) < expit(x_ND @ theta.w), 1.0, -1.0)
    return z_N * (x_ND @ theta.beta) + random.standard_normal(len(x_ND))


def predict(theta: Parameters, x_ND: Array) -> Array:
    """The mean of y given x [N]."""
    return np.asarray(np.tanh(x_ND @ theta.w / 2) * (x_ND @ theta.beta))


def errors(theta: Parameters, truth: Parameters) -> Errors:
    """Relative errors up to the sign."""
    return symmetric_errors(theta, truth)


# The mirror map and the information ------------------------------------------------------------------------------


def mirror_map(theta: Parameters, x_ND: Array) -> float:
    """A(theta)."""
    return float(((x_ND @ theta.beta) ** 2 / 2 - log_expit(-(x_ND @ theta.w))).mean())


def mirror_gradient(theta: Parameters, x_ND: Array) -> Parameters:
    """grad A(theta)."""
    w_D = expit(x_ND @ theta.w) @ x_ND / len(x_ND)
    return Parameters(w_D, (x_ND @ theta.beta) @ x_ND / len(x_ND))


def complete_information(theta: Parameters, x_ND: Array) -> Array:
    """Hess A: blocks mean s (1 - s) x x^T, s = sigmoid(x.w), and mean x x^T: the information of x, y and z. [2D, 2D]"""
    s_N, features = expit(x_ND @ theta.w), x_ND.shape[1]
    found = np.zeros((2 * features, 2 * features))
    found[:features, :features] = ((s_N * (1 - s_N))[:, None] * x_ND).T @ x_ND / len(x_ND)
    found[features:, features:] = x_ND.T @ x_ND / len(x_ND)
    return found


def hidden_information(theta: Parameters, x_ND: Array, y_N: Array) -> Array:
    """mean r (1 - r) v v^T with v = (x; 2 y x): the information of z given x and y. Hess L = Hess A - this. [2D, 2D]"""
    r_N = responsibilities(theta, x_ND, y_N)
    v_NV = np.concatenate([x_ND, 2 * y_N[:, None] * x_ND], axis=1)
    return np.asarray(((r_N * (1 - r_N))[:, None] * v_NV).T @ v_NV / len(x_ND))
