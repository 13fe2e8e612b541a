"""The files of a run: their state, and that none is ever half written."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import pytest

from runners import checkpoints, record
from runners.compose import RunSpec, run_spec
from runners.errors import UserError
from runners.record import Recorder, read_result, set_aside, status, write_atomically, write_json
from tests.command import UNTRAINED
from tests.runs import write_done


@pytest.fixture
def spec(composer: Path) -> RunSpec:
    return run_spec(list(UNTRAINED))


def test_states_of_a_run(spec: RunSpec) -> None:
    assert status(spec).state == "missing"
    recorder = Recorder(spec)
    recorder.open({"python": "3"})
    assert status(spec).state == "missing"  # begun, not done
    recorder.failure(ValueError("\nfirst line\nsecond line"))
    failed = status(spec)
    assert (failed.state, failed.reason, failed.result) == ("failed", "ValueError: first line", None)
    recorder.result({"metrics": {"task": {"acc,none": 1.0}}})
    done = status(spec)
    assert done.state == "done" and done.result is not None
    assert not (spec.folder / "failure.json").exists()


def test_result_says_what_it_is_of(spec: RunSpec) -> None:
    spec.folder.mkdir(parents=True)
    Recorder(spec).result({"metrics": {}})
    result = read_result(spec.folder)
    assert result is not None
    expected = {"name": spec.name, "seed": 1, "method": "untrained", "identity": spec.identity, "source": spec.source,
                "experiment": "runs", "row": None, "scale": "mini", "parent": None, "metrics": {}}  # fmt: skip
    assert {key: result[key] for key in expected} == expected


def test_configuration_and_environment_are_written_first(spec: RunSpec) -> None:
    import yaml

    Recorder(spec).open({"python": "3"})
    assert yaml.safe_load((spec.folder / "config.yaml").read_text()) == spec.config
    environment = json.loads((spec.folder / "environment.json").read_text())
    assert environment["identity"] == spec.identity and environment["overrides"] == spec.overrides
    assert environment["python"] == "3" and environment["seed"] == 1


def test_overrides_of_the_environment_compose_the_run_again(spec: RunSpec) -> None:
    Recorder(spec).open({})
    overrides = json.loads((spec.folder / "environment.json").read_text())["overrides"]
    assert run_spec(overrides).identity == spec.identity


def test_metrics_are_appended_line_by_line(spec: RunSpec) -> None:
    recorder = Recorder(spec)
    recorder.open({})
    recorder.metrics({"train/loss": 2.0}, 1)
    recorder.metrics({"flow/temperature": 0.5}, None)
    lines = [json.loads(line) for line in (spec.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "train/loss": 2.0}, {"step": None, "flow/temperature": 0.5}]


def test_samples_are_a_line_each(spec: RunSpec) -> None:
    recorder = Recorder(spec)
    recorder.open({})
    recorder.samples("task", [{"doc": {"x": "é"}, "path": Path("a")}, {"doc": {}}])
    lines = (spec.folder / "samples" / "task.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"doc": {"x": "é"}, "path": "a"}, {"doc": {}}]


def test_nan_becomes_null_because_json_has_none(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1.0], "c": (2, {"d": -math.inf})})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": None, "b": [None, 1.0], "c": [2, {"d": None}]} and "NaN" not in text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new, but only half of it")
    assert path.read_text() == "old"


def of_experiment(spec: RunSpec, name: str) -> RunSpec:
    """The same run as another experiment has it: all that decides it is the same, its name is not."""
    return dataclasses.replace(spec, config={**spec.config, "experiment": {"name": name}, "row": "own"})


def write_weights(folder: Path) -> None:
    aside = checkpoints.written_aside(folder / "model")
    (aside / "model.safetensors").write_bytes(b"x")
    checkpoints.seal(aside, folder / "model")


def test_the_same_run_of_another_experiment_counts(spec: RunSpec) -> None:
    for name in ("paper/table", "table"):
        other = of_experiment(spec, name)
        assert other.identity == spec.identity and other.folder != spec.folder
        assert status(spec).state == "missing"
        folder = write_done(other)
        assert (status(spec).state, status(spec).folder) == ("done", folder)
        assert status(spec).result == read_result(folder)
        shutil.rmtree(folder)


def test_a_run_counts_only_where_source_and_whole_identity_are_the_same(spec: RunSpec) -> None:
    folder = write_done(of_experiment(spec, "paper/table"))
    result = read_result(folder)
    assert result is not None
    for changed in ({"source": "of before"}, {"identity": f"{spec.identity[:8]}99999999"}):
        write_json(folder / "result.json", {**result, **changed})
        assert status(spec).state == "missing"
    write_json(folder / "result.json", result)
    assert status(spec).state == "done"
    set_aside(folder)  # what a run was before is not counted
    assert status(spec).state == "missing"


def test_the_same_run_of_another_experiment_counts_in_further_folders_and_after_its_own(spec: RunSpec) -> None:
    here = dataclasses.replace(spec, config={**spec.config, "runs_from": ["cluster"]})
    there = dataclasses.replace(spec, config={**spec.config, "outputs": "cluster"})
    folder = write_done(of_experiment(there, "paper/table"))
    assert (status(here).state, status(here).folder) == ("done", folder)
    own = write_done(spec)
    assert (status(here).state, status(here).folder) == ("done", own)
    write_json(own / "result.json", {**(read_result(own) or {}), "source": "of before"})
    assert (status(here).state, status(here).folder) == ("done", folder)


def test_weights_are_taken_from_where_they_are(spec: RunSpec) -> None:
    """Of a run that is done here and for other experiments, any of them may hold the final weights."""
    assert record.weights(spec) == (spec.folder, f"{spec.folder} is not done")
    own, first, second = (write_done(run) for run in (spec, of_experiment(spec, "a/a"), of_experiment(spec, "b/b")))
    _, problem = record.weights(spec)
    assert problem is not None and all(f"{folder} holds no final weights" in problem for folder in (own, first, second))
    write_weights(second)
    assert record.weights(spec) == (second, None)
    write_weights(first)
    (first / "model" / "model.safetensors").write_bytes(b"longer")
    assert record.weights(spec) == (second, None)
    write_weights(own)
    assert record.weights(spec) == (own, None)


def test_a_damaged_result_is_named(spec: RunSpec) -> None:
    spec.folder.mkdir(parents=True)
    (spec.folder / "result.json").write_text('{"metrics": ')
    with pytest.raises(UserError, match=r"result\.json: must be a result as it was written"):
        status(spec)


def test_set_aside_keeps_every_former_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record.time, "strftime", lambda *_: "20260101-000000")
    for text in ("first", "second"):
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "result.json").write_text(text)
        aside = set_aside(folder)
        assert not folder.exists() and (aside / "result.json").read_text() == text
    assert len(list(tmp_path.glob("run.before-*"))) == 2
