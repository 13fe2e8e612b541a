"""Tokenised training sequences: what a data set, generated text and replayed text have in common."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Examples:
    """Token sequences, one after the other in flat arrays (a set of 400k must stay small).

    tokens: int32. starts: int64 [n + 1], where each sequence begins. targets: int64 [n], the offset inside its
    sequence of the first token that carries loss (at least 1: a first token is predicted from nothing).
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    targets: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int] | NDArray[np.int32]], targets: Iterable[int]) -> "Examples":
        """From sequences of token ids and, for each, the offset of its first target."""
        arrays: list[NDArray[np.int32]] = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
        lengths = np.array([len(array) for array in arrays], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)
        return cls(tokens, starts, np.minimum(np.array(list(targets), dtype=np.int64), lengths))

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
        """Those of at most `length` tokens; with `cut` the others too, as far as they go."""
        fitting = self.lengths <= length
        kept = range(len(self)) if cut else np.flatnonzero(fitting).tolist()
        return Examples.of([self.sequence(i)[:length] for i in kept], [int(self.targets[i]) for i in kept])

    def prompt(self, index: int) -> NDArray[np.int32]:
        """What stands before the first token that carries loss."""
        return self.sequence(index)[: self.targets[index]]
