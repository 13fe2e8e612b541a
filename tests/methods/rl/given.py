"""Responses with log-probabilities that are given, as a batch of ragged sequences."""

import torch

from methods.batch import Batch


def ragged(lengths):
    """A batch of one prompt token and `lengths` response tokens in each row."""
    width = 1 + max(lengths)
    is_target = torch.zeros(len(lengths), width, dtype=torch.bool)
    sequence = torch.full((len(lengths), width), -1)
    for row, length in enumerate(lengths):
        is_target[row, 1 : 1 + length] = True
        sequence[row, : 1 + length] = row
    ids = torch.ones(len(lengths), width, dtype=torch.long)
    return Batch(ids, None, is_target, sequence, torch.arange(len(lengths)))


def flat(rows):
    """Values of each row's tokens, one row after the other."""
    return torch.tensor([value for row in rows for value in row])


def padded(values_K, batch):
    """[B, T] of the target tokens alone, 0 behind them."""
    lengths = batch.target_mask_BT.sum(1).tolist()
    return torch.nn.utils.rnn.pad_sequence(values_K.split(lengths), batch_first=True)
