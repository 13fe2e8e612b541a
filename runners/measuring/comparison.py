"""A run's final model beside the one that its training started from: that one in memory, and sums under both."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import deepspeed
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from methods.batch import Batch, sum_by_sequence
from methods.examples import Examples
from runners import preemption, processes, record
from runners.batches import Batches
from runners.compose import RunSpec
from runners.engine import close_frozen, device, frozen_engine, sum_over_processes
from runners.models import load_model
from runners.progress import progress
from runners.start import Tell


@contextlib.contextmanager
def started_from(spec: RunSpec, tokenizer: Any, final: nn.Module, dtype: str) -> Iterator[nn.Module]:
    """The model that training started from, placed as the final one is: where nothing was learned they are equal.

    Args:
        spec: the run.
        tokenizer: of both models.
        final: the run's final model, sharded or whole.
        dtype: in which the other one is loaded.
    """
    start = spec.start
    folder = record.weights(start.parent)[0] if start.parent else None
    loaded = load_model(start.config["model"], folder, len(tokenizer), dtype)
    sharded = isinstance(final, deepspeed.DeepSpeedEngine)
    placed: nn.Module = frozen_engine(loaded, spec.config["engine"]) if sharded else loaded.to(device()).eval()
    try:
        yield placed
    finally:
        close_frozen(placed)


def sums_over_tokens(
    examples: Examples,
    values: Callable[[Batch], Sequence[Tensor]],
    *,
    rows: int,
    pad: int,
    what: str,
    tell: Tell,
) -> NDArray[np.float64]:
    """Sums over the target tokens of each sequence, the sequences dealt among the processes.

    Args:
        examples: the sequences.
        values: from a batch to several values of each of its target tokens, [K] each; it is called without gradients.
        rows: sequences of a batch.
        pad: any token.
        what: for the progress bar.
        tell: how far it is.

    Returns:
        [values, sequences]; the same on every process.

    Raises:
        Preempted: told to stop.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    batches = Batches(examples, rows, rows, False, int(examples.lengths.max()), pad, 0, rank, world)
    sums: list[Tensor] = []
    seen_S = torch.zeros(len(examples), dtype=torch.float64)
    with torch.no_grad(), progress(what, len(examples)) as advance:
        done = 0
        for batch in batches.once():
            if processes.any_rank(preemption.requested()):
                raise processes.stop("in its evaluation")
            batch = batch.to(device())
            places = batch.example_S.cpu()
            found = [sum_by_sequence(value_K.double(), batch).cpu() for value_K in values(batch)]
            sums = sums or [torch.zeros(len(examples), dtype=torch.float64) for _ in found]
            for summed_S, value_S in zip(sums, found, strict=True):
                summed_S[places] = value_S
            seen_S[places] = 1.0
            done = min(done + world * len(places), len(examples))
            advance(world * len(places))
            tell(done, len(examples))
    stacked = torch.stack(sums)
    if world > 1:  # the last of an uneven share was seen twice
        for tensor in (stacked, seen_S):
            sum_over_processes(tensor)
    return (stacked / seen_S).numpy()
