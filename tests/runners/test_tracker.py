"""What W&B records of a run (read back from its offline file), and what a failing W&B does to it.

Nothing here leaves the machine: the only server asked is a closed port of the loopback interface.
"""

import json
import logging
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from runners import tracker
from runners.tracker import NullTracker, Tracker, open_tracker

BLOCK = 32 * 1024
FULL, FIRST, LAST = 1, 2, 4


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no server but a closed port of this machine, no settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def wandb_settings(**changes: Any) -> dict[str, Any]:
    return {"name": "wandb", "project": "tables", "entity": None, "mode": "auto", **changes}


def open_in(folder: Path, **changes: Any) -> Tracker:
    return open_tracker(
        wandb_settings(**changes),
        folder=folder,
        name="mini-sft-seed1",
        group="flow/language",
        job_type="finetune/sft",
        config={"method": {"learning_rate": 1e-3}, "seed": 1},
        tags=("mini",),
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def read_records(path: Path) -> Iterator[Any]:
    """The records of W&B's log: a header of 7 bytes, then LevelDB's framing, a protobuf in each record."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data.startswith(b":W&B")
    position, body = 7, b""
    while position < len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        part = data[position + 7 : position + 7 + length]
        position += 7 + length
        body = part if kind in (FULL, FIRST) else body + part
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(body)
            yield record


def offline_file(folder: Path) -> Path:
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return path


def values(items: Any) -> dict[str, Any]:
    """`{"a/b": value}` of protobuf items that name their key as a string or as a path."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(folder: Path) -> list[dict[str, Any]]:
    return [
        values(record.history.item)
        for record in read_records(offline_file(folder))
        if record.WhichOneof("record_type") == "history"
    ]


def test_offline_file_holds_config_metrics_summary_and_table(folder: Path) -> None:
    with open_in(folder) as run:
        run.log({"loss": np.array(2.5), "rate": np.float32(0.5)}, step=10)
        run.log({"loss": math.nan, "norm": math.inf}, step=20)
        run.summary({"accuracy": 0.75, "skills": {"sorting": -math.inf}})
        run.table("results/all", ["method", "score"], [["sft", 1.5], ["flow", "missing"], ["base", None]])

    records = list(read_records(offline_file(folder)))
    (start,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (start.project, start.run_group, start.job_type) == ("tables", "flow/language", "finetune/sft")
    assert (start.display_name, list(start.tags)) == ("mini-sft-seed1", ["mini"])
    config = values(start.config.update)
    assert config["method"] == {"learning_rate": 1e-3} and config["seed"] == 1

    first, second, table = history(folder)
    assert (first["step"], first["loss"], first["rate"]) == (10, 2.5, 0.5)
    assert second["step"] == 20 and math.isnan(second["loss"]) and second["norm"] == math.inf
    assert {r.metric.glob_name: r.metric.step_metric for r in records if r.HasField("metric")}["*"] == "step"

    summary: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary.update(values(record.summary.update))
    assert summary["accuracy"] == 0.75 and summary["skills"] == {"sorting": -math.inf}

    written = offline_file(folder).parent / "files" / table["results/all/path"]
    assert json.loads(written.read_text()) == {
        "columns": ["method", "score"],
        "data": [["sft", 1.5], ["flow", "missing"], ["base", None]],
    }
    assert records[-1].WhichOneof("record_type") == "exit" and records[-1].exit.exit_code == 0


def test_everything_lies_in_the_folder_and_nothing_stays_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    hooks, environment = (sys.exit, sys.excepthook), dict(os.environ)
    with open_in(folder) as run:
        assert (sys.exit, sys.excepthook) == hooks
        run.table("results", ["method"], [["sft"]])
    assert dict(os.environ) == environment
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in folder.iterdir()] == ["wandb"]
    assert not services()
    assert "".join(capfd.readouterr()) == ""


def test_one_line_says_where_the_run_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), open_in(folder):
        pass
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(offline_file(folder).parent) in line


def test_metrics_of_a_resumed_run_are_kept_though_their_steps_go_back(folder: Path) -> None:
    with open_in(folder) as run:
        for step in (1, 2, 3, 2, 3, 4):
            run.log({"loss": float(step)}, step=step)
    assert [row["step"] for row in history(folder)] == [1, 2, 3, 2, 3, 4]


def test_caller_may_change_what_it_logged(folder: Path) -> None:
    losses, row = np.array(1.0), {"loss": 1.0}
    with open_in(folder) as run:
        row["other"] = losses
        run.log(row, step=1)
        losses += 1
        row["loss"] = 2.0
    (logged,) = history(folder)
    assert (logged["loss"], logged["other"]) == (1.0, 1.0)


def test_a_raising_block_marks_the_run_failed(folder: Path) -> None:
    with pytest.raises(KeyError), open_in(folder):
        raise KeyError("loss")
    assert list(read_records(offline_file(folder)))[-1].exit.exit_code == 1


def test_two_runs_at_once_keep_apart(tmp_path: Path) -> None:
    with open_in(tmp_path / "child") as child:
        child.log({"loss": 1.0}, step=1)
        with open_in(tmp_path / "parent") as parent:
            parent.log({"loss": 2.0}, step=1)
        child.log({"loss": 3.0}, step=2)
    assert [row["loss"] for row in history(tmp_path / "child")] == [1.0, 3.0]
    assert [row["loss"] for row in history(tmp_path / "parent")] == [2.0]


def services() -> list[psutil.Process]:
    """wandb's own processes, started by this one."""
    return [child for child in psutil.Process().children() if child.name() == "wandb-core"]


class FailingRun:
    """A W&B run of which one method raises."""

    id, url, dir = "id", "url", "dir/files"

    def __init__(self, broken: str) -> None:
        self.broken = broken
        self.calls: list[str] = []
        self.summary = self

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.broken:
            raise ConnectionResetError("Connection lost\nand more")

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        self._call("define_metric")

    def log(self, row: dict[str, Any]) -> None:
        self._call("log")

    def update(self, values: dict[str, Any]) -> None:
        self._call("summary")

    def finish(self, exit_code: int) -> None:
        self._call("finish")


@pytest.mark.parametrize("broken", ["define_metric", "log", "summary", "finish"])
def test_a_raising_call_is_one_warning(
    broken: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing = FailingRun(broken)
    monkeypatch.setattr("wandb.init", lambda **_: failing)
    with open_in(folder) as run:
        for step in range(3):
            run.log({"loss": 1.0}, step=step)
        run.summary({"accuracy": 1.0})
    run.log({"loss": 1.0}, step=4)
    run.finish()
    (warning,) = warnings(caplog)
    assert "ConnectionResetError: Connection lost" in warning and "\n" not in warning
    if broken != "define_metric":
        assert failing.calls == ["define_metric"] * 2 + ["log"] * 3 + ["summary", "finish"]


def test_a_raising_init_is_one_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise OSError("no such service")

    monkeypatch.setattr("wandb.init", fail)
    with open_in(folder) as run:
        run.log({"loss": 1.0}, step=1)
        run.table("results", ["method"], [["sft"]])
    (warning,) = warnings(caplog)
    assert "no such service" in warning


def test_a_hanging_call_is_left_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 0.2)
    monkeypatch.setattr(tracker, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(tracker, "QUEUE_LENGTH", 2)
    release = threading.Event()
    failing = FailingRun("")
    monkeypatch.setattr(failing, "log", lambda row: release.wait(30))
    monkeypatch.setattr("wandb.init", lambda **_: failing)
    with open_in(folder) as run:
        for step in range(5):
            run.log({"loss": 1.0}, step=step)
    release.set()
    (warning,) = warnings(caplog)
    assert "took no data" in warning


def test_a_killed_service_is_one_warning_and_the_next_run_has_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_in(tmp_path / "first") as run:
        (service,) = services()
        service.kill()
        service.wait(10)
        run.log({"loss": 1.0}, step=1)
        run.summary({"accuracy": 1.0})
    assert len(warnings(caplog)) == 1
    with open_in(tmp_path / "second") as run:
        run.log({"loss": 2.0}, step=1)
    assert len(warnings(caplog)) == 1
    assert [row["loss"] for row in history(tmp_path / "second")] == [2.0]


def test_a_frozen_service_does_not_hold_up_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 1.0)
    monkeypatch.setattr(tracker, "GRACE_SECONDS", 1.0)
    with open_in(folder) as run:
        (service,) = services()
        service.send_signal(signal.SIGSTOP)
        run.log({"loss": 1.0}, step=1)
    (warning,) = warnings(caplog)
    assert "did not finish" in warning
    until = time.monotonic() + 10  # a busy machine takes a moment to end it
    while any(process.status() != psutil.STATUS_ZOMBIE for process in services()) and time.monotonic() < until:
        time.sleep(0.05)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in services())


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with open_in(tmp_path / "file" / "run") as run:
        run.log({"loss": 1.0}, step=1)
    (warning,) = warnings(caplog)
    assert "NotADirectoryError" in warning


def test_a_disk_that_fills_up_is_one_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_in(folder) as run:

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        run.log({"loss": 1.0}, step=1)
    (warning,) = warnings(caplog)
    assert "No space left on device" in warning


@pytest.mark.parametrize(
    ("mode", "key", "reason"),
    [
        ("auto", "too-short", "40+ characters"),
        ("online", "0" * 40, "connect"),
        ("online", None, "no API key"),
    ],
)
def test_online_without_a_way_there_goes_on_offline(
    mode: str,
    key: str | None,
    reason: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracker, "INIT_SECONDS", 2.0)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    start = time.monotonic()
    with open_in(folder, mode=mode) as run:
        # Far below W&B's own 90 s: not a matter of the machine's speed.
        assert time.monotonic() - start < 40
        run.log({"loss": 1.0}, step=1)
    (warning,) = warnings(caplog)
    assert reason in warning and "offline" in warning
    assert [row["loss"] for row in history(folder)] == [1.0]


def test_a_run_opened_online_again_continues_the_same_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[dict[str, Any]] = []

    def init(**arguments: Any) -> FailingRun:
        asked.append(arguments)
        return FailingRun("")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("wandb.init", init)
    for _ in range(2):
        open_in(folder).finish()
    assert [(a["mode"], a["id"], a["resume"]) for a in asked] == [
        ("online", None, None),
        ("online", "id", "allow"),
    ]
    assert warnings(caplog) == []


def test_auto_obeys_wandb_mode(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    open_in(folder).finish()
    assert offline_file(folder).is_file()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert isinstance(open_in(folder), NullTracker)


def test_none_imports_no_wandb(tmp_path: Path) -> None:
    script = (
        "import sys; from runners.tracker import open_tracker\n"
        "with open_tracker({'name': 'none'}, folder='.', name='', group='', job_type='', config={}) as run:\n"
        "    run.log({'loss': 1.0}, step=1); run.summary({}); run.table('t', [], [])\n"
        "assert 'wandb' not in sys.modules and 'torch' not in sys.modules"
    )
    root = Path(tracker.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
        timeout=60,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("key", "value"), [("name", "tensorboard"), ("mode", "on"), ("mode", None)])
def test_bad_settings_are_named(key: str, value: str | None, folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"tracker\.{key} must be one of .*, got {value!r}"):
        open_in(folder, **{key: value})
