"""Replay: train also on data that the base model was trained on, where there is any.

    L(theta) = L_F(theta) + lambda E_{z in old data}[-log p_theta(z)]

The oldest remedy against forgetting (rehearsal), and what context-free synthetic data does without.
"""

from dataclasses import dataclass
from typing import Any

from methods.examples import Examples
from methods.method import Context
from methods.mix.base import Mix, MixConfig


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(MixConfig):
    """dataset: the old data, with the keys of `dataset:`."""

    dataset: dict[str, Any]


class Replay(Mix):
    """Old data, trained on beside the data set."""

    config: ReplayConfig

    def examples(self, context: Context) -> Examples:
        """Load and tokenise it."""
        return context.tokenized(self.config.dataset)
