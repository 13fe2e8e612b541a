"""What a mixture of experts is: p(y | x) = sum_k P(z = k | x; w) p(y | x, z = k; beta), gate times expert.

A module such as `symmetric_linear` is a `Mixture` as it stands: its functions are pure, of float64 arrays. Losses and
gradients are means over points. `r` are the responsibilities P(z | x, y) of the E-step, and

    Q(theta | theta_t) = -mean_n sum_z r_n(z) log p(y_n, z | x_n; theta)

is what the M-step minimises and gradient EM descends. Its gradient at theta_t is that of the loss (Fisher's identity).

Legend: N points, D features, K experts, J = K - 1 experts with a gate of their own (that of the last is 0), C classes.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from methods.mixtures.regression import Solver

Array = NDArray[np.float64]


class Parameters(NamedTuple):
    """w: of the gate, [D] in a symmetric mixture, else [J, D]. beta: of the experts, [D], else [K, D] or [K, C, D]."""

    w: Array
    beta: Array


class Work(NamedTuple):
    """How often the gradient of the gate was evaluated on all points, and that of the experts, all of them."""

    gate: float
    experts: float


class Errors(NamedTuple):
    """||w - w*|| / ||w*|| and the same of beta, in the naming of the experts that makes them smallest together."""

    w: float
    beta: float


class Mixture(Protocol):
    """What a module of a mixture has."""

    def nll(self, theta: Parameters, x_ND: Array, y_N: Array) -> float:
        """-mean_n log p(y_n | x_n), in nats."""
        ...

    def responsibilities(self, theta: Parameters, x_ND: Array, y_N: Array) -> Array:
        """P(z | x_n, y_n): that of z = +1 [N] in a symmetric mixture, else [N, K]."""
        ...

    def q_gradient(self, theta: Parameters, r: Array, x_ND: Array, y_N: Array, ridge: float = 0.0) -> Parameters:
        """Gradient in theta of Q + ridge / 2 ||theta||^2, where the E-step gave r; linear experts have no ridge."""
        ...

    def m_step(self, theta: Parameters, r: Array, x_ND: Array, y_N: Array, solver: Solver) -> tuple[Parameters, Work]:
        """The minimiser of Q, with the solver's ridge, searched from theta; what the search took.

        Raises:
            ValueError: the least squares of an expert has no unique solution.
        """
        ...

    def draw(self, theta: Parameters, x_ND: Array, random: np.random.Generator) -> Array:
        """y given x [N], of the mixture."""
        ...

    def predict(self, theta: Parameters, x_ND: Array) -> Array:
        """The most likely class, or the mean of y, given x [N]."""
        ...

    def errors(self, theta: Parameters, truth: Parameters) -> Errors:
        """How far theta is from the truth."""
        ...


@dataclass(frozen=True)
class MixtureData:
    """One problem: points of a mixture, where to start, and what is known besides.

    test_x_MD, test_y_M: to be tested on. truth: of drawn data. classes: of y; 0 where y is a number.

    Raises:
        ValueError: a feature or a y is not finite, or there are fewer points than classes.
    """

    mixture: Mixture
    x_ND: Array
    y_N: Array
    start: Parameters
    truth: Parameters | None = None
    test_x_MD: Array | None = None
    test_y_M: Array | None = None
    classes: int = 0

    def __post_init__(self) -> None:
        for name, values in (("features", self.x_ND), ("y", self.y_N), ("test_features", self.test_x_MD)):
            if values is not None and not np.isfinite(values).all():
                place = [int(index) for index in np.argwhere(~np.isfinite(values))[0]]
                raise ValueError(
                    f"dataset.{name}={values[tuple(place)]}: must be finite, at point (and feature) {place}"
                )
        if len(self.x_ND) < self.classes:
            raise ValueError(f"dataset.points={len(self.x_ND)}: must be at least the number of classes, {self.classes}")


def gradient(mixture: Mixture, theta: Parameters, x_ND: Array, y_N: Array, ridge: float = 0.0) -> Parameters:
    """Gradient of the loss, with a ridge as in Q, by Fisher's identity."""
    return mixture.q_gradient(theta, mixture.responsibilities(theta, x_ND, y_N), x_ND, y_N, ridge)


def relative_errors(theta: Parameters, truth: Parameters) -> Errors:
    """The errors as the experts are named. Of a zero truth: absolute."""
    w, beta = (
        float(np.linalg.norm(own - true) / (np.linalg.norm(true) or 1.0))
        for own, true in zip(theta, truth, strict=True)
    )
    return Errors(w, beta)


def symmetric_errors(theta: Parameters, truth: Parameters) -> Errors:
    """The errors up to the sign: (w, beta) and (-w, -beta) are the same mixture."""
    flipped = Parameters(-theta.w, -theta.beta)
    return min(relative_errors(theta, truth), relative_errors(flipped, truth), key=lambda one: one.w**2 + one.beta**2)
