"""What every method is: `run(context) -> metrics`, with a state that survives a restart.

The kinds of method (`methods/objective.py`, `methods/merger.py`) are base classes that implement `run`. A method that
fits none of them overrides it, and still gets its identity, its folder and its place in the table.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from methods.batch import Batch
from methods.examples import Examples
from methods.generation import Sampling, Written
from methods.kinds import Kind


class Context(Protocol):
    """What a run offers its method and its parts; without a model (`model=none`) only what needs none."""

    config: dict[str, Any]  # the whole resolved configuration
    seed: int
    folder: Path
    kind: Kind

    @property
    def tokenizer(self) -> Any:
        """Of transformers; None for an image classifier."""
        ...

    @property
    def dataset(self) -> Any:
        """The data of a set that is no text (`methods/dataset.py`), as its class loads them."""
        ...

    @property
    def examples(self) -> Examples:
        """The training examples."""
        ...

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Prompt and completion of all training examples, in their order, before they were tokenised.

        Raises:
            UserError: some were too long and were dropped.
        """
        ...

    @property
    def plain_texts(self) -> list[tuple[str, str]]:
        """As `texts`, with prompts as the data have them, in no chat template."""
        ...

    def tokenized(self, dataset: Mapping[str, Any]) -> Examples:
        """The examples of other `dataset:` settings, for the same model."""
        ...

    def role(self, name: str) -> nn.Module:
        """The model of a role, ready to be called."""
        ...

    @property
    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        ...

    @property
    def trained_names(self) -> list[str]:
        """Names of the weights that are trained."""
        ...

    def measure(
        self,
        what: str,
        values: Callable[[nn.Module, Batch], Tensor],
        per: Literal["example", "token"] = "example",
        role: str | None = None,
    ) -> NDArray[np.float64]:
        """Measure every training example once with the model that training starts from (evaluation mode, no gradient).

        What was measured with the same model and data before is not measured again; all processes share the work.

        Args:
            what: names it, for its cache and for people.
            values: from the model and a batch to a value for each of its sequences [S] or target tokens [K].
            per: which of the two.
            role: `reference` for the model of that role, where the run names another one for it.

        Returns:
            In the order of the data set: [examples], or all target tokens, one example after the other.
        """
        ...

    def generate(self, what: str, prompts: Sequence[Sequence[int]], sampling: Sampling, batch_size: int) -> Examples:
        """Let the model that training starts from continue prompts (token ids); targets begin after the prompt.

        It is done once for a model, prompts and settings, and shared by all runs; an interrupted one is continued.
        """
        ...

    def cached(
        self, what: str, decides: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors that depend on the model that training starts from and on `decides` alone: made once, then read.

        `make` is called by all processes together, and must return the same in each.
        """
        ...

    def steps(self, what: str, total: int) -> Iterator[int]:
        """0, 1, ... of work that takes a while: with a progress bar, and an end where the run is told to stop.

        All processes must take equally many steps.
        """
        ...

    def unsharded(self) -> nn.Module:
        """The model that training starts from, whole on every process: for gradients of single examples.

        What is not trained needs no gradient, as in training.
        """
        ...

    def share_of(self, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's share of tensors that are shaped like the trained weights."""
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

    def sample(self, role: str, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[list[int]]:
        """What a role's model, as it is now, continues prompts with; each process its own prompts, all equally many."""
        ...

    def write(self, role: str, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Written]:
        """As `sample`, with how likely each token was where it was drawn, and whether the continuation is complete."""
        ...

    @property
    def rank(self) -> int:
        """Which of the run's processes this is, from 0."""
        ...

    def gathered(self, value: Any) -> list[Any]:
        """What every process passes, in the order of their ranks: numbers, tensors on the CPU, containers of them."""
        ...

    def follow(self, role: str, leader: str, rate: float) -> None:
        """Move a frozen role's weights the part `rate` of the way to those of a trained one (moving average)."""
        ...

    def start_weights(self) -> dict[str, Tensor]:
        """The weights that the run of `model.from_run` started from, on the CPU."""
        ...

    def run_weights(self, number: int = 0) -> dict[str, Tensor]:
        """The final weights of the run of `model.from_run`, or of one of `model.from_runs`, on the CPU."""
        ...

    @property
    def run_count(self) -> int:
        """How many runs this one starts from."""
        ...

    def score(self, weights: Mapping[str, Tensor], task: Mapping[str, Any], metric: str) -> float:
        """What an lm-eval task (with the keys of one of `evaluation.tasks`) gives to weights."""
        ...

    def save_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Make `weights` the run's final model."""
        ...

    def checkpoint(self, method: "Method", step: int) -> None:
        """Keep the state of a `method` that does not train, after `step`; what it logs later is logged again."""
        ...

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics, of a step or of the whole run."""
        ...


class Method:
    """Base of all methods.

    `config` is the frozen dataclass of the method's hyper-parameters: annotate it in the subclass
    (`config: FlowConfig`), and the YAML of the same name is checked against it.
    """

    kinds: ClassVar[tuple[str, ...]] = ()  # kinds of model it works on
    trained: ClassVar[tuple[str, ...]] = ()  # its roles that are trained
    frozen: ClassVar[tuple[str, ...]] = ()  # its roles that are not
    # Types of data (`dataset.type`) that it can work on; none: it looks at none.
    data: ClassVar[tuple[str, ...]] = ()
    prompted: ClassVar[bool] = False  # it answers the prompts of the data set
    merges: ClassVar[str | None] = None  # "run" or "runs": its final model is made of those of finished runs
    files: ClassVar[tuple[str, ...]] = ()  # keys of its settings that name files; their content is part of the identity
    # What it does not combine with, and why: choices by name ("adapter=lora").
    excludes: ClassVar[Mapping[str, str]] = {}

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
