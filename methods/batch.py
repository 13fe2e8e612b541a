"""The batch a method sees: rows of tokens, whatever their layout.

Legend: B rows, T tokens of a row, S sequences (examples), K target tokens of the whole batch.
A row holds one sequence (padded) or several (packed); methods need not know which, because everything they
compute is per target token (K), with the sequence each belongs to.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch of training sequences.

    input_ids_BT: long. position_ids_BT: long, restarting at each packed sequence; None when each row is one
    sequence padded on the right. target_mask_BT: bool, True where the token carries loss (never a
    sequence's first). sequence_BT: long, the row of `example_S` a token belongs to, -1 for padding.
    example_S: long, index of each sequence in the data set.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor | None
    target_mask_BT: Tensor
    sequence_BT: Tensor
    example_S: Tensor

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

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)


def mean_by_sequence(values_K: Tensor, batch: Batch) -> Tensor:
    """Mean of per-token values over each sequence's target tokens; NaN for a sequence without any. Returns [S]."""
    sequences = len(batch.example_S)
    total_S = torch.zeros(sequences, dtype=values_K.dtype, device=values_K.device)
    total_S = total_S.index_add(0, batch.sequence_K, values_K)
    return total_S / torch.bincount(batch.sequence_K, minlength=sequences)
