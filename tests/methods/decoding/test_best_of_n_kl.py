"""Best of n on finite distributions: the random model against a walk through its sequences, and what a run finds."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals import best_of_n
from methods.decoding.best_of_n_kl import (
    BestOfNKl,
    BestOfNKlConfig,
    FiniteOutcomes,
    FiniteOutcomesConfig,
    RandomModel,
    enumerated,
)
from tests.command import retable

MODEL = RandomModel.draw(4, 5, 0.7, np.random.default_rng(0))


def walked(model: RandomModel, length: int) -> list[tuple[int, float]]:
    """Length and log-probability of every sequence, one symbol after the other."""
    found: list[tuple[int, float]] = []

    def go(state: np.ndarray, logp: float, step: int) -> None:
        if step == length:
            found.append((step, logp))
            return
        logits = state @ model.output_HT / model.temperature
        logps = logits - math.log(np.exp(logits).sum())
        found.append((step, logp + logps[0]))
        for symbol in range(1, len(logits)):
            go(np.tanh(state @ model.recurrent_HH + model.embedding_TH[symbol]), logp + logps[symbol], step + 1)

    go(np.tanh(model.embedding_TH[0]), 0.0, 0)
    return found


@pytest.mark.parametrize("length", [1, 3])
def test_enumeration_is_a_walk_through_all_sequences(length: int) -> None:
    logps, lengths = enumerated(MODEL, length)
    assert len(logps) == sum(3**step for step in range(length + 1))
    assert float(np.exp(logps).sum()) == pytest.approx(1)
    expected = sorted(walked(MODEL, length))
    found = sorted(zip(lengths.tolist(), logps.tolist(), strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def loaded(seed: int = 1, **settings: Any) -> Any:
    return FiniteOutcomes(FiniteOutcomesConfig(**settings)).load(seed)


def test_distributions_made_by_hand() -> None:
    assert np.exp(loaded(source="uniform", size=4).logps_L).tolist() == pytest.approx([0.25] * 4)
    rare = loaded(source="rare", top=1e-4)
    assert np.exp(rare.logps_L).tolist() == pytest.approx([0.9999, 1e-4]) and rare.rewards_L[1] > rare.rewards_L[0]


def test_rewards_of_the_model() -> None:
    random, likelihood, length = (loaded(reward=reward) for reward in ("random", "likelihood", "length"))
    assert len(random.logps_L) == 781
    np.testing.assert_array_equal(random.logps_L, likelihood.logps_L)
    np.testing.assert_array_equal(likelihood.rewards_L, likelihood.logps_L)
    assert set(length.rewards_L) == {0.0, -1.0, -2.0, -3.0, -4.0}
    assert len(set(random.rewards_L)) == 781
    assert not np.array_equal(loaded(seed=2).logps_L, random.logps_L)


def test_a_cold_model_repeats_itself() -> None:
    cold, model, hot = (float(np.exp(2 * loaded(temperature=t).logps_L).sum()) for t in (0.3, 1.0, 1e9))
    assert cold > 2 * model
    # Of equally likely symbols a sequence of s before its end has (1/6)^(s + 1), one of 4 has (1/6)^4.
    assert hot == pytest.approx(sum(5**s * 6.0 ** (-2 * (s + 1)) for s in range(4)) + 5**4 * 6.0**-8)


class Context:
    """What a run offers."""

    def __init__(self, dataset: Any, seed: int = 1) -> None:
        self.dataset, self.seed = dataset, seed
        self.logged: dict[int, dict[str, float]] = {}

    def steps(self, _: str, total: int) -> Iterator[int]:
        return iter(range(total))

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged[step] = metrics


def studied(dataset: Any, **settings: Any) -> tuple[Context, dict[str, float]]:
    context = Context(dataset)
    return context, dict(BestOfNKl(BestOfNKlConfig(**settings)).run(context))  # type: ignore[arg-type]


def test_what_a_run_finds_of_two_even_outcomes() -> None:
    context, found = studied(loaded(source="uniform", size=2), largest=5, draws=50)
    assert list(context.logged) == [1, 2, 4]
    assert found["kl/4"] == pytest.approx(0.459356, abs=6e-7)
    assert found["formula/4"] == pytest.approx(0.636294, abs=6e-7)
    assert found["expected_estimate/4"] == pytest.approx(0.499124, abs=6e-7)
    assert found["estimate/4"] == pytest.approx(0.499124, abs=6e-7)  # all outcomes are equally likely
    assert found["win_rate/4"] == pytest.approx(0.71875)
    assert found["outcomes/count"] == 2 and found["outcomes/collision"] == pytest.approx(0.5)
    for name, of in (("estimator", "estimate"), ("formula", "formula")):
        gaps = [abs(found[f"{of}/{n}"] - found[f"kl/{n}"]) for n in (1, 2, 4)]
        assert [metrics[f"error/{name}"] for metrics in context.logged.values()] == pytest.approx(gaps)
        assert found[f"error/{name}_mean"] == pytest.approx(np.mean(gaps))
        assert found[f"error/{name}_largest"] == pytest.approx(max(gaps))


@pytest.mark.parametrize("reward", ["random", "likelihood", "length"])
def test_bounds_hold_on_the_model_and_the_estimator_is_nearer(reward: str) -> None:
    data = loaded(reward=reward, temperature=0.5)
    context, found = studied(data, largest=128, draws=400)
    for n, metrics in context.logged.items():
        assert metrics["kl/exact"] <= metrics["kl/formula"] + 1e-12
        assert metrics["kl/lower_bound"] <= metrics["kl/exact"] + 1e-12 or reward == "length"
        assert 0 <= metrics["kl/estimate"] <= metrics["kl/formula"] + 1e-12
        assert metrics["win_rate/upper_bound"] == n / (n + 1)
    if reward != "length":  # what ties does the estimator not see: it is of the probability of the outcome alone
        assert found["error/estimator_mean"] < found["error/formula_mean"] / 2
        assert found["estimate/128"] == pytest.approx(found["kl/128"], rel=0.1)
    of = best_of_n.outcomes(np.exp(data.logps_L), data.rewards_L)
    assert found["kl/64"] == pytest.approx(best_of_n.kl(of, 64))


RUN = (
    "model=none", "dataset=decoding/outcomes", "method=decoding/best_of_n_kl", "evaluation=none", "tracker=none",
)  # fmt: skip


def test_a_run_ends_with_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = retable(*RUN, "dataset.source=rare", "method.largest=16")
    assert ended.code == 0, ended.err
    (path,) = (tmp_path / "outputs").glob("*/*/result.json")
    metrics = json.loads(path.read_text())["method_metrics"]
    assert metrics["kl/16"] == pytest.approx(1.416096, abs=6e-7)
    assert metrics["expected_estimate/16"] == pytest.approx(1.450249, abs=6e-7)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("dataset.length=12", "dataset.symbols=5: to the power of dataset.length=12 must be at most 100000"),
        ("dataset.top=1", "dataset.top=1: should be less than 1"),
        ("dataset.temperature=0", "dataset.temperature=0: should be greater than 0"),
        ("method.largest=0", "method.largest=0: should be greater than 0"),
    ],
)
def test_bad_settings_are_refused_in_one_line(word: str, said: str) -> None:
    ended = retable(*RUN, word)
    assert ended.code == 1 and said in ended.error and len(ended.err.strip().splitlines()) == 1
