"""The processes that evaluate together: those of torch.distributed's default group, or this one alone."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import distributed

Value = TypeVar("Value")


class Ranks:
    """Objects of Python between the ranks; every rank makes the same calls in the same order.

    Alone nothing is sent or copied.
    """

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank: int = distributed.get_rank() if together else 0
        self.count: int = distributed.get_world_size() if together else 1

    def exchange(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def from_first(self, value: Value) -> Value:
        """The value of rank 0."""
        if self.count == 1:
            return value
        values: list[Any] = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]
