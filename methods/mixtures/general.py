"""K experts, linear, logistic or softmax, with a softmax gate (arXiv 2411.06056).

    p(y | x) = sum_k P(z = k | x; w) p(y | x; beta_k),     P(z = k | x; w) = exp(x.w_k) / sum_j exp(x.w_j)
    linear      y ~ N(x.beta_k, 1)
    logistic    y = 1 with probability sigmoid(x.beta_k), else 0
    softmax     y = c with probability softmax(B_k x)_c, B_k [C, D]     ours: "multi-class" is not spelled out
    E-step      r_nk = P(z = k | x_n) p(y_n | x_n; beta_k) / sum_j (the same of j)
    M-step      w: softmax regression on the soft labels r; beta_k: the expert's own regression, weighted by r_nk

Adding one vector to all w_k changes nothing, so that of the last expert is 0 and has no row in w: with K = 2 the gate
is logistic. Experts that are equal, with w = 0, stay equal in every step of EM: a start must be random.

Legend: N points, D features, K experts, J = K - 1, C classes.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import expit, log_expit, logsumexp

from methods.mixtures.mixture import Errors, Parameters, Work, relative_errors
from methods.mixtures.regression import Solver, log_softmax, softmax_regression, weighted_least_squares

Array = NDArray[np.float64]

_LOG_2PI = float(np.log(2 * np.pi))


def gate_logps(w_JD: Array, x_ND: Array) -> Array:
    """log P(z = k | x) [N, K]."""
    return log_softmax(x_ND @ w_JD.T, len(w_JD) + 1)


def all_gates(w_JD: Array) -> Array:
    """The gate of every expert [K, D], with a mean of 0, which is the same whichever expert is the last."""
    w_KD = np.concatenate([w_JD, np.zeros((1, w_JD.shape[1]))])
    return np.asarray(w_KD - w_KD.mean(0))


def all_experts(beta: Array) -> Array:
    """The experts [K, F]; of softmax experts, in which a shift of all classes changes nothing, with a mean of 0."""
    if beta.ndim == 3:
        beta = beta - beta.mean(1, keepdims=True)
    return beta.reshape(len(beta), -1)


def best_naming(theta: Parameters, truth: Parameters) -> Array:
    """Which of theta's experts stands for each of the truth's, so that the squared distances are smallest. [K]"""
    own_KF, true_KF = (np.concatenate([all_gates(one.w), all_experts(one.beta)], axis=1) for one in (theta, truth))
    distance_KK = ((true_KF[:, None] - own_KF[None]) ** 2).sum(-1)
    return np.asarray(linear_sum_assignment(distance_KK)[1])


class MixtureOfExperts(ABC):
    """A `Mixture` with a softmax gate; a subclass says what an expert is. beta: [K, ...]."""

    ridged = True  # whether an expert's regression has a ridge

    # What an expert is ---------------------------------------------------------------------------------------------

    @abstractmethod
    def expert_logps(self, beta: Array, x_ND: Array, y_N: Array) -> Array:
        """log p(y | x; beta_k) [N, K]."""

    @abstractmethod
    def expert_gradient(self, beta: Array, r_NK: Array, x_ND: Array, y_N: Array) -> Array:
        """Gradient of -mean_n sum_k r_nk log p(y_n | x_n; beta_k). The shape of beta."""

    @abstractmethod
    def expert_fit(
        self, beta_k: Array, r_N: Array, x_ND: Array, y_N: Array, name: str, solver: Solver
    ) -> tuple[Array, int]:
        """The minimiser of that for one expert, searched from beta_k, and how often the gradient was evaluated."""

    @abstractmethod
    def expert_draw(self, beta_k: Array, x_ND: Array, random: np.random.Generator) -> Array:
        """y of one expert given x [N]."""

    @abstractmethod
    def predict(self, theta: Parameters, x_ND: Array) -> Array:
        """The most likely class, or the mean of y, given x [N]."""

    # What they have in common --------------------------------------------------------------------------------------

    def joint_logps(self, theta: Parameters, x_ND: Array, y_N: Array) -> Array:
        """log p(y, z = k | x) [N, K]."""
        return gate_logps(theta.w, x_ND) + self.expert_logps(theta.beta, x_ND, y_N)

    def nll(self, theta: Parameters, x_ND: Array, y_N: Array) -> float:
        """-mean log p(y | x), in nats."""
        return float(-logsumexp(self.joint_logps(theta, x_ND, y_N), axis=1).mean())

    def responsibilities(self, theta: Parameters, x_ND: Array, y_N: Array) -> Array:
        """P(z = k | x, y) [N, K]."""
        joint_NK = self.joint_logps(theta, x_ND, y_N)
        return np.asarray(np.exp(joint_NK - logsumexp(joint_NK, axis=1, keepdims=True)))

    def q_gradient(self, theta: Parameters, r: Array, x_ND: Array, y_N: Array, ridge: float = 0.0) -> Parameters:
        """mean x (P(z = k | x) - r_k) for every gate but the last; the experts' own."""
        slope_NK = np.exp(gate_logps(theta.w, x_ND)) - r
        w_JD = slope_NK[:, : len(theta.w)].T @ x_ND / len(x_ND) + ridge * theta.w
        return Parameters(w_JD, self.expert_gradient(theta.beta, r, x_ND, y_N) + self.ridged * ridge * theta.beta)

    def m_step(self, theta: Parameters, r: Array, x_ND: Array, y_N: Array, solver: Solver) -> tuple[Parameters, Work]:
        """Softmax regression of the gate, and each expert's own regression."""
        w_JD, gate = softmax_regression(x_ND, r, np.ones(len(x_ND)), theta.w, solver)
        fits = [
            self.expert_fit(beta_k, r[:, k], x_ND, y_N, f"expert {k}", solver) for k, beta_k in enumerate(theta.beta)
        ]
        beta = np.stack([beta_k for beta_k, _ in fits])
        return Parameters(w_JD, beta), Work(gate, sum(evaluations for _, evaluations in fits) / len(fits))

    def draw(self, theta: Parameters, x_ND: Array, random: np.random.Generator) -> Array:
        """y given x [N]: an expert by the gate, y of that expert."""
        z_N = (random.random(len(x_ND))[:, None] > np.exp(gate_logps(theta.w, x_ND)).cumsum(1)[:, :-1]).sum(1)
        y_KN = np.stack([self.expert_draw(beta_k, x_ND, random) for beta_k in theta.beta])
        return np.asarray(np.take_along_axis(y_KN, z_N[None], axis=0)[0])

    def errors(self, theta: Parameters, truth: Parameters) -> Errors:
        """Relative errors in the naming of the experts that brings theta closest; gates with a mean of 0."""
        naming = best_naming(theta, truth)
        named = Parameters(all_gates(theta.w)[naming], all_experts(theta.beta)[naming])
        return relative_errors(named, Parameters(all_gates(truth.w), all_experts(truth.beta)))


class LinearExperts(MixtureOfExperts):
    """y ~ N(x.beta_k, 1), beta [K, D]."""

    ridged = False

    def expert_logps(self, beta: Array, x_ND: Array, y_N: Array) -> Array:
        """-(y - x.beta_k)^2 / 2 - log(2 pi) / 2."""
        return np.asarray(-((y_N[:, None] - x_ND @ beta.T) ** 2) / 2 - _LOG_2PI / 2)

    def expert_gradient(self, beta: Array, r_NK: Array, x_ND: Array, y_N: Array) -> Array:
        """mean r x (x.beta - y) [K, D]."""
        return np.asarray((r_NK * (x_ND @ beta.T - y_N[:, None])).T @ x_ND / len(x_ND))

    def expert_fit(
        self, beta_k: Array, r_N: Array, x_ND: Array, y_N: Array, name: str, solver: Solver
    ) -> tuple[Array, int]:
        """Weighted least squares."""
        return weighted_least_squares(x_ND, y_N, r_N, name), 1

    def expert_draw(self, beta_k: Array, x_ND: Array, random: np.random.Generator) -> Array:
        """x.beta plus standard normal noise."""
        return np.asarray(x_ND @ beta_k + random.standard_normal(len(x_ND)))

    def predict(self, theta: Parameters, x_ND: Array) -> Array:
        """The mean of y."""
        return np.asarray((np.exp(gate_logps(theta.w, x_ND)) * (x_ND @ theta.beta.T)).sum(1))


class LogisticExperts(MixtureOfExperts):
    """y = 1 with probability sigmoid(x.beta_k), else 0; beta [K, D]."""

    def expert_logps(self, beta: Array, x_ND: Array, y_N: Array) -> Array:
        """log sigmoid(x.beta) where y = 1, log sigmoid(-x.beta) where y = 0."""
        return np.asarray(log_expit((2 * y_N[:, None] - 1) * (x_ND @ beta.T)))

    def expert_gradient(self, beta: Array, r_NK: Array, x_ND: Array, y_N: Array) -> Array:
        """mean r x (sigmoid(x.beta) - y) [K, D]."""
        return np.asarray((r_NK * (expit(x_ND @ beta.T) - y_N[:, None])).T @ x_ND / len(x_ND))

    def expert_fit(
        self, beta_k: Array, r_N: Array, x_ND: Array, y_N: Array, name: str, solver: Solver
    ) -> tuple[Array, int]:
        """Weighted logistic regression."""
        found_1D, evaluations = softmax_regression(x_ND, np.stack([y_N, 1 - y_N], axis=1), r_N, beta_k[None], solver)
        return found_1D[0], evaluations

    def expert_draw(self, beta_k: Array, x_ND: Array, random: np.random.Generator) -> Array:
        """1 or 0."""
        return np.asarray((random.random(len(x_ND)) < expit(x_ND @ beta_k)).astype(np.float64))

    def predict(self, theta: Parameters, x_ND: Array) -> Array:
        """The likelier class."""
        p_N = (np.exp(gate_logps(theta.w, x_ND)) * expit(x_ND @ theta.beta.T)).sum(1)
        return np.asarray((p_N > 0.5).astype(np.float64))


class SoftmaxExperts(MixtureOfExperts):
    """y = c with probability softmax(B_k x)_c; beta [K, C, D]."""

    def class_logps(self, beta: Array, x_ND: Array) -> Array:
        """log p(y = c | x; beta_k) [N, K, C]."""
        experts, classes, features = beta.shape
        logits_NKC = (x_ND @ beta.reshape(-1, features).T).reshape(-1, experts, classes)
        return np.asarray(logits_NKC - logsumexp(logits_NKC, axis=2, keepdims=True))

    def expert_logps(self, beta: Array, x_ND: Array, y_N: Array) -> Array:
        """log softmax(B x)_y."""
        label_N11 = y_N.astype(np.int64)[:, None, None]
        return np.take_along_axis(self.class_logps(beta, x_ND), label_N11, axis=2)[:, :, 0]

    def expert_gradient(self, beta: Array, r_NK: Array, x_ND: Array, y_N: Array) -> Array:
        """mean r (p_c - 1[y = c]) x [K, C, D]."""
        slope_NKC = np.exp(self.class_logps(beta, x_ND))
        slope_NKC[np.arange(len(x_ND)), :, y_N.astype(np.int64)] -= 1
        slope_NF = (slope_NKC * r_NK[:, :, None]).reshape(len(x_ND), -1)
        return np.asarray((slope_NF.T @ x_ND).reshape(beta.shape) / len(x_ND))

    def expert_fit(
        self, beta_k: Array, r_N: Array, x_ND: Array, y_N: Array, name: str, solver: Solver
    ) -> tuple[Array, int]:
        """Weighted softmax regression."""
        return softmax_regression(x_ND, np.eye(len(beta_k))[y_N.astype(np.int64)], r_N, beta_k, solver)

    def expert_draw(self, beta_k: Array, x_ND: Array, random: np.random.Generator) -> Array:
        """A class."""
        p_NC = np.exp(self.class_logps(beta_k[None], x_ND)[:, 0])
        return np.asarray((random.random(len(x_ND))[:, None] > p_NC.cumsum(1)[:, :-1]).sum(1).astype(np.float64))

    def predict(self, theta: Parameters, x_ND: Array) -> Array:
        """The most likely class."""
        joint_NKC = gate_logps(theta.w, x_ND)[:, :, None] + self.class_logps(theta.beta, x_ND)
        return np.asarray(logsumexp(joint_NKC, axis=1).argmax(1).astype(np.float64))
