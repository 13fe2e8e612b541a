"""Sequential fine-tuning averaging (SFA): training is drawn back to its starting point a few times.

An option of FLOW's code (arXiv 2502.02797): every `frequency` of all T steps

    theta <- beta theta0 + (1 - beta) theta            the optimizer's states stay as they are
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le

from methods.penalty.base import Penalty


@dataclass(frozen=True, kw_only=True)
class SfaConfig:
    """frequency: the share of all steps between two averages. beta: weight of the starting point in an average."""

    frequency: Annotated[float, Gt(0.0), Le(1.0)] = 0.25
    beta: Annotated[float, Ge(0.0), Le(1.0)] = 0.5


class Sfa(Penalty):
    """Average the weights with those that training started from, every quarter of the steps."""

    config: SfaConfig
    anchored = True
    excludes: ClassVar[Mapping[str, str]] = {
        "adapter=lora": "LoRA trains factors that start at random; an average with their start is none of weights",
    }

    def pull(self, step: int, total: int, learning_rate: float) -> float:
        """beta after every `frequency` of the steps."""
        every = self.config.frequency * total
        # As often as the share says, where its steps are no whole number.
        passed = math.floor(step / every + 1e-9) > math.floor((step - 1) / every + 1e-9)
        return self.config.beta if passed else 0.0
