"""Small bandits, and a context in which an algorithm plays them without a run."""

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from methods.bandits.base import Policy
from methods.bandits.environment import Bandit, BanditConfig, GaussianBandit

INSTANCES: dict[str, dict[str, Any]] = {
    "standard": {},
    "full": {"kind": "full"},
    "neighbour": {"kind": "matrix", "sigma": ((1.0, None, None), (None, 1.0, 1.0), (None, None, 1.0))},
    "revealing": {
        "kind": "matrix",
        "means": (0.5, 0.4, 0.4, 0.4, 0.0),
        "sigma": (*(tuple(1.0 if i == j else None for j in range(5)) for i in range(4)), (0.2,) * 5),
    },
    "blind": {
        "kind": "matrix",
        "means": (1.0, 0.5, 0.0),
        "sigma": ((None, None, None), (None, 1.0, None), (1.0, 1.0, 1.0)),
    },
    "random": {"kind": "random", "means": None, "arms": 6, "density": 0.4},
}


@pytest.fixture
def composer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Hydra set up, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="conf", version_base="1.3"):
        yield tmp_path


@pytest.fixture
def bandit() -> Callable[..., Bandit]:
    def load(name: str, horizon: int = 200, repetitions: int = 4, **changed: Any) -> Bandit:
        settings = {**INSTANCES[name], "horizon": horizon, "repetitions": repetitions, **changed}
        return GaussianBandit(BanditConfig(**settings)).load(0)

    return load


class Playing:
    """A context that keeps what is logged and, with every checkpoint asked for, the state as it is stored."""

    def __init__(self, dataset: Bandit, seed: int = 1, kept: bytes | None = None) -> None:
        self.dataset, self.seed, self.kept = dataset, seed, kept
        self.logged: dict[int, Mapping[str, float]] = {}

    def steps(self, what: str, total: int) -> Iterator[int]:
        yield from range(total)

    def restore(self, method: Policy) -> None:
        if self.kept is not None:
            method.load_state_dict(torch.load(io.BytesIO(self.kept), weights_only=True))

    def checkpoint(self, method: Policy, step: int) -> None:
        self.kept = _stored(method)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.logged[step] = metrics


def _stored(method: Policy) -> bytes:
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    return file.getvalue()


@pytest.fixture
def playing() -> type[Playing]:
    return Playing


class OneByOne:
    """A single repetition as a plain loop, to compare with: its statistics, and the noise of the first block.

    A subclass says what is played. Plays of the repetitions of a run are compared with it one after the other.
    """

    def __init__(self, bandit: Bandit, repetition: int, seed: int = 1, own: bool = False) -> None:
        self.bandit, self.precision = bandit, bandit.precision_KK
        if own:
            self.precision = np.diag(np.diag(self.precision))
        arms, repetitions = len(bandit.means_K), bandit.repetitions
        block = min(max(2**18 // (repetitions * arms), 1), 1024)
        assert bandit.horizon <= block, "one block, so that the noise is known"
        told = int((self.precision > 0).sum(1).max())
        self.noise = np.random.default_rng([seed, 0, 0]).standard_normal((block, repetitions, told))[:, repetition]
        self.draws = np.random.default_rng([seed, 0, 1]).standard_normal((block, repetitions, arms))[:, repetition]
        self.plays, self.information, self.sums = ([0.0] * arms for _ in range(3))

    @property
    def means(self) -> list[float]:
        return [total / known for total, known in zip(self.sums, self.information, strict=True)]

    def choose(self, now: int) -> int:
        raise NotImplementedError

    def play(self) -> list[float]:
        arms = len(self.plays)
        for now in range(1, self.bandit.horizon + 1):
            arm = now - 1 if now <= arms else self.choose(now)
            self.plays[arm] += 1
            told = [j for j in range(arms) if self.precision[arm, j] > 0]
            filled = [j for j in range(arms) if j not in told][: self.noise.shape[1] - len(told)]
            for draw, j in zip(self.noise[now - 1], sorted([*told, *filled]), strict=True):
                sigma = self.precision[arm, j] ** -0.5 if j in told else float("inf")
                if sigma < float("inf"):
                    self.information[j] += 1 / sigma**2
                    self.sums[j] += (self.bandit.means_K[j] + sigma * draw) / sigma**2
        return self.plays


@pytest.fixture
def one_by_one() -> type[OneByOne]:
    return OneByOne
