"""The files of a run: their state, and that none is ever half written."""

import json
import math
import os
from pathlib import Path

import pytest

from runners import record
from runners.compose import RunSpec, run_spec
from runners.errors import UserError
from runners.record import Recorder, read_result, set_aside, status, write_atomically, write_json
from tests.command import UNTRAINED


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
