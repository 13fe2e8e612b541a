"""The processes of one run: joined where torchrun, deepspeed or srun started them, else started here.

A run on several GPUs (`gpus=N`) or CPU cores (`processes=N`) has N workers on each node, each a rank of the same
DeepSpeed engines. Only rank 0 writes the run's files. No port is ever chosen first and bound later: the store that
ranks meet in takes a port from the system and tells it, so neighbours on a node cannot take it.

torch is imported when processes join or are started.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from runners import preemption
from runners.errors import UserError
from runners.expand import import_ours

log = logging.getLogger(__name__)

T = TypeVar("T")

# How long a rank waits for another in one exchange: reading data or a checkpoint may take one of them long.
PATIENCE = timedelta(hours=2)
_MEETING_SECONDS = 600.0
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class WorkerError(UserError):
    """A rank failed; the text names it. `trace` is its traceback, `expected` whether it is a user's mistake."""

    def __init__(self, text: str, trace: str = "", expected: bool = True) -> None:
        super().__init__(text)
        self.trace, self.expected = trace, expected


def given() -> bool:
    """Whether this process was started as one of a run's ranks, by torchrun, deepspeed or srun."""
    return _by_environment() or _by_slurm()


def is_first() -> bool:
    """Whether this process is rank 0, the one that writes."""
    name = "RANK" if _by_environment() else "SLURM_PROCID" if _by_slurm() else ""
    return os.environ.get(name, "0") == "0"


def _by_environment() -> bool:
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def _by_slurm() -> bool:
    return "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def join(meeting: Path) -> tuple[int, int]:
    """Join the process group of this run's ranks; alone, a group of one. Returns (rank, world).

    Args:
        meeting: a path on a file system that all ranks see; under srun rank 0 tells there where to meet.
    """
    import torch

    from runners.engine import join_deepspeed

    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if _by_environment():
            torch.distributed.init_process_group(backend, timeout=PATIENCE)
        elif _by_slurm():
            rank, world = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
            os.environ["LOCAL_RANK"] = _local_device()
            store = _meet(rank, world, meeting)
            torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
        else:
            # A store in memory: no port at all.
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
            atexit.register(_leave)
    os.environ.setdefault("LOCAL_RANK", "0")
    join_deepspeed()
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _leave() -> None:
    """End the group of a process that is alone; NCCL warns of groups that nobody ends."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _local_device() -> str:
    """The GPU of a Slurm task: the first, where Slurm shows each task its own only."""
    import torch

    local = int(os.environ.get("SLURM_LOCALID", "0"))
    return str(local if local < max(torch.cuda.device_count(), 1) else 0)


def _meet(rank: int, world: int, meeting: Path) -> Any:
    """The store of a Slurm step: rank 0 opens it on a free port and writes address and port to a file."""
    import torch

    step = "-".join(os.environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    path = meeting.with_name(f".{meeting.name}.meeting-{step}")
    host = socket.gethostname()
    if rank == 0:
        # An allocation of one node need not resolve its own name.
        host = "127.0.0.1" if os.environ.get("SLURM_STEP_NUM_NODES", "1") == "1" else host
        store = torch.distributed.TCPStore(host, 0, world, True, timeout=PATIENCE, wait_for_workers=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.writing")
        beside.write_text(json.dumps([host, store.port]))
        os.replace(beside, path)
    else:
        began = time.monotonic()
        while not path.is_file():
            if time.monotonic() - began > _MEETING_SECONDS:
                raise UserError(
                    f"rank {rank} waited {_MEETING_SECONDS:.0f} s for {path}; do all nodes see that folder?"
                )
            time.sleep(0.2)
        host, port = json.loads(path.read_text())
        store = torch.distributed.TCPStore(host, port, world, False, timeout=PATIENCE)
    store.add("met", 1)
    if rank == 0:
        while store.add("met", 0) < world:
            time.sleep(0.05)
        path.unlink()
    return store


def agree(value: T) -> T:
    """What rank 0 passes, on every rank. An exception that rank 0 passes is raised on every rank."""
    box: list[Any] = [value]
    if _several():
        import torch

        torch.distributed.broadcast_object_list(box, src=0)
    if isinstance(box[0], BaseException):
        raise box[0]
    result: T = box[0]
    return result


def first_decides(decide: Callable[[], T]) -> T:
    """What `decide()` returns on rank 0, on every rank; they fail together too."""
    if not _several():
        return decide()
    decided: Any = None
    if is_first():
        try:
            decided = decide()
        except Exception as error:
            decided = error
    agreed: T = agree(decided)
    return agreed


def stop(where: str) -> preemption.Preempted:
    """`preemption.stop` on every rank: none ends before the first has asked Slurm to queue the job again."""
    return preemption.Preempted(first_decides(lambda: str(preemption.stop(where))))


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on some rank; every rank asks."""
    if not _several():
        return flag
    import torch

    found = torch.tensor(int(flag))  # on the CPU, whose group is always there
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


def gather(value: T) -> list[T]:
    """What every rank passes, in their order; all of them call it."""
    if not _several():
        return [value]
    import torch

    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def _several() -> bool:
    """Whether this process is one of several that have joined."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def launch(count: int, threads: int | None, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work(*arguments)` in `count` new processes, the ranks of one group; returns what rank 0 returns.

    They are started by PyTorch's elastic launcher, die with this process, and get every signal to stop.

    Args:
        count: processes.
        threads: CPU threads of each; None shares the cores out.
        work: a function that can be imported by its name; each worker calls it.
        arguments: anything that can be pickled.

    Raises:
        WorkerError: a rank failed; the first to fail is named.
        Preempted: they were told to stop, and stopped in good order.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What it would tell of a failure, we tell in one line.
    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="retable-") as notes:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=f"retable-{os.getpid()}-{time.monotonic_ns()}",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",  # the agent's store takes a free port, and is the one that workers meet in
            max_restarts=0,
            signals_to_handle="SIGINT,SIGQUIT",  # the signals to stop are passed on by us
        )
        environment = {
            "OMP_NUM_THREADS": str(threads or max((os.cpu_count() or 1) // count, 1)),
            "LOCAL_RANK": None,
        }
        failure: BaseException | None = None
        told = Path(notes) / "stop"

        def pass_on(number: int) -> None:
            told.touch()  # for workers that are not there yet
            _pass_on(number)

        try:
            with _signals_kept(), preemption.listening(pass_on), _environment(environment):
                if preemption.requested():
                    raise preemption.stop("before its workers started")
                returned = elastic_launch(config, _worker)(os.getpid(), notes, sys.path, work, arguments)
        except ChildFailedError as error:
            failure = _first_failure(error.failures, Path(notes))
            if preemption.requested() and not list(Path(notes).glob("*.json")):
                failure = preemption.stop("while it started")  # workers without handlers yet die of the signal
        except SignalException:
            failure = KeyboardInterrupt()
        # The launcher's store, and with it its port, hangs on a cycle of references and on the exception's frames.
        gc.collect()
        if failure is not None:
            raise failure
    ended, value = returned[0]
    if ended == "preempted":
        raise preemption.Preempted(value)
    return value


def _worker(parent: int, notes: str, path: list[str], work: Callable[..., T], arguments: Any) -> tuple[str, T | str]:
    """What a new process does: die with its parent, note why it fails, report what it returns."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    import_ours()
    sys.path[:] = path
    _log_like_the_parent()
    try:
        with preemption.listening():
            if (Path(notes) / "stop").exists():
                os.kill(os.getpid(), signal.SIGTERM)
            return "done", work(*arguments)
    except preemption.Preempted as stopped:
        return "preempted", str(stopped)
    except BaseException as error:
        note = {
            "time": time.time(),
            "error": f"{type(error).__name__}: {error}",
            "text": str(error),
            "trace": traceback.format_exc(),
            "expected": isinstance(error, UserError),
        }
        (Path(notes) / f"{os.environ['RANK']}.json").write_text(json.dumps(note))
        raise SystemExit(1) from None
    finally:
        leave()


def leave() -> None:
    """Close the process group, if there is one, so that neither ports nor threads outlive the run."""
    torch = sys.modules.get("torch")
    if torch is None:
        return

    with contextlib.suppress(Exception):
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _log_like_the_parent() -> None:
    """Plain lines on stderr, from rank 0 only; others say only what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("runners", "evals"):
        logging.getLogger(name).setLevel(logging.INFO if is_first() else logging.WARNING)


def _first_failure(failures: Any, notes: Path) -> WorkerError:
    """The failure that the others followed: a killed rank before any other, else the first to note why it failed."""
    for rank, failure in failures.items():
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
            return WorkerError(f"rank {rank} (process {failure.pid}) was killed by {name}{hint}")
    told = {int(path.stem): json.loads(path.read_text()) for path in notes.glob("*.json")}
    if not told:
        rank, failure = next(iter(failures.items()))
        return WorkerError(f"rank {rank} (process {failure.pid}) ended with exit code {failure.exitcode}")
    rank = min(told, key=lambda rank: told[rank]["time"])
    note = told[rank]
    text = note["text"] if note["expected"] else note["error"]
    return WorkerError(f"{text} (rank {rank})", note["trace"], note["expected"])


def _pass_on(_number: int) -> None:
    """Tell the workers to stop. SIGTERM, whatever came: the others would kill multiprocessing's own helper."""
    for child in multiprocessing.active_children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid or 0, signal.SIGTERM)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back the handlers that the launcher replaces for good."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):  # not in the main thread, where nothing was replaced either
                signal.signal(number, handler)


@contextlib.contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    """Change environment variables for a while; None takes one away."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
