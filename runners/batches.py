"""Which examples an optimizer step sees, and how they are laid out in rows.

The global batch of a step is a fixed set of examples: a function of seed and step alone. How it is laid out
(padded or packed, in how many micro-batches, on how many processes) is free, and changes neither loss nor
gradient of an objective that does not couple examples.

An example is a sequence, or a group of them (the responses to one prompt), which stays in one micro-batch.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from methods.batch import Batch
from methods.examples import Examples

Row = list[int]  # indices of the sequences in a row


@dataclass(frozen=True)
class Batches:
    """The stream of global batches of one training run, on one of `world` processes.

    batch_size: examples of a global batch. micro_batch_size: examples, or packed rows, of a micro-batch.
    """

    examples: Examples
    batch_size: int
    micro_batch_size: int
    packing: bool
    row_length: int  # tokens of a packed row at most; a group that has more is a row of its own
    pad_token: int
    seed: int
    rank: int = 0
    world: int = 1
    by_length: bool = True  # rows of a micro-batch are of like length; else they are as drawn, for what couples them

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a pass over the data; the last may hold fewer examples."""
        return math.ceil(self.examples.group_count / self.batch_size)

    def global_batch(self, step: int) -> NDArray[np.int64]:
        """Indices of the examples of step 0, 1, ...: a new permutation every epoch, by seed and epoch alone."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._last_order.get("epoch") != epoch:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            self._last_order.update(epoch=epoch, order=generator.permutation(self.examples.group_count))
        order: NDArray[np.int64] = self._last_order["order"]
        return order

    @cached_property
    def _last_order(self) -> dict[str, Any]:
        return {}

    def of_step(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step; every process gets equally many."""
        return self._lay_out(self.global_batch(step))

    def once(self) -> Iterator[Batch]:
        """All examples once, for measuring them, longest first; every process gets its share of the micro-batches.

        All get equally many, since a sharded model wants them in step: a process whose share is smaller gets one again.
        """
        ordered = np.argsort(-self.examples.lengths, kind="stable")  # rows of like length need little padding
        begins = range(0, len(ordered), self.micro_batch_size)
        for turn in range(math.ceil(len(begins) / self.world)):
            begin = begins[min(turn * self.world + self.rank, len(begins) - 1)]
            yield self._collate([[int(index)] for index in ordered[begin : begin + self.micro_batch_size]])

    def _lay_out(self, indices: NDArray[np.int64]) -> list[Batch]:
        groups = self.examples.groups
        lengths = np.diff(self.examples.starts[groups])  # of whole groups
        if self.by_length:  # then a micro-batch needs little padding: the order inside a step is free
            indices = indices[np.argsort(-lengths[indices], kind="stable")]
        ordered = [int(index) for index in indices]

        def members(index: int) -> Row:
            return list(range(groups[index], groups[index + 1]))

        blocks: list[list[Row]]  # rows that stay together
        if self.packing:
            packed = pack(ordered, lengths, self.row_length)
            blocks = [[[sequence for index in row for sequence in members(index)]] for row in packed]
        else:
            blocks = [[[sequence] for sequence in members(index)] for index in ordered]
        share = math.ceil(len(blocks) / self.world)
        micro_batches = math.ceil(share / self.micro_batch_size)
        own = blocks[self.rank :: self.world]
        laid_out = []
        for number in range(micro_batches):
            # Evenly many blocks each, so that no micro-batch is a small rest.
            begin, end = (len(own) * number // micro_batches, len(own) * (number + 1) // micro_batches)
            rows = [row for block in own[begin:end] for row in block]
            laid_out.append(self._of_groups(rows) if rows else _without_targets(self._of_groups(blocks[0])))
        return laid_out

    def _of_groups(self, rows: list[Row]) -> Batch:
        """A batch of whole groups, in their order."""
        batch = self._collate(rows)
        examples = self.examples
        order = batch.example_S.numpy()
        group = label = None
        if examples.group_starts is not None:
            number = np.searchsorted(examples.group_starts, order, side="right")
            group = torch.from_numpy(np.cumsum(np.diff(number, prepend=number[:1]) != 0))
        if examples.labels is not None:
            label = torch.from_numpy(examples.labels[order])
        return dataclasses.replace(batch, group_S=group, label_S=label)

    def _collate(self, rows: list[Row]) -> Batch:
        examples = self.examples
        lengths = examples.lengths
        width = max(int(sum(lengths[index] for index in row)) for row in rows)
        shape = (len(rows), width)
        input_ids = np.full(shape, self.pad_token, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        targets = np.zeros(shape, dtype=bool)
        sequences = np.full(shape, -1, dtype=np.int64)
        order: list[int] = []
        for number, row in enumerate(rows):
            begin = 0
            for index in row:
                end = begin + int(lengths[index])
                input_ids[number, begin:end] = examples.sequence(index)
                positions[number, begin:end] = np.arange(end - begin)
                targets[number, begin + int(examples.targets[index]) : end] = True
                sequences[number, begin:end] = len(order)
                order.append(index)
                begin = end
            positions[number, begin:] = np.arange(width - begin)  # padding is a document of its own
        packed = any(len(row) > 1 for row in rows)
        return Batch(
            input_ids_BT=torch.from_numpy(input_ids),
            position_ids_BT=torch.from_numpy(positions) if packed else None,
            target_mask_BT=torch.from_numpy(targets),
            sequence_BT=torch.from_numpy(sequences),
            example_S=torch.tensor(order),
        )


def pack(ordered: list[int], lengths: NDArray[np.int64], row_length: int) -> list[Row]:
    """First-fit-decreasing bin packing of whole sequences or groups (longest first in `ordered`) into rows."""
    rows: list[Row] = []
    free: list[int] = []
    for index in ordered:
        length = int(lengths[index])
        place = next((place for place, room in enumerate(free) if room >= length), None)
        if place is None:
            rows.append([index])
            free.append(row_length - length)
        else:
            rows[place].append(index)
            free[place] -= length
    return rows


def _without_targets(batch: Batch) -> Batch:
    """A batch that costs a forward pass and adds nothing: what a process without rows of its own runs."""
    return dataclasses.replace(batch, target_mask_BT=torch.zeros_like(batch.target_mask_BT))


def make_batches(
    examples: Examples,
    settings: Mapping[str, Any],
    *,
    pad_token: int,
    max_length: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    ratio: float = 1.0,
    by_length: bool = True,
) -> Batches:
    """The batches of `training:` settings. `ratio`: of their size, for a mix; `by_length`: as in `Batches`."""
    return Batches(
        examples,
        round(settings["batch_size"] * ratio),
        settings["micro_batch_size"],
        settings["packing"],
        max_length,
        pad_token,
        seed,
        rank,
        world,
        by_length,
    )
