"""`hydra/launcher=ray`: the runs of a sweep share the GPUs of a node. The two GPUs here are only declared."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command import TINY, UNTRAINED, write_plugin

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is missing: pip install retable[ray]"),
    pytest.mark.timeout(900),
]

# Notes which GPUs the run sees, and when; fails for seed 3; is killed at seed 4.
METHOD = '''"""A private method."""

import json
import os
import signal
import time
from collections.abc import Mapping

from methods.method import Context
from methods.untrained import Untrained, UntrainedConfig


class Seeing(Untrained):
    """Seeing: writes down which GPUs it sees."""

    config: UntrainedConfig

    def run(self, context: Context) -> Mapping[str, float]:
        """As the untrained model."""
        began = time.time()
        time.sleep(1)
        seen = {"devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "began": began, "ended": time.time()}
        (context.folder / "seen.json").write_text(json.dumps({**seen, "pid": os.getpid()}))
        if context.seed == 3:
            raise ValueError("seed 3 fails")
        if context.seed == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(context)
'''

# Supervised fine-tuning that takes its time; the environment says how much.
SLOW = '''"""A private method."""

import os
import time

from methods.finetune.sft import Sft, SftConfig
from methods.forward import Forward
from methods.objective import Loss


class Slow(Sft):
    """Slow: supervised fine-tuning that takes its time."""

    config: SftConfig

    def loss(self, forward: Forward) -> Loss:
        """That of SFT, after a nap."""
        time.sleep(float(os.environ["NAP"]))
        return super().loss(forward)
'''


@dataclass(frozen=True)
class Seen:
    """What a run saw."""

    devices: str
    began: float
    ended: float
    pid: int


def test_runs_share_two_gpus_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    write_plugin(tmp_path / "plugins", "seeing", METHOD)
    (tmp_path / "plugins/conf/method/private/seeing.yaml").write_text("# Seeing.\n_target_: seeing.Seeing\n")
    words = [*UNTRAINED[:-1], "plugins=plugins", "method=private/seeing", "seed=1,2,3,4", "gpus=1"]
    ray = [
        "hydra/launcher=ray",
        "hydra.launcher.ray.init.num_gpus=2",
        "hydra.launcher.ray.init.num_cpus=4",
        "hydra.launcher.ray.remote.max_retries=0",
    ]
    mark = uuid.uuid4().hex  # every process of the sweep inherits it
    done = subprocess.run(
        [sys.executable, "-m", "runners.main", "-m", *words, *ray],
        env={**os.environ, "HOME": str(tmp_path), "RETABLE_TEST": mark},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr

    runs = {int(path.name.split("-s")[1][0]): path for path in (tmp_path / "outputs/runs").glob("private_seeing-*")}
    assert sorted(runs) == [1, 2, 3, 4]
    assert [seed for seed, run in sorted(runs.items()) if (run / "result.json").is_file()] == [1, 2]
    assert "2 of 4 cells failed:" in done.stderr
    listed = done.stderr.rpartition("2 of 4 cells failed:")[2].strip().splitlines()
    assert runs[3].name in listed[0] and "seed 3 fails" in listed[0]
    assert runs[4].name in listed[1] and "WorkerCrashedError" in listed[1]

    seen = sorted((Seen(**json.loads((run / "seen.json").read_text())) for run in runs.values()), key=lambda s: s.began)
    assert {each.devices for each in seen} == {"0", "1"}  # each saw one, and both were used
    for number, each in enumerate(seen):
        beside = [other for other in seen[number + 1 :] if other.began < each.ended]
        assert each.devices not in [other.devices for other in beside]  # never two on a GPU, so at most two at a time
    assert len({each.pid for each in seen}) == 4  # a run's memory goes with its process
    assert os.getpid() not in [each.pid for each in seen]

    until = time.monotonic() + 20
    while (left := processes_with(f"RETABLE_TEST={mark}")) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left, f"still running: {left}"


@pytest.mark.slow
def test_a_sweep_that_is_told_to_stop_leaves_checkpoints_and_continues(tmp_path: Path) -> None:
    """Two cells run and one waits for room; no checkpoint is due but those they write then."""
    write_plugin(tmp_path / "plugins", "slow", SLOW)
    (tmp_path / "plugins/conf/method/private/slow.yaml").write_text("# Slow.\n_target_: slow.Slow\n")
    words = [*TINY, "plugins=plugins", "method=private/slow", "training.steps=60", "training.log_every=1"]
    ray = ["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2", "hydra.launcher.ray.remote.max_retries=0"]
    command = [sys.executable, "-m", "runners.main", "-m", *words, "seed=1,2,3", "keep=all", *ray]
    environment = {**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    printed = tmp_path / "printed"
    with printed.open("w") as file:
        process = subprocess.Popen(command, env={**environment, "NAP": "1"}, cwd=tmp_path, stdout=file, stderr=file)
    try:
        until = time.monotonic() + 120
        while len(under_way := [run for run in runs_of(tmp_path) if steps_of(run) >= 2]) < 2:
            assert process.poll() is None and time.monotonic() < until, printed.read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert code == 75, printed.read_text()
    assert "stopped by SIGTERM after 0 of 3 cells; the same command continues it" in printed.read_text()
    assert runs_of(tmp_path) == under_way  # the third was not started
    stopped_at = {run: steps_of(run) for run in under_way}
    assert all(2 <= steps < 60 and list((run / "checkpoints").iterdir()) for run, steps in stopped_at.items())
    assert not list((tmp_path / "outputs/.ray").iterdir())

    again = subprocess.run(
        command, env={**environment, "NAP": "0"}, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(runs_of(tmp_path)) == 3
    for run in runs_of(tmp_path):
        assert (run / "result.json").is_file() and steps_of(run) == 60
        log = (run / "run.log").read_text()
        assert log.count("continuing from") == (run in under_way)
        if run in under_way:
            assert f"step {stopped_at[run]}" in log  # nothing but time was lost
    assert "(3)" in again.stdout and "failed" not in again.stderr  # the table's cell is a mean of all


def runs_of(folder: Path) -> list[Path]:
    return sorted((folder / "outputs/runs").glob("private_slow-*"))


def steps_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def processes_with(variable: str) -> list[str]:
    """The command lines of processes that have this in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended, or is not ours
            continue
    return found
