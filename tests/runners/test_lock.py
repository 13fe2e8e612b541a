"""One writer for each run."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runners import lock

HOLD = """
import sys, time
from pathlib import Path
from runners import lock
with lock.held(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path):
    """Another process that holds the lock of `run`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_nobody_holds_what_was_never_held(tmp_path: Path) -> None:
    assert lock.holder(tmp_path / "run") is None
    with lock.held(tmp_path / "run", wait=False):
        pass
    assert lock.holder(tmp_path / "run") is None


def test_the_holder_is_named(tmp_path: Path, other: subprocess.Popen) -> None:
    who = lock.holder(tmp_path / "run")
    assert who is not None and who.pid == other.pid and who.host == os.uname().nodename
    refused = pytest.raises(lock.BusyError, match=rf"run is worked on by process {other.pid} on .*, since 20")
    with refused, lock.held(tmp_path / "run", wait=False):
        pass


def test_a_killed_holder_lets_go(tmp_path: Path, other: subprocess.Popen) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads(lock.path_of(tmp_path / "run").read_text())["pid"] == other.pid, "what it wrote is still there"
    assert lock.holder(tmp_path / "run") is None
    with lock.held(tmp_path / "run", wait=False):
        pass


def test_waiting_ends_when_the_holder_does(
    tmp_path: Path, other: subprocess.Popen, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    threading.Timer(0.5, other.kill).start()
    began = time.monotonic()
    with lock.held(tmp_path / "run", wait=True):
        assert time.monotonic() - began > 0.4
    assert f"waiting for run: worked on by process {other.pid}" in caplog.text
