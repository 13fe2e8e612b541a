"""What every run offers its method (`methods.method.Context`); `model_context` adds what needs a model."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar

from methods.adapter.base import Adapter
from methods.dataset import Dataset
from methods.method import Method
from methods.mix.base import Mix
from methods.penalty.base import Penalty
from methods.selection.base import Selector
from runners import preemption, processes, signatures, training
from runners.compose import RunSpec
from runners.errors import UserError
from runners.progress import progress
from runners.record import Recorder
from runners.tracker import Tracker

T = TypeVar("T", Method, Adapter, Penalty, Mix, Dataset, Selector)


class RunContext:
    """What every run offers its method: seed, folder, data that are no text, logging, its state kept and given back."""

    def __init__(self, spec: RunSpec, recorder: Recorder, tracker: Tracker, rank: int, world: int) -> None:
        self.spec, self.config, self.seed, self.folder = spec, spec.config, spec.seed, spec.folder
        self._recorder, self._tracker = recorder, tracker
        self._rank, self._world = rank, world
        self.method = build(Method, "method", spec.config)

    @property
    def rank(self) -> int:
        """Which of the run's processes this is, from 0."""
        return self._rank

    def gathered(self, value: Any) -> list[Any]:
        """What every process passes, in the order of their ranks."""
        return processes.gather(value)

    @cached_property
    def dataset(self) -> Any:
        """The data of a set that is no text."""
        return build(Dataset, "dataset", self.config).load(self.seed)

    def steps(self, what: str, total: int) -> Iterator[int]:
        """0, 1, ... of work that takes a while, with a progress bar; all processes take equally many steps."""
        tell = self.tell(what)
        with progress(what, total) as advance:
            for step in range(total):
                if processes.any_rank(preemption.requested()):
                    raise processes.stop(f"before training, {what}")
                yield step
                advance(1)
                tell(step + 1, total)

    def restore(self, method: Method) -> None:
        """Give a method back what it had computed before the run was interrupted."""
        training.restore_method(method, training.method_state_of(self.folder, None))
        self._recorder.forget_after(training.method_step(self.folder))

    def checkpoint(self, method: Method, step: int) -> None:
        """Keep a method's state after a step; told to stop, the run ends here."""
        training.save_method(method, self.folder, step)
        if processes.any_rank(preemption.requested()):
            raise processes.stop(f"after step {step}")

    def prepared(self, method: Method) -> None:
        """Keep what a method has computed before its training."""
        if self._rank == 0:
            training.save_prepared(method, self.folder)

    def tell(self, phase: str) -> Callable[[int, int], None]:
        """A function of (done, total) that notes how far a phase of the run is, for `job=status`."""
        return self._recorder.progress(phase)

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics, of a step or of the whole run."""
        self._recorder.metrics(metrics, step)
        if step is None:
            self._tracker.summary(dict(metrics))
        else:
            self._tracker.log(dict(metrics), step)

    def save_model(self) -> None:
        """Nothing to save without a model."""

    def close(self) -> None:
        """Nothing to free without a model."""


def build(base: type[T], group: str, config: Mapping[str, Any]) -> T:
    """Build what a group names (`_target_`), with its settings in its own dataclass.

    Raises:
        UserError: it is not a subclass of `base`.
    """
    settings = config[group]
    module_name, _, class_name = settings["_target_"].rpartition(".")
    class_ = getattr(importlib.import_module(module_name), class_name)
    config_type = signatures.config_class(class_)
    built = class_(config_type(**{key: value for key, value in settings.items() if key != "_target_"}))
    if not isinstance(built, base):
        raise UserError(
            f"{group}._target_={settings['_target_']}: must be a subclass of {base.__module__}.{base.__name__}"
        )
    return built
