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
with lock.held(Path(sys.argv[1]), patience=0):
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
    with lock.held(tmp_path / "run", patience=0):
        pass
    assert lock.holder(tmp_path / "run") is None


def test_the_holder_is_named(tmp_path: Path, other: subprocess.Popen) -> None:
    who = lock.holder(tmp_path / "run")
    assert who is not None and who.pid == other.pid and who.host == os.uname().nodename
    refused = pytest.raises(lock.BusyError, match=rf"run is worked on by process {other.pid} on .*, since 20")
    with refused, lock.held(tmp_path / "run", patience=0):
        pass


def test_a_killed_holder_lets_go(tmp_path: Path, other: subprocess.Popen) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads(lock.path_of(tmp_path / "run").read_text())["pid"] == other.pid, "what it wrote is still there"
    assert lock.holder(tmp_path / "run") is None
    with lock.held(tmp_path / "run", patience=0):
        pass


def test_waiting_ends_when_the_holder_does(tmp_path: Path, other: subprocess.Popen) -> None:
    threading.Timer(0.5, other.kill).start()
    began = time.monotonic()
    with lock.held(tmp_path / "run", patience=60):
        assert 0.4 < time.monotonic() - began < 30


def test_those_who_look_are_not_in_the_way(tmp_path: Path) -> None:
    """A `job=status` again and again must not make a run look taken."""
    with lock.held(tmp_path / "run", patience=0):
        pass
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            lock.holder(tmp_path / "run")

    watchers = [threading.Thread(target=look) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(100):
            with lock.held(tmp_path / "run", patience=0):
                pass
    finally:
        over.set()
        for watcher in watchers:
            watcher.join()
