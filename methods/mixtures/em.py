"""EM for a mixture of experts: responsibilities, then the exact minimiser of Q (arXiv 2411.06056).

    E-step    r_nk = P(z = k | x_n, y_n; theta_t)
    M-step    theta_{t+1} = argmin Q(theta | theta_t):  gate and experts apart, each a weighted regression

It is (projected) mirror descent of step size 1, whose regulariser is the KL divergence between the complete models:
with exact M-steps and no ridge the loss never rises, and falls by at least D_A(theta_t, theta_{t+1}). Linear experts
are least squares; gates and other experts have no closed form and are searched, by a solver that is ours and stops at
its tolerance or limit.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from methods.mixtures.base import MixtureFit, MixtureFitConfig, em_step
from methods.mixtures.mixture import MixtureData, Parameters, Work
from methods.mixtures.regression import Solver


@dataclass(frozen=True, kw_only=True)
class EmConfig(MixtureFitConfig):
    """solver, tolerance, limit, ridge: of the M-step's regressions, see `methods.mixtures.regression.Solver`."""

    solver: Literal["newton", "lbfgs"] = "newton"
    tolerance: PositiveFloat = 1e-10
    limit: PositiveInt = 500
    ridge: NonNegativeFloat = 1e-8


class Em(MixtureFit):
    """EM, each M-step searched to the solver's tolerance (arXiv 2411.06056)."""

    config: EmConfig

    def iterate(self, data: MixtureData, theta: Parameters) -> tuple[Parameters, Work]:
        """An E-step and an M-step."""
        config = self.config
        return em_step(data, theta, Solver(config.solver, config.tolerance, config.limit, config.ridge))
