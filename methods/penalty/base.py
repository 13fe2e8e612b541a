"""What penalties have in common: a term of the loss on the data, a term on the weights, or a pull after a step."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from methods.forward import Forward
from methods.method import Context
from methods.objective import Loss
from methods.part import Part


class Penalty(Part):
    """Base of all penalties. A subclass overrides what it is: `loss`, `on_weights` or `pull`."""

    # Whether it needs the weights that training started from. Each process keeps its share of them.
    anchored: ClassVar[bool] = False

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Once, before training. Returns what to report."""
        return {}

    def loss(self, forward: Forward) -> Loss | None:
        """What is added to the loss, summed over the target tokens of a micro-batch of the data set."""
        return None

    def on_weights(self, name: str, weights: Tensor, start: Tensor) -> tuple[Tensor, Tensor] | None:
        """What is added to the loss of a whole step as a function of the weights.

        Args:
            name: of the parameter.
            weights, start: this process's share of it, now and before training; flat, fp32.

        Returns:
            The value (scalar) and its gradient (shaped like `weights`); None when the weights are not penalised.
        """
        return None

    def pull(self, step: int, total: int, learning_rate: float) -> float:
        """The part of their way back to the start that the weights are moved after `step` (from 1) of `total`."""
        return 0.0
