"""How a mixture of experts is fitted and measured; a subclass says what an iteration does.

Measured after 0, 5, 20, 50 and 100 iterations and at the end, as `NAME/ITERATION`, and logged after each as `fit/NAME`:

    loss                 L(theta_t), the mean negative log-likelihood of the points in nats
    loss_above_last      L(theta_t) - L(theta_T), T the last iteration         (arXiv 2411.06056)
    loss_above_truth     L(theta_t) - L(theta*); negative where the points are fitted better than by the truth
    loss_above_optimum   L(theta_t) - L of the optimum that EM finds from theta*                 (ours)
    w_error, beta_error  ||w_t - w*|| / ||w*|| and that of beta, whatever the experts are called
    accuracy, cross_entropy   of test points

Means over the problems of the data set, where it has several.
"""

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import PositiveInt

from methods.method import Context
from methods.mixtures.mixture import MixtureData, Parameters, Work
from methods.mixtures.regression import Solver
from methods.simulation import Simulation

_MEASURED_AT = (0, 5, 20, 50, 100)
_KEPT_EVERY = 30.0  # seconds between checkpoints
_OPTIMUM_STEPS = 500  # of EM from the truth,
_OPTIMUM_CHANGE = 1e-13  # or until a step lowers the loss by less


def em_step(data: MixtureData, theta: Parameters, solver: Solver) -> tuple[Parameters, Work]:
    """E-step, then M-step."""
    r = data.mixture.responsibilities(theta, data.x_ND, data.y_N)
    return data.mixture.m_step(theta, r, data.x_ND, data.y_N, solver)


def optimal_loss(data: MixtureData) -> float:
    """The loss where EM ends that begins at the truth; nan without a truth."""
    if data.truth is None:
        return float("nan")
    theta, loss = data.truth, data.mixture.nll(data.truth, data.x_ND, data.y_N)
    for _ in range(_OPTIMUM_STEPS):
        theta, _work = em_step(data, theta, Solver())
        before, loss = loss, data.mixture.nll(theta, data.x_ND, data.y_N)
        if before - loss < _OPTIMUM_CHANGE:
            break
    return loss


def measure(data: MixtureData, theta: Parameters, optimum: float) -> dict[str, float]:
    """What can be said of theta. optimum: the loss of the optimum."""
    mixture = data.mixture
    found = {"loss": mixture.nll(theta, data.x_ND, data.y_N)}
    if data.truth is not None:
        errors = mixture.errors(theta, data.truth)
        found["loss_above_truth"] = found["loss"] - mixture.nll(data.truth, data.x_ND, data.y_N)
        found["loss_above_optimum"] = found["loss"] - optimum
        found |= {"w_error": errors.w, "beta_error": errors.beta}
    if data.test_x_MD is not None and data.test_y_M is not None:
        found["cross_entropy"] = mixture.nll(theta, data.test_x_MD, data.test_y_M)
        if data.classes:
            found["accuracy"] = float((mixture.predict(theta, data.test_x_MD) == data.test_y_M).mean())
    return found


@dataclass(frozen=True, kw_only=True)
class MixtureFitConfig:
    """iterations: T, each of which looks at all points."""

    iterations: PositiveInt = 100


class MixtureFit(Simulation):
    """Base of what fits a mixture of experts, iteration by iteration."""

    config: MixtureFitConfig
    data: ClassVar[tuple[str, ...]] = ("mixture",)
    rates: ClassVar[tuple[str, ...]] = ()  # keys to lower where the loss is no number

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.done = 0  # iterations
        self.thetas: list[Parameters] = []  # of every problem
        self.work = Work(0, 0)
        self.measured: dict[str, dict[str, float]] = {}  # by name, then by iteration

    @abstractmethod
    def iterate(self, data: MixtureData, theta: Parameters) -> tuple[Parameters, Work]:
        """One iteration on one problem; what it took."""

    def run(self, context: Context) -> Mapping[str, float]:
        """Fit every problem; returns the means of what was measured."""
        problems: list[MixtureData] = context.dataset
        optima = [optimal_loss(data) for data in problems]
        context.restore(self)
        if not self.thetas:
            self.thetas = [data.start for data in problems]
            self._measure(context, problems, optima)
        kept = time.monotonic()
        for _ in context.steps("fitting", self.config.iterations - self.done):
            for number, data in enumerate(problems):
                with np.errstate(over="ignore", invalid="ignore"):  # where it diverges, which is told below
                    self.thetas[number], work = self.iterate(data, self.thetas[number])
                self.work = Work(*(total + own / len(problems) for total, own in zip(self.work, work, strict=True)))
            self.done += 1
            self._measure(context, problems, optima)
            if time.monotonic() - kept > _KEPT_EVERY:
                context.checkpoint(self, self.done)
                kept = time.monotonic()
        return self._result()

    def _measure(self, context: Context, problems: list[MixtureData], optima: list[float]) -> None:
        """Measure all problems as they are; log and keep the means.

        Raises:
            ValueError: a loss is no number.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            of_each = [measure(*one) for one in zip(problems, self.thetas, optima, strict=True)]
        found = {name: float(np.mean([one[name] for one in of_each])) for name in of_each[0]}
        if not np.isfinite(found["loss"]):
            rates = ", ".join(f"method.{name}={getattr(self.config, name)}" for name in self.rates)
            told = f"the loss must be finite, got {found['loss']} after iteration {self.done}"
            raise ValueError(f"{rates}: {told}; lower it" if rates else f"dataset.points: {told}")
        context.log({f"fit/{name}": value for name, value in found.items()}, self.done)
        if self.done in _MEASURED_AT or self.done == self.config.iterations:
            for name, value in found.items():
                self.measured.setdefault(name, {})[str(self.done)] = value

    def _result(self) -> dict[str, float]:
        losses = self.measured["loss"]
        last = losses[str(self.config.iterations)]
        self.measured["loss_above_last"] = {iteration: loss - last for iteration, loss in losses.items()}
        return {
            **{f"{name}/{at}": value for name, found in self.measured.items() for at, value in found.items()},
            "gradients/gate": self.work.gate,
            "gradients/experts": self.work.experts,
        }

    def state_dict(self) -> dict[str, Any]:
        """Where every problem stands, and what was measured."""
        thetas = [[torch.from_numpy(np.array(part)) for part in theta] for theta in self.thetas]
        return {"done": self.done, "thetas": thetas, "work": list(self.work), "measured": self.measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there."""
        self.done, self.measured, self.work = state["done"], state["measured"], Work(*state["work"])
        self.thetas = [Parameters(*(part.numpy() for part in theta)) for theta in state["thetas"]]
