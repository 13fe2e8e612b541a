"""What mixes have in common: examples of their own, beside those of the data set, in every step.

    L = L_F + lambda L_C            L_F: the method's loss on the data set, L_C: the mean loss per token of the mix

With `weight: null` both are one mean over all tokens of the step, which is lambda = N_C / N_F.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt, Le
from pydantic import NonNegativeFloat

from methods.batch import Batch
from methods.examples import Examples
from methods.forward import Forward
from methods.method import Context
from methods.objective import Loss
from methods.part import Part


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """ratio: examples of the mix for each example of the data set, in every step. weight: lambda, or null."""

    ratio: Annotated[float, Gt(0.0), Le(16.0)] = 1.0
    weight: NonNegativeFloat | None = 1.0


class Mix(Part):
    """Base of all mixes."""

    config: MixConfig
    kinds = ("causal",)
    prompted: ClassVar[bool] = False  # it answers the prompts of the data set
    replaces: ClassVar[bool] = False  # its examples stand in place of the data set's, not beside them

    def examples(self, context: Context) -> Examples:
        """What is mixed in; called once, before training, by all processes together."""
        raise NotImplementedError(f"{type(self).__name__} must implement examples")

    def report(self, examples: Examples) -> Mapping[str, float]:
        """What there is to say of them: how many, how long, how many distinct ones."""
        distinct = len({examples.sequence(index).tobytes() for index in range(len(examples))})
        return {
            "mix/examples": float(len(examples)),
            "mix/target_tokens": float(examples.target_tokens),
            "mix/distinct": distinct / len(examples),
        }

    def loss(self, forward: Forward) -> Loss:
        """Sum of -log p over the target tokens of a micro-batch of the mix."""
        return Loss(-forward.token_logps().sum())

    def count(self, batch: Batch) -> int:
        """Units of the loss: target tokens."""
        return batch.target_count
