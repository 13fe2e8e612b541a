"""Preemption: told to stop (SIGTERM, SIGUSR1, a closed terminal), a run writes a checkpoint and can be resumed.

Clusters take machines back with a warning. The signal only raises a flag;
training and evaluation look at it between two steps, where everything is in order, leave a checkpoint, and end with
exit code 75 (EX_TEMPFAIL): the same command continues. A Slurm job asks to be queued again before it ends.
"""

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

EXIT_RESUMABLE = 75
"""Exit code of a command that was told to stop and can be resumed by typing it again."""

# SIGUSR2 is what submitit has Slurm send before the time limit.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)

_received: int | None = None
_listeners: list[Callable[[int], None]] = []


class Preempted(SystemExit):
    """The run was told to stop and did so in good order. Passes every `except Exception` and ends the process."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_RESUMABLE)
        self.message = message

    def __str__(self) -> str:
        return self.message


def requested() -> bool:
    """Whether this process has been told to stop."""
    return _received is not None


@contextlib.contextmanager
def listening(forward: Callable[[int], None] | None = None) -> Iterator[None]:
    """Take note of signals to stop, instead of dying of them; the former handlers are put back afterwards.

    May be nested: a signal that came during the outer one still counts in the inner one.

    Args:
        forward: called with the signal's number, to pass it on to workers.
    """
    global _received
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield
        return
    listener = forward or _ignore
    before: dict[int, Any] = {}
    if not _listeners:
        _received = None
        # Under nohup a closed terminal is to be ignored.
        heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, _note) for number in heard}
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _note(number: int, _frame: FrameType | None) -> None:
    global _received
    _received = number
    for listener in _listeners:
        listener(number)


def _ignore(_number: int) -> None:
    """Nothing to pass on."""


def stop(where: str) -> Preempted:
    """The exception to raise once the run is safe; a Slurm job is put back into the queue first.

    Args:
        where: what is done, e.g. `after step 120 of 300`.
    """
    name = signal.Signals(_received).name if _received is not None else "a signal"
    again = _requeue()
    return Preempted(f"stopped by {name} {where}; {again or 'the same command continues it'}")


def _requeue() -> str:
    """Have Slurm run this job again, unless it is being cancelled or has been queued already. Returns what to say."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_PROCID", "0") != "0":
        return ""
    # An element of an array goes by array and index: the number of the last one is also that of the whole array.
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{index}" if array and index else job
    state = _slurm("squeue", "--noheader", "--jobs", name, "--format", "%T")
    if state != "RUNNING":  # a cancelled job stays cancelled; a requeued one is queued already
        return f"Slurm says the job is {(state or '').lower() or 'gone'}"
    return f"Slurm job {name} is queued again" if _slurm("scontrol", "requeue", name) is not None else ""


def _slurm(*command: str) -> str | None:
    """What a Slurm command prints; None when it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s: %s", command[0], error)
        return None
    if done.returncode != 0:
        log.warning("%s: %s", " ".join(command), done.stderr.strip())
        return None
    return done.stdout.strip()
