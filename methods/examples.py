"""Tokenised training sequences: what a data set, generated text and replayed text have in common."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Examples:
    """Token sequences, one after the other in flat arrays (a set of 400k must stay small).

    tokens: int32. starts: int64 [n + 1], where each sequence begins. targets: int64 [n], the offset inside its
    sequence of the first token that carries loss (at least 1: a first token is predicted from nothing).

    Responses to one prompt are a group: group_starts, int64 [g + 1], says where each group of sequences begins (None:
    every sequence is a group of its own), labels, float32 [n], what the data say of each response: 1 chosen, 0
    rejected, or a score (None: nothing).
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    targets: NDArray[np.int64]
    group_starts: NDArray[np.int64] | None = None
    labels: NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls,
        sequences: Iterable[Sequence[int] | NDArray[np.int32]],
        targets: Iterable[int],
        group_sizes: Iterable[int] | None = None,
        labels: Iterable[float] | None = None,
    ) -> "Examples":
        """From sequences of token ids and, for each, the offset of its first target.

        Args:
            group_sizes: of groups, how many sequences are in each, in their order.
            labels: of each sequence.

        Raises:
            ValueError: sizes or labels do not go with the sequences.
        """
        arrays: list[NDArray[np.int32]] = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
        lengths = np.array([len(array) for array in arrays], dtype=np.int64)
        starts = _starts(lengths)
        tokens = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)
        groups = None
        if group_sizes is not None:
            sizes = np.array(list(group_sizes), dtype=np.int64)
            if sizes.sum() != len(arrays) or (sizes < 1).any():
                raise ValueError(f"group_sizes must be >= 1 and sum to {len(arrays)}, the sequences, got {sizes.sum()}")
            groups = _starts(sizes)
        told = None if labels is None else np.array(list(labels), dtype=np.float32)
        if told is not None and len(told) != len(arrays):
            raise ValueError(f"labels must be one for each of {len(arrays)} sequences, got {len(told)}")
        return cls(tokens, starts, np.minimum(np.array(list(targets), dtype=np.int64), lengths), groups, told)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence. Shape [n]."""
        return np.diff(self.starts)

    @property
    def target_tokens(self) -> int:
        """Tokens that carry loss, over all sequences."""
        return int((self.lengths - self.targets).sum())

    @property
    def groups(self) -> NDArray[np.int64]:
        """Where each group of sequences begins, and the end. Shape [g + 1]."""
        return np.arange(len(self) + 1) if self.group_starts is None else self.group_starts

    @property
    def group_count(self) -> int:
        """How many groups."""
        return len(self) if self.group_starts is None else len(self.group_starts) - 1

    def sequence(self, index: int) -> NDArray[np.int32]:
        """The tokens of one sequence."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]

    def digest(self) -> str:
        """A hash of what the sequences are, and of which tokens carry loss."""
        found = hashlib.sha256()
        for array in (self.tokens, self.starts, self.targets):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def within(self, length: int, *, cut: bool) -> "Examples":
        """The groups whose sequences have at most `length` tokens.

        cut: the others too, as far as they go; of responses to a prompt there must be something left.
        """
        fitting = self.lengths <= length
        if cut:
            fitting = np.ones(len(self), dtype=bool) if self.group_starts is None else self.targets < length
        groups = self.groups
        kept = [g for g in range(self.group_count) if fitting[groups[g] : groups[g + 1]].all()]
        members = [index for g in kept for index in range(groups[g], groups[g + 1])]
        return Examples.of(
            [self.sequence(i)[:length] for i in members],
            [int(self.targets[i]) for i in members],
            None if self.group_starts is None else [int(groups[g + 1] - groups[g]) for g in kept],
            None if self.labels is None else [float(self.labels[i]) for i in members],
        )

    def of_groups(self, kept_K: NDArray[np.int64]) -> Self:
        """These groups alone, in this order."""
        groups = self.groups
        members = np.concatenate([np.arange(groups[g], groups[g + 1]) for g in kept_K])
        return self._of_members(members, np.diff(groups)[kept_K])

    def _of_members(self, members_M: NDArray[np.int64], sizes_K: NDArray[np.int64]) -> Self:
        """These sequences, in groups of these sizes."""
        return dataclasses.replace(
            self,
            tokens=np.concatenate([self.sequence(int(index)) for index in members_M]),
            starts=_starts(self.lengths[members_M]),
            targets=self.targets[members_M],
            group_starts=None if self.group_starts is None else _starts(sizes_K),
            labels=None if self.labels is None else self.labels[members_M],
        )

    def prompt(self, index: int) -> NDArray[np.int32]:
        """What stands before the first token that carries loss."""
        return self.sequence(index)[: self.targets[index]]

    def response(self, index: int) -> NDArray[np.int32]:
        """The tokens that carry loss."""
        return self.sequence(index)[self.targets[index] :]


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of several stretches begins, and the end. Shape [n + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
