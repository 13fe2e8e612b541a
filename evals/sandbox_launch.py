"""How the processes of a sandbox are started, each inside bubblewrap, and how they are ended.

Inside there is Python with its standard library, read-only; an empty /tmp of a limited size; a /proc of its own process
ids; four devices. There is no network, no home folder, nothing of the environment. Where root starts it, the process
keeps the right to become another user, and uses it before it reads anything of a program (`evals/sandbox_confine.py`);
elsewhere bubblewrap makes a user namespace.
"""

import contextlib
import itertools
import math
import os
import py_compile
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from evals import sandbox_seccomp, sandbox_watch, sandbox_wire

_MODULES = ("__init__", "sandbox_wire", "sandbox_confine", "sandbox_program", "sandbox_checker")
_KILL_SECONDS = 10.0
_USERS = 128  # of one process, before the first number comes again
_NUMBERS = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use. All of them are guesses of ours that short exercises stay far below.

    cpu_seconds: of each process. wall_seconds: of everything, loading and tests. memory_mb: address space of each
    process, and memory of all of them together. processes: with threads. file_mb: the largest file, and /tmp as a
    whole. output_kb: of standard output, and of standard error.
    """

    cpu_seconds: float = 10.0
    wall_seconds: float = 10.0
    memory_mb: int = 512
    processes: int = 16
    file_mb: int = 16
    output_kb: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.type in (int, "int")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise ValueError(f"{field.name}={value!r}: must be a {'whole number' if whole else 'number'}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name}={value}: must be finite and > 0")


class Anomaly(Exception):
    """Something that is no program's doing."""


class Launcher:
    """Starts the two scripts of a sandbox, each inside bubblewrap (or, unsafe, as they are)."""

    def __init__(self, bubblewrap: str | None, folder: Path, limits: Limits) -> None:
        self.limits, self._folder, self._bubblewrap = limits, folder, bubblewrap
        self._python = os.path.realpath(sys.executable)
        self._root = os.geteuid() == 0 and bubblewrap is not None
        # Compiled once: a sandbox is started a thousand times.
        inside = folder / "inside"
        (inside / "evals").mkdir(parents=True)
        for name in _MODULES:
            source = Path(__file__).with_name(f"{name}.py")
            py_compile.compile(str(source), str(inside / "evals" / f"{name}.pyc"), doraise=True)
        (folder / "scratch").mkdir()
        self._complaints = folder / "complaints"
        self._complaints.touch()
        refusals = sandbox_seccomp.refusals()
        self._refusals = folder / "refusals"
        self._refusals.write_bytes(refusals or b"")
        self._refuses = bubblewrap is not None and refusals is not None
        self._isolation = self._isolating()

    def start(self, script: str, said: dict[str, Any], passed: list[int], output: int | None) -> "Process":
        """Start a script that is told something, with descriptors; `output`: PIPE, or None for nowhere."""
        told = {**said, "limits": self._limits(), "user": _unused_user() if self._root else None}
        folder = "/sandbox" if self._bubblewrap else str(self._folder / "inside")
        code = f"import sys; sys.path[0] = {folder!r}; from evals.{script} import main; sys.path[0:1] = []; main()"
        command = [self._python, "-S", "-s", "-B", "-u", "-c", code]  # -u: it is killed, never flushed
        with tempfile.TemporaryFile() as standard_input, contextlib.ExitStack() as stack:
            standard_input.write(sandbox_wire.encode(told, sandbox_wire.plain_only))
            standard_input.seek(0)
            if self._bubblewrap:
                refusals = None
                if self._refuses:
                    refusals = os.open(self._refusals, os.O_RDONLY)
                    stack.callback(os.close, refusals)
                    passed = [*passed, refusals]
                command = [self._bubblewrap, *self._isolation, *_seccomp(refusals), "--", *command]
            said_to = output or stack.enter_context(open(self._complaints, "ab"))
            started = subprocess.Popen(
                command,
                stdin=standard_input,
                stdout=said_to,
                stderr=said_to,
                pass_fds=passed,
                env=_ENVIRONMENT,
                cwd="/" if self._bubblewrap else self._folder / "scratch",
                start_new_session=not self._bubblewrap,
            )
            return Process(started, self._bubblewrap is not None)

    def complaints(self) -> str:
        """The last of what was said by bubblewrap or a checker that did not come up."""
        return self._complaints.read_bytes()[-500:].decode("utf-8", "replace").strip()

    def _limits(self) -> dict[str, int]:
        # Outside a sandbox processes cannot be counted; without root, bubblewrap's own first process counts as one.
        processes = self.limits.processes + (not self._root) if self._bubblewrap else 0
        return {
            "cpu_seconds": math.ceil(self.limits.cpu_seconds) + 1,
            "memory_bytes": self.limits.memory_mb << 20,
            "file_bytes": self.limits.file_mb << 20,
            "processes": processes,
        }

    def _isolating(self) -> list[str]:
        options = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        options += ["--die-with-parent", "--new-session"]
        if self._root:
            # Only to become another user, before anything of the program is read.
            options += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            options += ["--unshare-user", "--cap-drop", "ALL"]
        for name in ("/usr", "/lib", "/lib64", "/bin"):
            if os.path.islink(name):
                options += ["--symlink", os.readlink(name), name]
            elif os.path.isdir(name):
                options += ["--ro-bind", name, name]
        prefix = os.path.realpath(sys.base_prefix)
        folders = ["/dev"]
        if prefix != "/usr" and not prefix.startswith("/usr/"):
            folders += [str(parent) for parent in reversed(Path(prefix).parents)][1:]
            options += [*_folders(folders), "--ro-bind", prefix, prefix]
        else:
            options += _folders(folders)
        options += ["--ro-bind", str(self._folder / "inside"), "/sandbox", "--proc", "/proc"]
        for name in ("null", "zero", "random", "urandom"):
            options += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        options += ["--perms", "1777", "--size", str(self.limits.file_mb << 20), "--tmpfs", "/tmp", "--chdir", "/tmp"]
        options += ["--remount-ro", "/"]  # it is a file system in memory, of no limited size
        return options


def _seccomp(refusals: int | None) -> list[str]:
    return [] if refusals is None else ["--seccomp", str(refusals)]


def _folders(paths: Iterable[str]) -> list[str]:
    """Empty folders that everybody may enter: those that bubblewrap makes by itself are root's alone."""
    return [word for path in paths for word in ("--perms", "0755", "--dir", path)]


# Hashes are the same in every run, so that a program which depends on the order of a set does too.
_ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "1",  # an arena for each thread would use up the address space
    "OMP_NUM_THREADS": "1",
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",
}


def _unused_user() -> int:
    """A user id that nobody has: a high one, others for every process that runs sandboxes, a new one each time."""
    with open("/proc/self/uid_map") as told:
        first, _, count = map(int, told.read().split()[-3:])
    last = min(first + count, 2_000_000_000) - 1
    span = min(count // 2, 1 << 29)
    return last - (os.getpid() * _USERS + next(_NUMBERS) % _USERS) % span


class Process:
    """A process that was started for a sandbox, to be killed with all below it."""

    def __init__(self, popen: "subprocess.Popen[bytes]", contained: bool) -> None:
        self.popen, self._contained = popen, contained
        self._firsts: dict[int, int] = {}

    def hold(self) -> None:
        """Keep hold of the first process of its process namespace: the kernel ends all others with it, and it last."""
        for child in sandbox_watch.children(self.popen.pid) if self._contained else []:
            if child not in self._firsts:
                with contextlib.suppress(ProcessLookupError):
                    self._firsts[child] = os.pidfd_open(child)

    def kill(self) -> None:
        """End it (unsafe: its process group) and wait until it is gone.

        Raises:
            Anomaly: it does not end.
        """
        try:
            if self._contained:
                self._kill_namespace()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired as late:
            raise Anomaly("a sandbox does not end") from late
        finally:
            while self._firsts:
                os.close(self._firsts.popitem()[1])

    def _kill_namespace(self) -> None:
        if self.popen.poll() is None:
            self.hold()
        for first in self._firsts.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(first, signal.SIGKILL)
        if not all(_ended(first, _KILL_SECONDS) for first in self._firsts.values()):
            raise Anomaly("a sandbox does not end")
        # Left alone, bubblewrap takes note of that end and ends as well; killed, it would leave a zombie to process 1.
        if self._firsts and self.popen.poll() is None:
            outer = os.pidfd_open(self.popen.pid)
            _ended(outer, 1.0)
            os.close(outer)
        self.popen.kill()


def _ended(descriptor: int, seconds: float) -> bool:
    """Whether the process of a pidfd ends within so many seconds."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))
