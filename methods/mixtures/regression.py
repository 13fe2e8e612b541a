"""The regressions of an M-step: weighted least squares, and softmax regression on soft labels with weights.

The softmax regression minimises mean_n weight_n sum_c -label_nc log p_nc + ridge / 2 ||W||^2 by Newton's method with a
line search or by L-BFGS. Newton's method without one diverges where the gate is steep. The ridge keeps the solution
finite where the labels are almost separable; least squares have none.

Legend: N points, D features, C classes, R = C or C - 1 rows of W; with C - 1 the logit of the last class is 0.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

Array = NDArray[np.float64]

_ROUNDING = 1e-15  # a loss that rises by less of itself has not risen
_SUFFICIENT = 1e-4  # share of the decrease that the slope promises (Armijo)
_SHORTEST = 2.0**-40  # step of the line search


@dataclass(frozen=True)
class Solver:
    """name: newton, exact and for few parameters, or lbfgs. limit: steps at most. ridge: as above.

    tolerance: of the gradient's largest entry, where the weights have a mean of 1.
    """

    name: Literal["newton", "lbfgs"] = "newton"
    tolerance: float = 1e-10
    limit: int = 500
    ridge: float = 1e-8


def weighted_least_squares(x_ND: Array, y_N: Array, weight_N: Array, expert: str = "the expert") -> Array:
    """(X^T R X)^{-1} X^T R y, R the diagonal of the weights. Returns [D].

    Raises:
        ValueError: X^T R X is not invertible.
    """
    root_N = np.sqrt(weight_N)
    solution_D, _, rank, _ = np.linalg.lstsq(root_N[:, None] * x_ND, root_N * y_N)
    if rank < x_ND.shape[1]:
        raise ValueError(
            f"dataset.n={len(x_ND)}: the least squares of {expert} must be invertible, got features of rank {rank} "
            f"among its points where {x_ND.shape[1]} are needed; use more points or fewer features"
        )
    return np.asarray(solution_D)


def softmax_regression(
    x_ND: Array, label_NC: Array, weight_N: Array, start_RD: Array, solver: Solver
) -> tuple[Array, int]:
    """The minimiser [R, D], searched from the start, and how often the gradient was evaluated.

    Without any weight every W is one: the start is returned.
    """
    total = float(weight_N.sum())
    if total <= 0:
        return start_RD, 0
    search = _newton if solver.name == "newton" else _lbfgs
    return search(_Problem(x_ND, label_NC, weight_N / total, solver.ridge * len(x_ND) / total), start_RD, solver)


def log_softmax(logits_NR: Array, classes: int) -> Array:
    """Log-probabilities [N, C]; the logit of a last class that has no row is 0."""
    if logits_NR.shape[1] < classes:
        logits_NR = np.concatenate([logits_NR, np.zeros((len(logits_NR), 1))], axis=1)
    return np.asarray(logits_NR - logsumexp(logits_NR, axis=1, keepdims=True))


@dataclass(frozen=True)
class _Problem:
    """The loss of a softmax regression; weights, and the labels of each point, have a sum of 1."""

    x_ND: Array
    label_NC: Array
    weight_N: Array
    ridge: float

    def loss_and_gradient(self, w_RD: Array) -> tuple[float, Array, Array]:
        """The loss, its gradient [R, D], and the probabilities [N, R]."""
        rows = len(w_RD)
        logps_NC = log_softmax(self.x_ND @ w_RD.T, self.label_NC.shape[1])
        loss = -float(self.weight_N @ (self.label_NC * logps_NC).sum(1)) + self.ridge / 2 * float((w_RD**2).sum())
        p_NR = np.exp(logps_NC[:, :rows])
        slope_NR = self.weight_N[:, None] * (p_NR - self.label_NC[:, :rows])
        return loss, slope_NR.T @ self.x_ND + self.ridge * w_RD, p_NR

    def hessian(self, p_NR: Array) -> Array:
        """[R D, R D]."""
        rows, features = p_NR.shape[1], self.x_ND.shape[1]
        blocks = np.empty((rows, features, rows, features))
        for a in range(rows):
            for b in range(a, rows):
                curvature_N = self.weight_N * p_NR[:, a] * ((a == b) - p_NR[:, b])
                blocks[a, :, b] = (curvature_N[:, None] * self.x_ND).T @ self.x_ND
                blocks[b, :, a] = blocks[a, :, b]
        size = rows * features
        return blocks.reshape(size, size) + self.ridge * np.eye(size)


def _newton(problem: _Problem, start_RD: Array, solver: Solver) -> tuple[Array, int]:
    """Newton's method, each step halved until the loss falls enough."""
    w_RD, evaluations = start_RD, 1
    loss, gradient_RD, p_NR = problem.loss_and_gradient(w_RD)
    for _ in range(solver.limit):
        if np.abs(gradient_RD).max() <= solver.tolerance:
            break
        # Least squares: all classes' logits have a shift in common, along which there is no curvature.
        direction = np.linalg.lstsq(problem.hessian(p_NR), gradient_RD.ravel())[0].reshape(w_RD.shape)
        slope, step = float((direction * gradient_RD).sum()), 1.0
        while step >= _SHORTEST:
            tried = problem.loss_and_gradient(w_RD - step * direction)
            evaluations += 1
            if tried[0] <= loss - _SUFFICIENT * step * slope + _ROUNDING * abs(loss):
                break
            step /= 2
        else:
            break  # rounding: the loss cannot be told from its minimum
        w_RD, (loss, gradient_RD, p_NR) = w_RD - step * direction, tried
    return w_RD, evaluations


def _lbfgs(problem: _Problem, start_RD: Array, solver: Solver) -> tuple[Array, int]:
    """scipy's L-BFGS-B, without bounds."""

    def loss_and_gradient(flat: Array) -> tuple[float, Array]:
        loss, gradient_RD, _ = problem.loss_and_gradient(flat.reshape(start_RD.shape))
        return loss, gradient_RD.ravel()

    found = minimize(
        loss_and_gradient,
        start_RD.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": solver.tolerance, "ftol": 0.0, "maxiter": solver.limit, "maxfun": 2 * solver.limit},
    )
    return found.x.reshape(start_RD.shape), int(found.nfev)
