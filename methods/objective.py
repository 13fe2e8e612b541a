"""Objectives: methods that are a loss, minimised by the one training loop.

A subclass says what the loss of a batch is, as a *sum* over units, and how many units a batch holds. The loop
divides by the units of the whole global batch, so that neither accumulation, padding, packing nor the number
of processes changes the gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from methods.batch import Batch
from methods.examples import Examples
from methods.forward import Forward
from methods.kinds import Kind
from methods.method import Context, Method


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, summed over its units.

    metrics: sums of what else is worth logging per unit. means: what is logged as a mean over something else, each a
    sum and the number it is divided by, both added up over micro-batches and processes first.
    """

    sum: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    means: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Objective(Method):
    """Base of all methods that train one model by minimising a loss over a data set."""

    trained = ("policy",)
    data: ClassVar[tuple[str, ...]] = ("completion",)
    # Whether examples of a batch are coupled (a batch median, in-batch negatives), and over what:
    # "micro-batch" makes the micro-batch part of the run's identity.
    couples: ClassVar[str | None] = None
    units: ClassVar[str] = "tokens"  # what `count` counts: tokens, or groups of responses
    watched: ClassVar[tuple[str, ...]] = ()  # means (`Loss.means`) that `check` is told of in every step
    # Modules that `shape` adds to the trained role's model (a value head), by attribute: trained and in checkpoints as
    # the model's own, with an adapter too, and left out of the final model. `beside_head` of the kind calls them.
    parts: ClassVar[tuple[str, ...]] = ()
    kind: Kind
    context: Context

    def run(self, context: Context) -> Mapping[str, float]:
        """Prepare, then train; an interrupted run gets back what it had prepared."""
        self.kind, self.context = context.kind, context
        context.restore(self)
        prepared = self.prepare(context)
        context.prepared(self)
        return {**prepared, **context.train(self)}

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Once, before training: weights, reference log-probabilities, synthetic data. Returns what to report."""
        return {}

    def arrange(self, context: Context, examples: Examples) -> Examples:
        """What is trained on, of the data set's examples: those themselves, unless the method rearranges them.

        Called once, before training, by all processes together.
        """
        return examples

    def shape(self, model: nn.Module) -> None:
        """Choose what is trained of a role's model (`requires_grad_`) before its optimizer is built: all of it."""

    def loss(self, forward: Forward) -> Loss:
        """The summed loss of one micro-batch."""
        raise NotImplementedError(f"{type(self).__name__} must implement loss")

    def count(self, batch: Batch) -> int:
        """How many units the loss of `batch` is a sum over: its target tokens, unless overridden."""
        return batch.target_count

    def rollout(self, batch: Batch, step: int) -> Batch:
        """The batch that the loss of `step` (from 0) is taken on: the data set's, unless the method writes its own.

        Called by all processes for equally many micro-batches.
        """
        return batch

    @property
    def updates(self) -> int:
        """Optimizer steps that are taken on what one call of `rollouts` brings."""
        return 1

    def rollouts(self, batches: Sequence[Batch], turn: int) -> Sequence[Sequence[Batch]]:
        """What is trained on in the next `updates` steps: for each of them its micro-batches, in every process equally
        many.

        A continued run calls it again for the turn it had begun: what it changes in the method must wait for
        `after_step`, or be a function of weights, seed and turn.

        Args:
            batches: this process's micro-batches of the data set's next global batch.
            turn: how many such batches there were before.
        """
        return [[self.rollout(batch, turn) for batch in batches]]

    def check(self, means: Mapping[str, float], where: str) -> None:
        """Refuse a step before the weights are touched.

        Args:
            means: those `watched`, over all processes.
            where: names the step.

        Raises:
            ValueError: one of them is out of bounds.
        """

    def report(self) -> Mapping[str, float]:
        """What else is logged of a step, as the first process sees it: seconds, schedules."""
        return {}

    def after_step(self, step: int) -> None:
        """Called after each optimizer step: moving averages, schedules."""
