"""The model as it was loaded: the 'pre-trained' row of a table. No paper; nothing is trained."""

from collections.abc import Mapping
from dataclasses import dataclass

from methods.method import Context, Method


@dataclass(frozen=True, kw_only=True)
class UntrainedConfig:
    """No hyper-parameters."""


class Untrained(Method):
    """The model as it was loaded, the pre-trained row of every table."""

    config: UntrainedConfig
    kinds = ("causal", "image")
    frozen = ("policy",)

    def run(self, context: Context) -> Mapping[str, float]:
        """Nothing to do: the run's evaluation measures the model as it is."""
        return {}
