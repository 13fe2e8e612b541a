"""L2 to the starting point (L2-SP): a penalty on how far the weights have moved.

Li, Grandvalet, Davoine: "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018,
arXiv 1802.01483; the baseline "l2" of FLOW (arXiv 2502.02797), TALR (2509.20758) and context-free synthetic data
(2505.13811).

    L + lambda sum_j (theta_j - theta0_j)^2            reduction: sum
    L + lambda sum_j (theta_j - theta0_j)^2 / P        reduction: mean, P trained parameters (FLOW's code)

With `norm: l1` the square is an absolute value. `decoupled` moves the weights after each step instead, as AdamW does
with its decay: theta <- theta - lr lambda (theta - theta0). It is no weight decay, which pulls to 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat
from torch import Tensor

from methods.method import Context
from methods.penalty.base import Penalty


@dataclass(frozen=True, kw_only=True)
class L2SpConfig:
    """weight: lambda. norm: l2 | l1. reduction: sum over the parameters, or their mean. decoupled: not in the loss."""

    weight: NonNegativeFloat = 1e-3
    norm: Literal["l2", "l1"] = "l2"
    reduction: Literal["sum", "mean"] = "mean"
    decoupled: bool = False

    def __post_init__(self) -> None:
        if self.decoupled and (self.norm, self.reduction) != ("l2", "sum"):
            raise ValueError(
                "penalty.decoupled=true: needs penalty.norm=l2 and penalty.reduction=sum, "
                f"got {self.norm}, {self.reduction}"
            )


def distance_to_start(weights: Tensor, start: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Sum of squares (l2) or absolute values (l1) of weights - start, and its gradient. Any shape."""
    moved = weights - start
    if norm == "l1":
        return moved.abs().sum(), moved.sign()
    return moved.square().sum(), 2 * moved


class L2Sp(Penalty):
    """L2 (or L1) distance of the weights to those that training started from."""

    config: L2SpConfig
    anchored = True
    excludes: ClassVar[Mapping[str, str]] = {
        "adapter=lora": "LoRA trains factors that start at random; the weights this penalty holds do not move",
    }

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Count the parameters, which the mean divides by."""
        self._scale = self.config.weight
        if self.config.reduction == "mean":
            self._scale /= context.trained_parameters
        return {}

    def on_weights(self, name: str, weights: Tensor, start: Tensor) -> tuple[Tensor, Tensor] | None:
        """The penalty on one parameter, unless it is decoupled."""
        if self.config.decoupled:
            return None
        value, gradient = distance_to_start(weights, start, self.config.norm)
        return self._scale * value, self._scale * gradient

    def pull(self, step: int, total: int, learning_rate: float) -> float:
        """lr lambda, where it is decoupled."""
        return learning_rate * self.config.weight if self.config.decoupled else 0.0
