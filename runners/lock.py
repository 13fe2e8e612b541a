"""One writer for each run: a lock beside its folder, which the system lets go when its holder dies.

`outputs/<experiment>/.<run>.lock` is held by `flock` (the `filelock` package), on one machine and on network file
systems that pass it on (NFS, Lustre mounted with `flock`), so a process that was killed leaves nothing to clear
away. What the file holds, who works and since when, is only told.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from runners.errors import UserError

_GLANCE = 0.3  # seconds in which somebody who only looks is gone again


@dataclass(frozen=True)
class Holder:
    """Who works on a run."""

    host: str
    pid: int
    since: str  # UTC, ISO 8601
    slurm_job: str | None = None

    def __str__(self) -> str:
        job = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


class BusyError(UserError):
    """Another process is at work on the run."""


def path_of(folder: Path) -> Path:
    """Where the lock of the run in `folder` lies."""
    return folder.with_name(f".{folder.name}.lock")


def holder(folder: Path) -> Holder | None:
    """Who works on the run in `folder` at this moment; None when nobody does."""
    path = path_of(folder)
    try:
        with path.open("rb") as file:
            # Shared: those who only look do not see one another.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path) or Holder("an unknown host", 0, "just now")
    except OSError:  # there is none, or it is not ours to look at
        return None
    return None


@contextlib.contextmanager
def held(folder: Path, *, patience: float) -> Iterator[None]:
    """Hold the lock of the run in `folder`.

    Args:
        folder: the run's; it need not exist.
        patience: seconds to wait while another process works on the run.

    Raises:
        BusyError: another process still does. The message names it.
    """
    path = path_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=False)
    try:
        lock.acquire(timeout=max(patience, _GLANCE), poll_interval=0.02)
    except Timeout:
        raise BusyError(f"{folder.name} is worked on by {_read(path) or 'another process'}") from None
    try:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        mine = Holder(socket.gethostname(), os.getpid(), since, os.environ.get("SLURM_JOB_ID"))
        path.write_text(json.dumps(asdict(mine)), encoding="utf-8")
        yield
    finally:
        lock.release()


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # its holder is just writing it
        return None
