"""What the optional parts of a run have in common: its adapter, its penalty, its mix of further data.

A part is chosen in a configuration group of its own (`adapter=lora penalty=l2_sp`), so that it combines with every
method. What it does not combine with, it says.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class Part:
    """Base of all parts.

    `config` is the frozen dataclass of its settings: annotate it in the subclass (`config: LoraConfig`), and the YAML
    of the same name is checked against it.
    """

    kinds: ClassVar[tuple[str, ...]] = ()  # kinds of model it works on
    data: ClassVar[tuple[str, ...]] = ()  # types of data (`dataset.type`) that it works on; none: all
    frozen: ClassVar[tuple[str, ...]] = ()  # further models it needs, started from the same weights
    # What it does not combine with, and why: choices by name ("adapter=lora", "method=finetune/linear_probe").
    excludes: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: Any) -> None:
        self.config = config
