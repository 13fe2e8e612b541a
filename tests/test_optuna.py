"""`hydra/sweeper=optuna`: a search that optimises a number of its runs' results, and can be continued."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command import METHOD, TINY, Ended, retable, write_plugin

optuna = pytest.importorskip("optuna", reason="optuna is missing: pip install retable[optuna]")

SPACE = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def search(*words: str, metric: str = "train/loss", direction: str = "minimize", trials: int = 2) -> Ended:
    settings = [f"metric={metric}", f"direction={direction}", f"n_trials={trials}"]
    return retable("-m", *TINY, "hydra/sweeper=optuna", *(f"hydra.sweeper.{each}" for each in settings), *words)


def study() -> Any:
    (name,) = [each.study_name for each in optuna.get_all_study_summaries(STORAGE)]
    return optuna.load_study(study_name=name, storage=STORAGE)


STORAGE = "sqlite:///outputs/studies/optuna.db"


def results() -> dict[float, float]:
    """Learning rate -> the loss that the run's result names."""
    found = {}
    for path in Path("outputs/runs").glob("*/result.json"):
        config = json.loads((path.parent / "environment.json").read_text())["overrides"]
        (rate,) = [float(word.partition("=")[2]) for word in config if word.startswith("optimizer.lr=")]
        found[rate] = json.loads(path.read_text())["method_metrics"]["train/loss"]
    return found


def test_study_is_continued_and_finds_the_best_run() -> None:
    assert search(SPACE).code == 0
    first = {trial.params["optimizer.lr"]: trial.value for trial in study().trials}
    assert first == results() and len(first) == 2

    # A trial that was interrupted: its values are tried again before new ones are.
    interrupted = study().ask().suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
    ended = search(SPACE, trials=4)
    assert ended.code == 0, ended.err
    complete = {trial.params["optimizer.lr"]: trial.value for trial in study().trials if trial.value is not None}
    assert complete == results() and len(complete) == 4
    assert first.items() <= complete.items() and interrupted in complete
    best = min(complete, key=complete.__getitem__)
    assert f"Best train/loss: {complete[best]:.6g} with optimizer.lr={best}" in ended.out

    ended = search(SPACE, trials=4)  # nothing is missing
    assert ended.code == 0 and "0 of 4 trials to run" in ended.err
    assert len(results()) == 4


def test_direction_is_followed() -> None:
    ended = search("optimizer.lr=1e-6,1e-1", "hydra/sweeper/sampler=grid", direction="maximize")
    assert ended.code == 0, ended.err
    assert len(results()) == 2
    assert f"Best train/loss: {max(results().values()):.6g}" in ended.out


def test_search_of_other_runs_is_another_study() -> None:
    assert search(SPACE, trials=1).code == 0
    assert search(SPACE, "seed=2", trials=1).code == 0
    assert len(optuna.get_all_study_summaries(STORAGE)) == 2


@pytest.mark.parametrize(("scales", "complete"), [("1,2", 1), pytest.param("2,3", 0, marks=pytest.mark.slow)])
def test_failing_trial_stops_no_other_and_is_listed(folder: Path, scales: str, complete: int) -> None:
    failing = METHOD.replace('"""The scaled loss."""', 'assert self.config.scale < 2, "too much"')
    write_plugin(folder / "plugins", "mine", failing)
    words = ["plugins=plugins", "method=private/mine", f"method.scale={scales}", "hydra/sweeper/sampler=grid"]
    ended = search(*words)
    assert ended.code == 1
    assert len([trial for trial in study().trials if trial.value is not None]) == complete
    assert f"{2 - complete} trials failed:" in ended.err and "too much" in ended.err
    assert ("with method.scale=1" in ended.out) == bool(complete)


@pytest.mark.parametrize("metric", ["train/lost", pytest.param("train", marks=pytest.mark.slow)])
def test_number_that_no_result_has_is_named(metric: str) -> None:
    ended = search(SPACE, metric=metric)
    assert ended.code == 1
    assert f"hydra.sweeper.metric={metric}: must be one of train/loss" in ended.error


def test_metric_and_direction_must_be_given() -> None:
    ended = retable("-m", *TINY, "hydra/sweeper=optuna", SPACE)
    assert ended.code == 1
    assert "hydra.sweeper" in ended.error and not Path("outputs").exists()
