"""`hydra/launcher=slurm` on a real Slurm: a cluster of one node, started by scripts/slurm_local.sh.

Skipped without Debian's packages slurm-wlm and munge, and for other users than root (slurmd needs it).
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command import TINY, retable, write_plugin

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "slurm_local.sh"
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
MISSING = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name, path=PATH) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} missing: apt-get install slurm-wlm munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a Slurm node can only be started by root"),
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("slurm"),
]

# Supervised fine-tuning whose steps take as long as the environment says; the result does not depend on it.
METHOD = '''"""A private method."""

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
        time.sleep(float(os.environ.get("NAP", "0")))
        return super().loss(forward)
'''
STEPS = 25
WORDS = (
    *TINY,
    "plugins=plugins",
    "method=private/slow",
    f"training.steps={STEPS}",
    "training.log_every=1",
)


@dataclass(frozen=True)
class Cluster:
    """A running cluster and the folder in which commands are typed."""

    environment: dict[str, str]
    folder: Path

    def slurm(self, *command: str) -> str:
        """What a command of Slurm's prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    @contextlib.contextmanager
    def sweep(self, *words: str, nap: float) -> Iterator["Sweep"]:
        """`retable -m words...` submitted to the cluster; its jobs are cancelled at the end, whatever happens."""
        command = [sys.executable, "-m", "runners.main", "-m", *words, "hydra/launcher=slurm"]
        with (self.folder / "printed").open("w+") as printed:
            process = subprocess.Popen(
                command, env={**self.environment, "NAP": str(nap)}, cwd=self.folder, stdout=printed, stderr=printed
            )
            try:
                yield Sweep(process, Path(printed.name))
            finally:
                process.kill()
                process.wait()
                self.slurm("scancel", "--user", "root")


@dataclass(frozen=True)
class Sweep:
    """The command that has submitted a sweep, and waits for its jobs."""

    process: subprocess.Popen[bytes]
    path: Path

    @property
    def printed(self) -> str:
        """All that it has printed."""
        return self.path.read_text()

    def wait_until(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for what the jobs are to do."""
        until = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, f"ended before {what}:\n{self.printed}"
            assert time.monotonic() < until, f"{what}: not within {seconds} s:\n{self.printed}"
            time.sleep(0.2)

    def end(self, seconds: float) -> None:
        """Wait for its end, which must be a good one."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"has not ended after {seconds} s:\n{self.printed}\n{_logs(self.path.parent)}")
        assert code == 0, f"{self.printed}\n{_logs(self.path.parent)}"


def _logs(folder: Path) -> str:
    return "\n".join(f"{path}:\n{path.read_text()}" for path in sorted((folder / "outputs").glob(".slurm/*/*_log.*")))


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, str]]:
    """The environment of commands that use the cluster; it has ended when the tests have."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        environment = {**outside, "CPUS": "3", "GPUS": "2"}
        try:
            started = subprocess.run(
                [SCRIPT, "start", folder], env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            assert started.returncode == 0, started.stderr
            name, _, value = started.stdout.strip().removeprefix("export ").partition("=")
            yield {**environment, name: value}
        finally:
            subprocess.run([SCRIPT, "stop", folder], timeout=60, check=False)


@pytest.fixture
def cluster(running: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.chdir(tmp_path)
    write_plugin(tmp_path / "plugins", "slow", METHOD)
    (tmp_path / "plugins/conf/method/private/slow.yaml").write_text("# Slow.\n_target_: slow.Slow\n")
    return Cluster(running, tmp_path)


def run_of(outputs: Path, seed: int) -> Path:
    """The folder of the run with this seed; it need not exist yet."""
    return next(iter(outputs.glob(f"runs/[!.]*-s{seed}-*")), outputs / "none")


def logged_steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_stopped_jobs_continue_and_the_table_is_complete(cluster: Cluster) -> None:
    """One job is put back into the queue, one is told to stop. No checkpoint is due but those they write then."""
    outputs = cluster.folder / "outputs"
    with cluster.sweep(*WORDS, "seed=1,2", nap=0.4) as sweep:
        for seed in (1, 2):
            sweep.wait_until(lambda seed=seed: logged_steps(run_of(outputs, seed)) >= 5, 90, f"training, seed {seed}")  # type: ignore[misc]
        # The elements of the array, in the order of the seeds.
        elements = sorted(cluster.slurm("squeue", "--noheader", "--array", "--format=%i").split())
        assert len(elements) == 2
        cluster.slurm("scontrol", "requeue", elements[0])
        cluster.slurm("scancel", "--signal=TERM", elements[1])
        sweep.end(120)
        printed = sweep.printed
    restarts = [cluster.slurm("scontrol", "show", "job", element).count("Restarts=1") for element in elements]
    assert restarts == [1, 1]
    assert "(2)" in printed and "failed" not in printed  # the table's cell is a mean of both

    # Nothing but time was lost: the same weights and losses as those of runs that nobody stopped.
    ended = retable("-m", *WORDS, "seed=1,2", "outputs=undisturbed")
    assert ended.code == 0, ended.err
    for seed in (1, 2):
        run, alike = run_of(outputs, seed), run_of(cluster.folder / "undisturbed", seed)
        assert run.name == alike.name
        assert (run / "run.log").read_text().count("continuing from") == 1
        assert (run / "model/model.safetensors").read_bytes() == (alike / "model/model.safetensors").read_bytes()
        assert losses(run) == losses(alike)
        assert logged_steps(run) == STEPS  # each step once


def losses(run: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_tasks_of_a_job_are_the_ranks_of_its_run(cluster: Cluster) -> None:
    """Two tasks join each other, are told to stop, join again, and end as one process does."""
    outputs = cluster.folder / "outputs"
    words = (*WORDS, "seed=1")
    with cluster.sweep(*words, "processes=2", nap=0.4) as sweep:
        sweep.wait_until(lambda: logged_steps(run_of(outputs, 1)) >= 5, 90, "training")
        job = cluster.slurm("squeue", "--noheader", "--format=%i")
        cluster.slurm("scancel", "--signal=TERM", job)
        sweep.end(120)
    assert "Restarts=1" in cluster.slurm("scontrol", "show", "job", job)
    run = run_of(outputs, 1)
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    assert (run / "run.log").read_text().count("continuing from") == 1
    ended = retable(*words, "outputs=undisturbed")
    assert ended.code == 0, ended.err
    assert losses(run) == pytest.approx(losses(run_of(cluster.folder / "undisturbed", 1)), rel=1e-5)


def test_cancelled_job_stops_no_other_and_a_queued_one_is_waited_for(cluster: Cluster) -> None:
    outputs = cluster.folder / "outputs"
    words = (*WORDS, "seed=1,2")
    with cluster.sweep(*words, nap=0.4) as sweep:
        for seed in (1, 2):
            sweep.wait_until(lambda seed=seed: logged_steps(run_of(outputs, seed)) >= 2, 90, f"training, seed {seed}")  # type: ignore[misc]
        sweep.process.kill()  # its jobs stay
        sweep.process.wait()
        first, second = sorted(cluster.slurm("squeue", "--noheader", "--array", "--format=%i").split())
        with cluster.sweep(*words, nap=0.4) as again:
            again.wait_until(lambda: again.printed.count("already in the queue") == 2, 60, "finding the jobs")
            # Noted with the experiment: runs of another may have the same names.
            notes = sorted(path.name for path in (outputs / ".slurm").glob("*.job"))
            assert notes == [f"runs-{run_of(outputs, seed).name}.job" for seed in (1, 2)]
            assert sorted(cluster.slurm("squeue", "--noheader", "--array", "--format=%i").split()) == [first, second]
            cluster.slurm("scancel", first)
            assert again.process.wait(90) == 1
    assert "1 of 2 cells failed:" in again.printed
    assert f"Slurm job {first} ended without a result: cancelled" in again.printed
    assert not (run_of(outputs, 1) / "result.json").exists() and (run_of(outputs, 2) / "result.json").exists()


def test_what_slurm_refuses_is_one_line(cluster: Cluster) -> None:
    with cluster.sweep(*WORDS, "hydra.launcher.partition=none", nap=0) as sweep:
        assert sweep.process.wait(60) == 1
    last = sweep.printed.strip().splitlines()[-1]
    assert "hydra/launcher=slurm: sbatch: error: invalid partition" in last and "Traceback" not in sweep.printed
