"""What every method is: `run(context) -> metrics`, with a state that survives a restart.

The kinds of method (`methods/objective.py`, ...) are base classes that implement `run`. A method that fits
none of them overrides it, and still gets its identity, its folder and its place in the table.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import nn

from methods.batch import Batch
from methods.kinds import Causal


class Context(Protocol):
    """What a run offers its method."""

    config: dict[str, Any]  # the whole resolved configuration
    seed: int
    folder: Path
    kind: Causal

    @property
    def examples(self) -> int:
        """Number of training examples."""
        ...

    def role(self, name: str) -> nn.Module:
        """The model of a role, ready to be called."""
        ...

    def batches(self, description: str) -> Iterator[Batch]:
        """All training examples once, in the order of the data set, in micro-batches, with a progress bar."""
        ...

    def restore(self, method: "Method") -> None:
        """Load into `method` what it had computed before the run was interrupted, if anything."""
        ...

    def prepared(self, method: "Method") -> None:
        """Keep what `method` has computed so far, in case the run is interrupted."""
        ...

    def train(self, objective: "Method") -> Mapping[str, float]:
        """Minimise the objective on the trained role; returns the run's training metrics."""
        ...

    def log(self, metrics: Mapping[str, float]) -> None:
        """Record metrics that belong to no training step."""
        ...


class Method:
    """Base of all methods.

    `config` is the frozen dataclass of the method's hyper-parameters: annotate it in the subclass
    (`config: FlowConfig`), and the YAML of the same name is checked against it.
    """

    kinds: ClassVar[tuple[str, ...]] = ()  # kinds of model it works on
    trained: ClassVar[tuple[str, ...]] = ()  # its roles that are trained
    frozen: ClassVar[tuple[str, ...]] = ()  # its roles that are not

    def __init__(self, config: Any) -> None:
        self.config = config

    def run(self, context: Context) -> Mapping[str, float]:
        """Do what the method does; return the numbers it reports besides the evaluation's."""
        raise NotImplementedError(f"{type(self).__name__} must implement run")

    def state_dict(self) -> dict[str, Any]:
        """What changed and is needed to continue the run: tensors, numbers, strings, containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
