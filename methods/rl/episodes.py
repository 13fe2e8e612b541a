"""What a policy did in an environment: responses with what was asked, what they earned and where they came from.

A text that is answered once is the case of one turn: every response is an episode, and those to one prompt a group. In
several turns a response may have a parent, the one it was asked to improve.

Legend: N responses, F reward functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from methods.generation import Written


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """Responses of one process in one turn of training, on the CPU.

    prompts: token ids of all that the model was given [N]. written: its responses [N]. example_N: long, whose problem
    in the data set. group_N: long, which of them were drawn for one prompt. reward_N: float64, NaN where there is none.
    parts_NF: what each reward function said. feedback: what a response that is not right is told [N]. parent_N: long,
    the place in this list of the response it is to improve; -1: none. turn_N: long, from 0. old_logps, entropies: of
    the policy that wrote, by the engine that trains, for every token [N]; empty where nothing asks for them; values: of
    what a critic expected before it.
    """

    prompts: list[list[int]]
    written: list[Written]
    example_N: Tensor
    group_N: Tensor
    reward_N: Tensor
    parts_NF: Tensor
    feedback: list[str]
    parent_N: Tensor
    turn_N: Tensor
    old_logps: list[Tensor] = field(default_factory=list)
    entropies: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.written)

    @property
    def tokens_N(self) -> Tensor:
        """Tokens of each response. Returns long [N]."""
        return torch.tensor([len(written.tokens) for written in self.written], dtype=torch.long)

    @property
    def ended_N(self) -> Tensor:
        """Whether each response came to its end. Returns bool [N]."""
        return torch.tensor([written.ended for written in self.written], dtype=torch.bool)

    def at(self, places: Sequence[int]) -> "Episodes":
        """These responses alone, in this order; parents are those of the whole list."""
        index = torch.tensor(list(places), dtype=torch.long)
        picked: dict[str, Any] = {
            name: value[index] if isinstance(value, Tensor) else [value[place] for place in places] if value else []
            for name, value in vars(self).items()
        }
        return replace(self, **picked)


def joined(pieces: Sequence[Episodes]) -> Episodes:
    """Several, one after the other; groups keep apart, parents point into the whole."""
    groups = before = 0
    moved = []
    for piece in pieces:
        _, place_N = piece.group_N.unique(return_inverse=True)
        parent_N = torch.where(piece.parent_N >= 0, piece.parent_N + before, -1)
        moved.append(replace(piece, group_N=place_N + groups, parent_N=parent_N))
        groups += len(piece.group_N.unique())
        before += len(piece)
    together: dict[str, Any] = {
        name: torch.cat([getattr(piece, name) for piece in moved])
        if isinstance(value, Tensor)
        else [item for piece in moved for item in getattr(piece, name)]
        for name, value in vars(moved[0]).items()
    }
    return Episodes(**together)
