"""Slurm: cells as jobs of submitit's, in arrays."""

import logging
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

from runners import preemption
from runners.errors import UserError
from runners.launchers import Elsewhere, lost, plain

log = logging.getLogger(__name__)

_LOOK_EVERY = 10.0  # seconds between questions to Slurm
_GRACE = 20.0  # seconds in which the result of an ended job may still come to be seen, over a network file system

# Keys of conf/hydra/launcher/slurm.yaml that submitit knows by the same name, and those that it renames.
_SAME = ("partition", "account", "qos", "constraint", "cpus_per_task", "mem", "array_parallelism", "signal_delay_s")


class SlurmLauncher(Elsewhere):
    """Every cell a Slurm job; cells that ask for the same resources are an array."""

    def __init__(self, **settings: Any) -> None:
        try:
            from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Plugin
        except ImportError as error:
            raise UserError(f"hydra/launcher=slurm: {error}; pip install 'retable[slurm]'") from error
        self.plugin = Plugin()
        self.settings = {key: plain(value) for key, value in settings.items()}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Submit the cells and wait for them."""
        from submitit.slurm.slurm import SlurmJob

        from runners.compose import run_spec

        folder = Path(self.settings["folder"]).absolute()
        queued = _queued()
        jobs: dict[int, Any] = {}
        arrays: dict[tuple[int, int, int], list[int]] = {}
        notes: list[Path] = []
        for number, overrides in enumerate(job_overrides):
            spec = run_spec(list(overrides))
            # With its experiment: runs of several experiments may have the same name.
            notes.append(folder / f"{spec.experiment.replace('/', '_')}-{spec.name}.job")
            job_id, tasks = _noted(notes[number])
            if queued and job_id in queued:
                log.info("%s: already in the queue, as job %s", spec.name, job_id)
                jobs[number] = SlurmJob(folder / "%j", job_id, range(tasks))
            else:
                resources = (spec.config["nodes"], spec.config["gpus"], spec.config["processes"])
                arrays.setdefault(resources, []).append(number)
        for resources, numbers in arrays.items():
            words = [list(job_overrides[number]) for number in numbers]
            submitted = self._submit(resources, words, [initial_job_idx + number for number in numbers])
            for number, job in zip(numbers, submitted, strict=True):
                jobs[number] = job
                notes[number].write_text(f"{job.job_id} {job.num_tasks}")
        log.info("jobs %s; logs in %s", ", ".join(jobs[number].job_id for number in sorted(jobs)), folder)
        try:
            return self._wait([jobs[number] for number in sorted(jobs)])
        except BaseException:
            log.warning("the jobs stay in the queue (scancel takes them out); the same command waits for them")
            raise

    def _submit(self, resources: tuple[int, int, int], words: list[list[str]], numbers: list[int]) -> list[Any]:
        from submitit.core.utils import FailedJobError
        from submitit.slurm.slurm import SlurmExecutor

        nodes, gpus, processes = resources
        executor = SlurmExecutor(Path(self.settings["folder"]) / "%j", max_num_timeout=self.settings["max_num_timeout"])
        asked = {key: self.settings[key] for key in _SAME if self.settings[key] is not None}
        again = {"requeue" if self.settings["requeue"] else "no-requeue": True}
        executor.update_parameters(
            job_name="retable",
            time=self.settings["timeout_min"],
            nodes=nodes,
            ntasks_per_node=max(gpus, processes),
            **({"gpus_per_node": gpus} if gpus else {}),
            **asked,
            # A rank that fails must not leave the others waiting for it.
            setup=["export SLURM_KILL_BAD_EXIT=1", *(self.settings["setup"] or [])],
            additional_parameters={**again, **(self.settings["sbatch"] or {})},
        )
        count = len(words)
        ids = [f"job_id_for_{number}" for number in numbers]
        states = [Singleton.get_state()] * count
        try:
            return list(executor.map_array(self.plugin, words, ["hydra.sweep.dir"] * count, numbers, ids, states))
        except FailedJobError as error:  # sbatch refuses: no such partition, more GPUs than there are, ...
            lines = [line for line in str(error).splitlines() if line.startswith("sbatch: error:")]
            raise UserError(f"hydra/launcher=slurm: {' '.join(lines) or error}") from error

    def _wait(self, jobs: list[Any]) -> list[JobReturn]:
        ended: dict[str, JobReturn] = {}
        missed: dict[str, float] = {}  # since when a job is not in the queue and has no result either
        looked = 0.0
        while len(ended) < len(jobs):
            if preemption.requested():
                raise preemption.stop("while waiting for its jobs")
            now = time.monotonic()
            queued = None
            if now - looked > _LOOK_EVERY:
                looked, queued = now, _queued()
            for job in jobs:
                if job.job_id in ended:
                    continue
                if _has_results(job):
                    ended[job.job_id] = _returned(job)
                elif queued is not None and job.job_id in queued:
                    missed.pop(job.job_id, None)
                elif queued is not None and now - missed.setdefault(job.job_id, now) > _GRACE:
                    ended[job.job_id] = _told_by_a_task(job) or lost(
                        f"Slurm job {job.job_id} ended without a result{_how(job.job_id)}"
                    )
            time.sleep(0.5)
        return [ended[job.job_id] for job in jobs]


def _told_by_a_task(job: Any) -> JobReturn | None:
    """Why a job ended, from the first of its tasks that said so before the others were ended too."""
    from submitit.core.utils import FailedJobError

    for number in range(job.num_tasks):
        task = job.task(number)
        if task.paths.result_pickle.exists():
            try:
                returned: JobReturn = task.result()
            except FailedJobError as error:
                return lost(_reason(error))
            if returned.status == JobStatus.FAILED:
                return returned
    return None


def _reason(error: Exception) -> str:
    """The line of a traceback that submitit passes on which says what was wrong."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("---")]
    return lines[-2] if len(lines) > 1 else str(error)


def _has_results(job: Any) -> bool:
    """Whether every task has written its result."""
    os.listdir(job.paths.folder)  # makes a network file system look again
    return all(job.task(number).paths.result_pickle.exists() for number in range(job.num_tasks))


def _returned(job: Any) -> JobReturn:
    """What the first task returned; or the failure of one that failed by itself."""
    from submitit.core.utils import FailedJobError

    try:
        returned: list[JobReturn] = job.results()
    except FailedJobError as error:
        return lost(_reason(error))
    return next((each for each in returned if each.status == JobStatus.FAILED), returned[0])


def _noted(path: Path) -> tuple[str, int]:
    """The job of a run when it was last submitted, and its number of tasks."""
    try:
        job, tasks = path.read_text().split()
        return job, int(tasks)
    except (OSError, ValueError):
        return "", 1


def _queued() -> set[str] | None:
    """This user's jobs that wait or run; None when Slurm does not answer."""
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("squeue: %s", error)
        return None
    return set(done.stdout.split())


def _how(job: str) -> str:
    """How Slurm says a job has ended, while it remembers."""
    try:
        done = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    states = [word.partition("=")[2] for word in done.stdout.split() if word.startswith("JobState=")]
    return f": {states[0].lower()}" if states else ""
