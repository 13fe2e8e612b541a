"""A whole copy of a trained model that only writes (`engine.sampler=copy`).

Sharded over processes (ZeRO 3), the engine's own model gathers every layer for every token. A copy is gathered once
after each time the weights have moved, and then written with at once, at the price of one more model in the memory of
every process. After each gathering the copy's checksum is compared with that of the weights that were gathered: a
sampler that keeps old weights writes on without an error, and rewards just stay where they are.
"""

from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from runners.engine import TrainingEngine
from runners.errors import UserError


class WeightCopy:
    """A model that follows an engine's weights."""

    def __init__(self, model: nn.Module, engine: TrainingEngine) -> None:
        """model: built like the engine's, whole, on its device."""
        self._model, self._engine = model.eval().requires_grad_(False), engine
        self._at: int | None = None  # steps of the engine when it was gathered

    def current(self) -> nn.Module:
        """The model with the weights that the engine has now; all processes ask together.

        Raises:
            UserError: they did not arrive.
        """
        steps = int(self._engine.engine.global_steps)
        if steps != self._at:
            self._gather()
            self._at = steps
        return self._model

    @torch.no_grad()
    def _gather(self) -> None:
        source: Any = self._engine.engine.module
        sharded = self._engine.zero_stage == 3
        own = dict(self._model.named_parameters())
        for name, parameter in source.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
                self._take(own[name], parameter.data)
                if checksum(own[name]) != checksum(parameter.data.to(own[name].dtype)):
                    raise UserError(
                        f"engine.sampler=copy: {name} differs from the trained weights after it was copied; "
                        "engine.sampler=in_place samples from the trained model itself"
                    )

    @staticmethod
    def _take(own: Tensor, trained: Tensor) -> None:
        own.copy_(trained)


def checksum(weights: Tensor) -> int:
    """A number that changes when a bit of the tensor does: the sum of its bits, taken as whole numbers."""
    kinds = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
    return int(weights.detach().contiguous().view(kinds[weights.element_size()]).sum(dtype=torch.int64))
