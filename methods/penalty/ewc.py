"""Elastic weight consolidation (EWC): the weights that the base model's predictions depend on most are held hardest.

Kirkpatrick et al.: "Overcoming catastrophic forgetting in neural networks", PNAS 2017, arXiv 1612.00796.

    L + (lambda / 2) sum_j F_j (theta_j - theta0_j)^2,      F_j = E_{x,y}[(d log p_theta0(y|x) / d theta_j)^2]

F is the diagonal of the Fisher information at the starting weights theta0, estimated once before training; a sample is
a whole sequence, and log p(y|x) the sum over its target tokens. `fisher_on` says whose sequences:

    context_free    what the base model writes after BOS alone (arXiv 2505.13811), which needs no old data: the labels
                    are the model's own, so this is the true Fisher
    data            the fine-tuning data and its labels: the empirical Fisher
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, distributed, nn

from evals.ranks import Ranks
from methods.batch import Batch
from methods.context_free import context_free_samples
from methods.examples import Examples
from methods.kinds import Kind
from methods.method import Context
from methods.penalty.base import Penalty


@dataclass(frozen=True, kw_only=True)
class EwcConfig:
    """weight: lambda. fisher_on: context_free | data. samples: sequences for it, of max_length tokens at most.

    batch_size, start_token: of what the base model writes. seed: of that, or of which examples are taken.
    """

    weight: NonNegativeFloat = 1.0
    fisher_on: Literal["context_free", "data"] = "context_free"
    samples: PositiveInt = 1000
    max_length: Annotated[int, Ge(2)] = 1024
    batch_size: PositiveInt = 64
    seed: int = 0
    start_token: str | None = None


def quadratic(weights: Tensor, start: Tensor, fisher: Tensor) -> tuple[Tensor, Tensor]:
    """(1/2) sum_j F_j (weights_j - start_j)^2, and its gradient. Any shape."""
    pulled = fisher * (weights - start)
    return 0.5 * (pulled * (weights - start)).sum(), pulled


def mean_squared_gradients(sequence_logps: Iterable[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Mean over sequences of the squared gradient of each one's log-probability (a scalar): F, like `parameters`.

    The gradients are of one sequence at a time: the square of a batch's is another number.
    """
    totals = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    count = 0
    for logp in sequence_logps:
        gradients = torch.autograd.grad(logp, parameters, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total += gradient.float().square()
        count += 1
    return [total / max(count, 1) for total in totals]


class Ewc(Penalty):
    """EWC: squared distance to the starting weights, each weighed by its Fisher information (arXiv 1612.00796)."""

    config: EwcConfig
    kinds = ("causal",)
    anchored = True
    excludes: ClassVar[Mapping[str, str]] = {
        "adapter=lora": "LoRA trains factors that start at random; the weights this penalty holds do not move",
    }

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Estimate the Fisher information, or take what another run has found for the same model and sequences."""
        sequences = self._sequences(context)
        decides = {"sequences": sequences.digest(), "trained": sorted(context.trained_names)}
        fisher = context.cached("fisher", decides, lambda: fisher_of(context, sequences))
        self._fisher = context.share_of(fisher)
        size = sum(values.numel() for values in fisher.values())
        return {
            "ewc/sequences": float(len(sequences)),
            "ewc/target_tokens": float(sequences.target_tokens),
            "ewc/fisher_mean": float(sum(values.double().sum() for values in fisher.values())) / size,
            "ewc/fisher_max": float(max(values.max() for values in fisher.values())),
        }

    def _sequences(self, context: Context) -> Examples:
        config = self.config
        if config.fisher_on == "context_free":
            return context_free_samples(
                context,
                config.samples,
                config.max_length,
                config.batch_size,
                start_token=config.start_token,
                seed=config.seed,
                group="penalty",
            )
        return drawn(context.examples, config.samples, config.max_length, config.seed)

    def on_weights(self, name: str, weights: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The penalty on one parameter."""
        self._fisher[name] = self._fisher[name].to(weights.device)  # once
        value, gradient = quadratic(weights, start, self._fisher[name])
        return self.config.weight * value, self.config.weight * gradient


def drawn(data: Examples, samples: int, max_length: int, seed: int) -> Examples:
    """Examples drawn without replacement (all if there are fewer), cut to a length; those without targets left out."""
    usable = np.flatnonzero(data.targets < np.minimum(data.lengths, max_length))
    if len(usable) == 0:
        raise ValueError(f"penalty.max_length={max_length}: no example has a token that carries loss within it")
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(usable)[:samples]
    cut = [data.sequence(int(index))[:max_length].tolist() for index in chosen]
    return Examples.of(cut, data.targets[chosen].tolist())


def fisher_of(context: Context, sequences: Examples) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of the starting model, by parameter, on the CPU.

    Each process takes its share of the sequences; it holds the whole model, one gradient and one sum.
    """
    model, ranks = context.unsharded(), Ranks()
    model.eval()  # no dropout
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = range(ranks.rank, len(sequences), ranks.count)
    turns = context.steps("Fisher information", math.ceil(len(sequences) / ranks.count))
    means = mean_squared_gradients(_logps(context.kind, model, sequences, own, turns), list(named.values()))
    for mean in means:
        mean *= len(own) / len(sequences)
        if ranks.count > 1:
            distributed.all_reduce(mean)
    return {name: mean.cpu() for name, mean in zip(named, means, strict=True)}


def _logps(
    kind: Kind, model: nn.Module, sequences: Examples, indices: Sequence[int], turns: Iterator[int]
) -> Iterator[Tensor]:
    """log p(y|x) of sequences, one after the other, each a scalar with its graph."""
    device = next(model.parameters()).device
    for turn in turns:
        if turn >= len(indices):
            continue  # another process has one more
        index = indices[turn]
        tokens_BT = torch.from_numpy(sequences.sequence(index)).long()[None]
        target_mask_BT = torch.arange(tokens_BT.shape[1])[None] >= int(sequences.targets[index])
        batch = Batch(tokens_BT, None, target_mask_BT, torch.zeros_like(tokens_BT), torch.tensor([index]))
        yield kind.token_logps(model, batch.to(device)).sum()
