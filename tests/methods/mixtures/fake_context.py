"""What a run offers a fit, in the smallest form: problems, steps, what is logged and kept."""

from collections.abc import Iterator, Sequence
from typing import Any

from methods.mixtures.base import MixtureFit
from methods.mixtures.mixture import MixtureData


class FakeContext:
    """`stop_after`: raise once so many iterations are kept. `state`: what an earlier run kept."""

    def __init__(self, dataset: Sequence[MixtureData], state: Any = None, stop_after: int | None = None) -> None:
        self.dataset, self.state, self.stop_after = list(dataset), state, stop_after
        self.logged: dict[int, dict[str, float]] = {}

    def restore(self, method: MixtureFit) -> None:
        if self.state is not None:
            method.load_state_dict(self.state)

    def steps(self, _what: str, total: int) -> Iterator[int]:
        yield from range(total)

    def log(self, metrics: dict[str, float], step: int) -> None:
        assert step not in self.logged
        self.logged[step] = dict(metrics)

    def checkpoint(self, method: MixtureFit, step: int) -> None:
        self.state = method.state_dict()
        if step == self.stop_after:
            raise InterruptedError


def fitted(method: MixtureFit, dataset: Sequence[MixtureData]) -> dict[str, float]:
    """What a fit reports."""
    return dict(method.run(FakeContext(dataset)))  # type: ignore[arg-type]
