"""The batch a method sees: rows of tokens, whatever their layout.

Legend: B rows, T tokens of a row, S sequences (examples), K target tokens of the whole batch.
A row holds one sequence (padded) or several (packed); methods need not know which, because everything they
compute is per target token (K), with the sequence each belongs to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch of training sequences.

    input_ids_BT: long. position_ids_BT: long, restarting at each packed sequence; None when each row is one
    sequence padded on the right. target_mask_BT: bool, True where the token carries loss (never a
    sequence's first). sequence_BT: long, the row of `example_S` a token belongs to, -1 for padding.
    example_S: long, index of each sequence in the data set; the target tokens of the first come first.
    group_S: long, which sequences belong together (responses to one prompt): 0, 0, 1, 1, ...; None: each is alone.
    label_S: float, what the data say of each sequence (1 chosen, 0 rejected; a score); None: nothing.
    values_K, values_S: by name, what a method that writes its own sequences says of each target token and sequence.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor | None
    target_mask_BT: Tensor
    sequence_BT: Tensor
    example_S: Tensor
    group_S: Tensor | None = None
    label_S: Tensor | None = None
    values_K: Mapping[str, Tensor] = field(default_factory=dict)
    values_S: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def sequence_K(self) -> Tensor:
        """For each target token, its sequence within the batch."""
        return self.sequence_BT[self.target_mask_BT]

    @property
    def example_K(self) -> Tensor:
        """For each target token, its example's index in the data set."""
        return self.example_S[self.sequence_K]

    @property
    def targets_K(self) -> Tensor:
        """The target tokens themselves."""
        return self.input_ids_BT[self.target_mask_BT]

    @property
    def target_count(self) -> int:
        """K, the number of target tokens."""
        return int(self.target_mask_BT.sum())

    @property
    def group_count(self) -> int:
        """How many groups of sequences; without groups, how many sequences."""
        if self.group_S is None or not len(self.group_S):
            return len(self.example_S)
        return int(self.group_S[-1]) + 1

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return {name: move(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value

        return replace(self, **{name: move(value) for name, value in vars(self).items()})


def sum_by_sequence(values_K: Tensor, batch: Batch) -> Tensor:
    """Sum of per-token values over each sequence's target tokens; 0 for a sequence without any. Returns [S]."""
    total_S = torch.zeros(len(batch.example_S), dtype=values_K.dtype, device=values_K.device)
    return total_S.index_add(0, batch.sequence_K, values_K)


def mean_by_sequence(values_K: Tensor, batch: Batch) -> Tensor:
    """Mean of per-token values over each sequence's target tokens; NaN for a sequence without any. Returns [S]."""
    return sum_by_sequence(values_K, batch) / torch.bincount(batch.sequence_K, minlength=len(batch.example_S))


def place_in_sequence(batch: Batch) -> Tensor:
    """For each target token, how many target tokens of its sequence come before it. Returns long [K].

    Sequences are told apart by their number alone, wherever they lie: padded rows, rows of several sequences, sequences
    without a target. The sort is stable, and the tokens of one sequence come in their order.
    """
    sequence_K = batch.sequence_K
    count_S = torch.bincount(sequence_K, minlength=len(batch.example_S))
    first_S = count_S.cumsum(0) - count_S
    grouped_K = sequence_K.argsort(stable=True)
    place_K = torch.empty_like(sequence_K)
    place_K[grouped_K] = torch.arange(len(sequence_K), device=sequence_K.device) - first_S[sequence_K[grouped_K]]
    return place_K


def continued(prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], example_S: Tensor) -> Batch:
    """Prompts with their continuations, which are the target tokens: one sequence a row, padded on the right.

    example_S: index of each in the data set; the batch is on its device.
    """
    width = max(len(p) + len(c) for p, c in zip(prompts, continuations, strict=True))
    input_ids_BT = torch.zeros(len(prompts), width, dtype=torch.long)
    target_mask_BT = torch.zeros(len(prompts), width, dtype=torch.bool)
    sequence_BT = torch.full((len(prompts), width), -1)
    for row, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        end = len(prompt) + len(continuation)
        input_ids_BT[row, :end] = torch.tensor([*prompt, *continuation])
        target_mask_BT[row, len(prompt) : end] = True
        sequence_BT[row, :end] = row
    return Batch(input_ids_BT, None, target_mask_BT, sequence_BT, example_S.cpu()).to(example_S.device)
