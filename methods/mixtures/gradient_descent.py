"""Gradient descent on the loss of a mixture of experts, the usual way to fit one (arXiv 2411.06056).

theta_{t+1} = theta_t - eta grad L(theta_t),  with one step size, or one for the gate and one for the experts
"""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveFloat

from methods.mixtures.base import MixtureFit, MixtureFitConfig
from methods.mixtures.mixture import MixtureData, Parameters, Work, gradient


@dataclass(frozen=True, kw_only=True)
class GradientDescentConfig(MixtureFitConfig):
    """eta_beta, eta_w: step sizes of experts and gate; null for the gate: that of the experts, the plain method.

    ridge: weight of ||theta||^2 / 2, none on linear experts.
    """

    eta_beta: PositiveFloat = 0.5
    eta_w: PositiveFloat | None = None
    ridge: NonNegativeFloat = 0.0


class GradientDescent(MixtureFit):
    """Gradient descent on the negative log-likelihood (arXiv 2411.06056)."""

    config: GradientDescentConfig
    rates: ClassVar[tuple[str, ...]] = ("eta_beta", "eta_w")

    def iterate(self, data: MixtureData, theta: Parameters) -> tuple[Parameters, Work]:
        """One step."""
        config, eta_w = self.config, self.config.eta_w or self.config.eta_beta
        slope = gradient(data.mixture, theta, data.x_ND, data.y_N, config.ridge)
        return Parameters(theta.w - eta_w * slope.w, theta.beta - config.eta_beta * slope.beta), Work(1, 1)
