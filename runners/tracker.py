"""Mirrors a run to Weights & Biases; nothing that goes wrong there may stop or hold up the run.

The run's own record is its `metrics.jsonl` and `result.json`. W&B gets a copy: configuration, metrics by
step, summary, tables, with the experiment as group and the method as job type. Every call into wandb is made
by one thread of this module, in order: one that raises is passed over, one that hangs is waited for only so
long. Whatever the cause (no network, a bad key, a full disk, a dead wandb service), the user reads one
warning and the run goes on.

wandb is imported when a tracker is opened, and not at all with `tracker.name=none`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import psutil

logger = logging.getLogger(__name__)

INIT_SECONDS = 20.0
"""How long W&B may take to open a run online before the run is logged offline."""
FINISH_SECONDS = 30.0
"""How long a finished run may still upload; what is left stays on disk for `wandb sync`."""
GRACE_SECONDS = 10.0
"""How much longer than the bounds above wandb may take before it counts as hanging and is killed."""
QUEUE_LENGTH = 10_000
"""Calls waiting for W&B; a run that logs faster than W&B takes it waits, at most `GRACE_SECONDS` per call."""
STEP = "step"
"""The step metric, on the horizontal axis of every plot.

W&B's own step only grows; it drops what is logged below it, as by a run resumed from its last checkpoint.
"""

NAMES = ("wandb", "none")
MODES = ("auto", "online", "offline")

Call = Callable[[Any], None]


class Tracker(ABC):
    """Where a run is logged besides its own folder. A context manager that finishes the run.

    failed: whether something it was given may not have arrived; known once it is finished.
    """

    failed = False

    @abstractmethod
    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log `metrics` (numbers, 0-d tensors or arrays; NaN and infinities too) at `step`."""

    @abstractmethod
    def summary(self, values: Mapping[str, Any]) -> None:
        """Set final values of the run; a mapping in `values` becomes nested keys."""

    @abstractmethod
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a finished table; the cells of a column may be of different types."""

    @abstractmethod
    def finish(self, failed: bool = False) -> None:
        """Send what is left and close. Later calls do nothing."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(failed=error is not None)


class NullTracker(Tracker):
    """Logs nowhere."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        pass

    def summary(self, values: Mapping[str, Any]) -> None:
        pass

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        pass

    def finish(self, failed: bool = False) -> None:
        pass


def open_tracker(
    settings: Mapping[str, Any],
    *,
    folder: str | os.PathLike[str],
    name: str,
    group: str,
    job_type: str,
    config: Mapping[str, Any],
    tags: Sequence[str] = (),
) -> Tracker:
    """Open the tracker that `settings` names.

    settings: `name` (wandb or none), `project`, `entity` (or None for the account's own) and `mode`: online,
        offline, or auto, which is online where wandb finds an API key (WANDB_API_KEY, netrc) and offline
        elsewhere; with auto, WANDB_MODE=offline and WANDB_MODE=disabled are obeyed.
    folder: the run's folder; everything W&B writes lies in `folder/wandb`.
    config: the run's resolved configuration, plain containers.

    A run that is opened online again in the same folder continues the same W&B run. Offline, W&B cannot do
    that: each start is a W&B run of its own, of the same name and group.

    Raises ValueError where `settings` names no tracker or mode; a failure of W&B is a warning.
    """
    chosen, mode = settings.get("name", "wandb"), settings.get("mode", "auto")
    if chosen not in NAMES:
        raise ValueError(f"tracker.name must be one of {', '.join(NAMES)}, got {chosen!r}")
    if mode not in MODES:
        raise ValueError(f"tracker.mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "auto":
        mode = {"dryrun": "offline"}.get(wanted := os.environ.get("WANDB_MODE", "auto"), wanted)
    if chosen == "none" or mode == "disabled":
        return NullTracker()
    return WandbTracker(
        mode=mode if mode in MODES else "auto",
        folder=Path(folder),
        run={
            "project": settings.get("project") or "retable",
            "entity": settings.get("entity"),
            # W&B refuses longer ones.
            "name": name[:128],
            "group": group[:128],
            "job_type": job_type[:64],
            "tags": [tag[:64] for tag in tags if tag],
            "config": dict(config),
        },
    )


@contextlib.contextmanager
def _exit_hooks_kept() -> Iterator[None]:
    """Undo that wandb's service puts its own functions in the place of sys.exit and sys.excepthook."""
    hooks = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = hooks


class WandbTracker(Tracker):
    """A W&B run, fed by a thread.

    mode: online, offline, or auto.
    folder: the run's folder.
    run: what `wandb.init` is told about the run.
    """

    def __init__(self, mode: str, folder: Path, run: Mapping[str, Any]) -> None:
        self._mode = mode
        self._folder = folder.absolute()
        self._run = run
        self._calls: queue.Queue[Call | None] = queue.Queue(QUEUE_LENGTH)
        self._opened = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wandb-tracker", daemon=True)
        self._thread.start()
        if not self._opened.wait(INIT_SECONDS + GRACE_SECONDS):
            self._abandon(f"it did not start within {INIT_SECONDS + GRACE_SECONDS:.0f} s")

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        row = {**_plain(metrics), STEP: step}
        self._put(lambda run: run.log(row))

    def summary(self, values: Mapping[str, Any]) -> None:
        plain = _plain(values)
        self._put(lambda run: run.summary.update(plain))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        data = [list(row) for row in rows]

        def log_table(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)})

        self._put(log_table)

    def finish(self, failed: bool = False) -> None:
        if self._over.is_set():
            return

        def close(run: Any) -> None:
            run.finish(exit_code=int(failed))
            # Offline, wandb's service drops what it cannot write and says nothing.
            _check_writable(self._folder / "wandb")

        self._put(close)
        self._put(None)
        self._thread.join(FINISH_SECONDS + GRACE_SECONDS)
        if self._thread.is_alive() and not self._over.is_set():
            self._abandon(f"it did not finish within {FINISH_SECONDS + GRACE_SECONDS:.0f} s")
        self._over.set()

    def _put(self, call: Call | None) -> None:
        if self._over.is_set():
            return
        try:
            self._calls.put(call, timeout=GRACE_SECONDS)
        except queue.Full:
            self._abandon(f"it took no data for {GRACE_SECONDS:.0f} s")

    def _work(self) -> None:
        """The thread: open the run, make the calls in order, let wandb go."""
        with _wandb_in_use(self._folder / "wandb"):
            try:
                run = self._open()
            except Exception as error:
                self._over.set()
                self._warn("W&B failed, the run goes on without it", error)
                return
            finally:
                self._opened.set()
            while (call := self._calls.get()) is not None and not self._over.is_set():
                try:
                    call(run)
                except Exception as error:
                    self._warn("W&B failed, the run goes on and W&B may lack some of it", error)

    @_exit_hooks_kept()
    def _open(self) -> Any:
        import wandb

        _check_writable(self._folder / "wandb")
        # wandb's own debug log: on a full disk each of its records prints a traceback into the terminal.
        logging.getLogger("wandb").setLevel(logging.CRITICAL + 1)
        wandb.setup(settings=wandb.Settings(silent=True, x_service_wait=INIT_SECONDS))
        trouble: Exception | None = None
        if self._mode != "offline":
            try:
                # With verify and prompt off this only looks for a key, wherever wandb keeps one.
                if wandb.login(prompt=False, verify=False):
                    return self._init("online")
                if self._mode == "online":
                    raise RuntimeError("no API key: set WANDB_API_KEY or type `wandb login`")
            except Exception as error:
                trouble = error
        run = self._init("offline")
        if trouble is not None:
            self._warn("W&B cannot be used online, the run is logged offline", trouble)
        return run

    def _init(self, mode: Literal["online", "offline"]) -> Any:
        import wandb

        known_id = self._folder / "wandb" / "run-id"
        resumed = mode == "online" and known_id.is_file()
        run = wandb.init(
            **self._run,
            mode=mode,
            dir=str(self._folder),
            id=known_id.read_text(encoding="utf-8") if resumed else None,
            resume="allow" if resumed else None,
            reinit="create_new",
            allow_val_change=True,
            settings=wandb.Settings(
                silent=True,
                console="off",
                symlink=False,
                use_dot_wandb=False,
                disable_git=True,
                disable_code=True,
                save_code=False,
                label_disable=True,
                x_disable_stats=True,
                x_save_requirements=False,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        if mode == "online":
            known_id.write_text(run.id, encoding="utf-8")
            logger.info("W&B: %s", run.url)
        else:
            place = Path(run.dir).parent
            logger.info("W&B: offline in %s (upload it with `wandb sync %s`)", place, place)
        return run

    def _warn(self, what: str, reason: Exception | str) -> None:
        """Warn of the first failure only: what follows it has mostly the same cause."""
        if not self.failed:
            self.failed = True
            logger.warning("%s: %s", what, _first_line(reason) if isinstance(reason, Exception) else reason)

    def _abandon(self, reason: str) -> None:
        """Give up on a wandb that hangs; once its service is gone, the call that waits for it raises."""
        self._over.set()
        self._warn("W&B failed, the run goes on without it", reason)
        with contextlib.suppress(queue.Full):
            self._calls.put_nowait(None)
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if child.name() == "wandb-core":
                    child.kill()
        self._thread.join(GRACE_SECONDS)


_in_use = 0
_in_use_lock = threading.Lock()


@contextlib.contextmanager
def _wandb_in_use(folder: Path) -> Iterator[None]:
    """Keep wandb's files in `folder`, and stop its service when the last run is done.

    A service that outlived its run would serve the next one with this one's settings, or not at all if dead.
    """
    global _in_use
    ours = {
        # Tables are staged here and read again by `wandb sync`; wandb's default is the home folder.
        "WANDB_DATA_DIR": str(folder / "data"),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_ERROR_REPORTING": "false",
    }
    with _in_use_lock:
        _in_use += 1
        ours = {key: value for key, value in ours.items() if key not in os.environ}
        os.environ.update(ours)
    try:
        yield
    finally:
        with _in_use_lock:
            _in_use -= 1
            if _in_use == 0:
                # Where the service has died this raises OSError, or SystemExit with the service's exit code.
                with contextlib.suppress(Exception, SystemExit):
                    sys.modules["wandb"].teardown()
            for key in ours:
                os.environ.pop(key, None)


def _check_writable(folder: Path) -> None:
    """Raise OSError unless `folder` takes a file; wandb itself goes elsewhere or drops data unsaid."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 16))
        file.flush()
        os.fsync(file.fileno())


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `values`, which the caller may change meanwhile, with numbers for 0-d tensors and arrays."""
    plain: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            plain[key] = _plain(value)
        else:
            plain[key] = value.item() if getattr(value, "ndim", None) == 0 else value
    return plain


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
