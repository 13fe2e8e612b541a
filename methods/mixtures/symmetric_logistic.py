"""SymMoLogE: two logistic experts beta and -beta, y = +1 or -1, gate sigmoid(x.w) (arXiv 2411.06056).

    p(y | x) = sigmoid(x.w) sigmoid(y x.beta) + sigmoid(-x.w) sigmoid(-y x.beta)
    E-step    r_n = sigmoid(x_n.w + y_n x_n.beta)                      P(z = +1 | x_n, y_n)
    M-step    logistic regressions on x: w of r; beta of t = r where y = +1, 1 - r where y = -1
    A(theta) = mean_n log(1 + exp(x_n.beta)) + log(1 + exp(x_n.w))     mirror map

One EM step is a step of mirror descent of size 1, as for SymMoLinE. The formulas of E-step, M-step and information are
derived here.

Legend: N points, D features. theta = (w, beta), each [D].
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit

from methods.mixtures.mixture import Errors, Parameters, Work, symmetric_errors
from methods.mixtures.regression import Solver, softmax_regression

Array = NDArray[np.float64]


def nll(theta: Parameters, x_ND: Array, y_N: Array) -> float:
    """-mean log p(y | x), in nats."""
    gate_N, margin_N = x_ND @ theta.w, y_N * (x_ND @ theta.beta)
    plus_N, minus_N = log_expit(gate_N) + log_expit(margin_N), log_expit(-gate_N) + log_expit(-margin_N)
    return float(-np.logaddexp(plus_N, minus_N).mean())


def responsibilities(theta: Parameters, x_ND: Array, y_N: Array) -> Array:
    """P(z = +1 | x, y) [N]."""
    return np.asarray(expit(x_ND @ theta.w + y_N * (x_ND @ theta.beta)))


def q_gradient(theta: Parameters, r: Array, x_ND: Array, y_N: Array, ridge: float = 0.0) -> Parameters:
    """mean x (sigmoid(x.w) - r), mean x (sigmoid(x.beta) - t)."""
    w_D = (expit(x_ND @ theta.w) - r) @ x_ND / len(x_ND) + ridge * theta.w
    beta_D = (expit(x_ND @ theta.beta) - _agreement(r, y_N)) @ x_ND / len(x_ND) + ridge * theta.beta
    return Parameters(w_D, beta_D)


def m_step(theta: Parameters, r: Array, x_ND: Array, y_N: Array, solver: Solver) -> tuple[Parameters, Work]:
    """Logistic regressions of gate and expert."""
    found, work = [], []
    for own_D, label_N in ((theta.w, r), (theta.beta, _agreement(r, y_N))):
        label_N2 = np.stack([label_N, 1 - label_N], axis=1)
        solution_1D, evaluations = softmax_regression(x_ND, label_N2, np.ones(len(x_ND)), own_D[None], solver)
        found.append(solution_1D[0])
        work.append(evaluations)
    return Parameters(*found), Work(*work)


def draw(theta: Parameters, x_ND: Array, random: np.random.Generator) -> Array:
    """y given x, +1 or -1 [N]."""
    z_N = np.where(random.random(len(x_ND)) < expit(x_ND @ theta.w), 1.0, -1.0)
    return np.where(random.random(len(x_ND)) < expit(z_N * (x_ND @ theta.beta)), 1.0, -1.0)


def predict(theta: Parameters, x_ND: Array) -> Array:
    """The likelier y given x [N]."""
    return np.where(np.tanh(x_ND @ theta.w / 2) * np.tanh(x_ND @ theta.beta / 2) >= 0, 1.0, -1.0)


def errors(theta: Parameters, truth: Parameters) -> Errors:
    """Relative errors up to the sign."""
    return symmetric_errors(theta, truth)


def _agreement(r_N: Array, y_N: Array) -> Array:
    """P(y z = +1 | x, y) [N]."""
    return np.where(y_N > 0, r_N, 1 - r_N)


# The mirror map and the information ------------------------------------------------------------------------------


def mirror_map(theta: Parameters, x_ND: Array) -> float:
    """A(theta)."""
    return float(-(log_expit(-(x_ND @ theta.beta)) + log_expit(-(x_ND @ theta.w))).mean())


def mirror_gradient(theta: Parameters, x_ND: Array) -> Parameters:
    """grad A(theta)."""
    return Parameters(*(expit(x_ND @ own_D) @ x_ND / len(x_ND) for own_D in theta))


def complete_information(theta: Parameters, x_ND: Array) -> Array:
    """Hess A, a block mean s (1 - s) x x^T for w and one for beta: the information of x, y and z. [2D, 2D]"""
    features = x_ND.shape[1]
    found = np.zeros((2 * features, 2 * features))
    for block, own_D in zip((slice(features), slice(features, None)), theta, strict=True):
        s_N = expit(x_ND @ own_D)
        found[block, block] = ((s_N * (1 - s_N))[:, None] * x_ND).T @ x_ND / len(x_ND)
    return found


def hidden_information(theta: Parameters, x_ND: Array, y_N: Array) -> Array:
    """mean r (1 - r) v v^T with v = (x; y x): the information of z given x and y. Hess L = Hess A - this. [2D, 2D]"""
    r_N = responsibilities(theta, x_ND, y_N)
    v_NV = np.concatenate([x_ND, y_N[:, None] * x_ND], axis=1)
    return np.asarray(((r_N * (1 - r_N))[:, None] * v_NV).T @ v_NV / len(x_ND))
