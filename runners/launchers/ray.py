"""Ray: cells as tasks that share the GPUs and CPUs of a node or a cluster.

A command that is told to stop leaves a file below `outputs`, which the running cells look for: each tells itself to
stop, as a signal to it would, writes its checkpoint and comes back. Cells that have not started come back at once.
"""

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, open_dict

from runners import preemption
from runners.errors import UserError
from runners.launchers import Elsewhere, lost, plain

log = logging.getLogger(__name__)

_LOOK_EVERY = 0.5  # seconds between looks for the file that tells cells to stop
_TELL_EVERY = 5.0  # seconds after which a cell that has been told to stop is told again
_STOP = "stop"  # the file's name


class RayLauncher(Elsewhere):
    """The cells share the GPUs and CPUs that Ray has; each asks for what its row says."""

    def __init__(self, ray: DictConfig) -> None:
        try:
            from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher as Plugin
        except ImportError as error:
            raise UserError(f"hydra/launcher=ray: {error}; pip install 'retable[ray]'") from error
        self.plugin = Plugin(ray)
        self.settings: Mapping[str, Any] = plain(ray)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run the cells, as many at a time as there is room for."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
        import ray

        from runners.compose import run_spec

        outputs = run_spec(list(job_overrides[0])).config["outputs"]  # a cluster shares it
        below = Path(outputs).expanduser().absolute() / ".ray"
        below.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="sweep-", dir=below, ignore_cleanup_errors=True) as notes:
            try:
                with _sigterm_kept():
                    ray.init(**self.settings["init"])
                pending = self._start(job_overrides, initial_job_idx, Path(notes))
                ended = self._wait(pending, Path(notes))
            finally:
                ray.shutdown()
        if len(ended) < len(job_overrides):
            raise preemption.stop(f"after {len(ended)} of {len(job_overrides)} cells")
        return [ended[number] for number in sorted(ended)]

    def _start(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int, notes: Path) -> dict[Any, int]:
        """Hand the cells to Ray; which reference stands for which of them."""
        import ray

        from runners.compose import run_spec

        pending: dict[Any, int] = {}
        for number, overrides in enumerate(job_overrides):
            if preemption.requested():
                break
            spec = run_spec(list(overrides))
            config = self.plugin.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = spec.name
                config.hydra.job.num = initial_job_idx + number
            gpus, cpus = spec.config["gpus"], spec.config["processes"]
            asked = {"num_gpus": gpus, "num_cpus": max(cpus, gpus), **self.settings["remote"]}
            run = ray.remote(**asked)(_run_in)
            context, task, state = self.plugin.hydra_context, self.plugin.task_function, Singleton.get_state()
            pending[run.remote(os.getcwd(), notes, number, context, config, task, state)] = number
        return pending

    def _wait(self, pending: dict[Any, int], notes: Path) -> dict[int, JobReturn]:
        """What the cells return; without those that were stopped, where the command is told to stop meanwhile."""
        import ray

        ended: dict[int, JobReturn] = {}
        told: float | None = None
        while pending:
            if told is None and preemption.requested():
                told = time.monotonic()
                (notes / _STOP).touch()
                log.info("told to stop: waiting for the checkpoints of the cells that run")
            if told is not None:
                started = [number for number in pending.values() if (notes / str(number)).exists()]
                if not started:
                    break
                if time.monotonic() - told > self.settings["stop_s"]:
                    log.warning("%d cells have not stopped in time, they continue from an earlier step", len(started))
                    break
            done, _ = ray.wait(list(pending), timeout=1)
            for reference in done:
                number = pending.pop(reference)
                try:
                    returned = ray.get(reference)
                except ray.exceptions.RayError as error:  # its process died
                    if told is not None:
                        continue
                    returned = lost(f"{type(error).__name__}: {str(error).splitlines()[0]}")
                if returned is not None:
                    ended[number] = returned
        return ended


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Put back the handler that `ray.init` replaces for good. Its own ends the process; nothing has started by then."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise preemption.stop("before its first cell") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _run_in(folder: str, notes: Path, number: int, *arguments: Any) -> JobReturn | None:
    """Run a cell in the folder where the command was typed; a cluster's processes start elsewhere.

    None when the command has been told to stop, and the cell could not end before that.
    """
    from hydra_plugins.hydra_ray_launcher._launcher_util import _run_job

    os.chdir(folder)
    # In this order: a cell that the command has not seen start sees that it is to stop.
    with contextlib.suppress(OSError):
        (notes / str(number)).touch()
    if _stopped(notes):
        return None
    with preemption.listening(), _stopping_with(notes):
        try:
            returned: JobReturn = _run_job(*arguments)
        except preemption.Preempted:
            if not _stopped(notes):
                raise  # it was this process alone that was told: Ray starts the cell again
            return None
    return returned


@contextlib.contextmanager
def _stopping_with(notes: Path) -> Iterator[None]:
    """Signal this process to stop once the command has been. Ray runs a task in the main thread, where signals go."""
    over = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        while not over.wait(_LOOK_EVERY):
            if _stopped(notes):
                # Again and again: the first may come before the run has workers to pass it on to.
                signal.pthread_kill(main, signal.SIGTERM)
                over.wait(_TELL_EVERY)

    thread = threading.Thread(target=watch, name="stopping", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _stopped(notes: Path) -> bool:
    """Whether the command has been told to stop."""
    try:
        return _STOP in os.listdir(notes)  # makes a network file system look again
    except OSError:  # it cannot be seen from here, or the command has ended
        return False
