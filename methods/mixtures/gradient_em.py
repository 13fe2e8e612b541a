"""Gradient EM: an E-step, then gradient steps on Q in place of its minimiser (arXiv 2411.06056).

    theta <- theta - eta grad Q(theta | theta_t),  inner_steps times, from theta_t

with one step size, or one for the gate and one for the experts. With one step and equal sizes it is gradient descent on
the loss, by Fisher's identity. The paper's curves tell the two apart; how many steps it takes, and their sizes, is not
in our sources.
"""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from methods.mixtures.base import MixtureFit, MixtureFitConfig
from methods.mixtures.mixture import MixtureData, Parameters, Work


@dataclass(frozen=True, kw_only=True)
class GradientEmConfig(MixtureFitConfig):
    """inner_steps: on the same Q. eta_beta, eta_w: step sizes of experts and gate; null for the gate: the experts'.

    ridge: weight of ||theta||^2 / 2, none on linear experts.
    """

    inner_steps: PositiveInt = 5
    eta_beta: PositiveFloat = 0.5
    eta_w: PositiveFloat | None = None
    ridge: NonNegativeFloat = 0.0


class GradientEm(MixtureFit):
    """EM whose M-step is a few gradient steps (arXiv 2411.06056)."""

    config: GradientEmConfig
    rates: ClassVar[tuple[str, ...]] = ("eta_beta", "eta_w")

    def iterate(self, data: MixtureData, theta: Parameters) -> tuple[Parameters, Work]:
        """An E-step and gradient steps."""
        config, eta_w = self.config, self.config.eta_w or self.config.eta_beta
        r = data.mixture.responsibilities(theta, data.x_ND, data.y_N)
        for _ in range(config.inner_steps):
            slope = data.mixture.q_gradient(theta, r, data.x_ND, data.y_N, config.ridge)
            theta = Parameters(theta.w - eta_w * slope.w, theta.beta - config.eta_beta * slope.beta)
        return theta, Work(config.inner_steps, config.inner_steps)
