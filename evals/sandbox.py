"""A sandbox for Python that a model wrote: bubblewrap around the program, its tests judged outside of it.

Every program gets a fresh sandbox: no network, a read-only system without the user's files, a private /tmp, its own
process ids, an empty environment, a user of its own if root started it. It is killed with all that it started as soon
as its tests are done, and at the latest after `Limits.wall_seconds`.

Limits, and who keeps them:

    CPU time, file size, open files    the kernel, for each process (rlimits, `evals/sandbox_confine.py`)
    address space, processes           the kernel, for each process and for the sandbox
    all memory together                a look at all its processes every 20 ms (`evals/sandbox_watch.py`); what has no
                                       size there is refused (`evals/sandbox_seccomp.py`), /tmp has a size of its own
    wall time, output                  this process

For a moment, between two looks, more memory can be held; never more than processes x memory_mb, which the kernel sees
to.

A test counts as passed only by a line that says so with a nonce. It is told by the checker
(`evals/sandbox_checker.py`), in another sandbox: a program that exits with 0, prints a verdict, replaces builtins or
returns an object equal to everything passes nothing. The tests are taken to be honest; a hostile program is not.

The program sees Python's standard library only. Linux; `kind="unsafe"` does without bubblewrap: limits, time-outs and
killing remain (of the process group: a program that leaves it escapes), but it can read, write and kill what its user
can.
"""

import ast
import contextlib
import itertools
import os
import queue
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals import sandbox_watch, sandbox_wire
from evals.sandbox_launch import Anomaly, Launcher, Limits, Process

KINDS = ("bubblewrap", "unsafe")
_LOOK_SECONDS = 0.02
_PROBE_SECONDS = 30.0
_MOST_FEEDBACK = 1500
_MOST_SHOWN = 3  # failing tests in a feedback
_ENDED = "Not run: the program had ended."


# What goes in and what comes out -------------------------------------------------------------------------------


class SandboxError(RuntimeError):
    """No sandbox can be had, or it does not judge even a trivial program rightly: no fault of a program."""


@dataclass(frozen=True)
class Job:
    """A program and what it is judged by.

    program: Python source. tests: Python statements or blocks; each is run in a copy of what `setup` left behind, and
    passes if it ends without an exception. entry_point: the names of the program that tests may use, separated by
    commas; the first is also called `candidate` in tests. None: any name that neither tests, setup nor Python define.
    setup: run once, where the tests are run.
    """

    program: str
    tests: tuple[str, ...]
    entry_point: str | None = None
    setup: str = ""

    def __post_init__(self) -> None:
        if not self.tests:
            raise ValueError("tests=(): must hold at least one test")
        if self.entry_point is not None and not all(name.isidentifier() for name in self.names or []):
            raise ValueError(f"entry_point={self.entry_point!r}: must be names of Python, separated by commas")

    @property
    def names(self) -> list[str] | None:
        """The names of the entry point."""
        return None if self.entry_point is None else [name.strip() for name in self.entry_point.split(",")]


@dataclass(frozen=True)
class TestOutcome:
    """message: the test and what went wrong; empty if it passed."""

    __test__ = False  # not a test of pytest's

    passed: bool
    message: str


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    status: ok (all tests were run, whatever came of them), syntax_error, error (the program raised while it was
    loaded), timeout, memory, output (too much of it), crashed (it ended in the midst). stdout, stderr: cut to the
    limit. seconds: wall time.
    """

    tests: tuple[TestOutcome, ...]
    status: str
    stdout: str
    stderr: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return all(test.passed for test in self.tests)

    @property
    def score(self) -> float:
        """Share of the tests that passed."""
        return sum(test.passed for test in self.tests) / len(self.tests)

    @property
    def feedback(self) -> str:
        """What a model can learn from: how many passed, and the first failing tests; 1500 characters at most."""
        told = f"Passed {sum(test.passed for test in self.tests)} of {len(self.tests)} tests."
        messages = dict.fromkeys(test.message for test in self.tests if not test.passed and test.message != _ENDED)
        text = "\n".join([told, *itertools.islice(messages, _MOST_SHOWN)])
        return text if len(text) <= _MOST_FEEDBACK else text[: _MOST_FEEDBACK - 3] + "..."


# The sandbox -------------------------------------------------------------------------------------------------


class Sandbox:
    """Runs jobs, at most `workers` at once, each in a fresh sandbox. A context manager.

    At the start, and whenever a sandbox did not come up or its checker was lost, a program is run whose outcome is
    known: what cannot be relied on raises, instead of giving every program a score of 0.
    """

    def __init__(self, kind: str = "bubblewrap", limits: Limits | None = None, workers: int | None = None) -> None:
        """kind: bubblewrap, or unsafe. workers: default, one more than the CPUs that this process may use: one of
        them mostly waits for the kernel.

        Raises:
            ValueError: another kind, no workers.
            SandboxError: bubblewrap is not there, or the probe fails.
        """
        if kind not in KINDS:
            raise ValueError(f"sandbox={kind}: must be one of {', '.join(KINDS)}")
        workers = len(os.sched_getaffinity(0)) + 1 if workers is None else workers
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers={workers}: must be a whole number >= 1")
        bubblewrap = shutil.which("bwrap") if kind == "bubblewrap" else None
        if kind == "bubblewrap" and bubblewrap is None:
            raise SandboxError(
                "sandbox=bubblewrap: bubblewrap is not installed, without which no program of a model is run. "
                "Install it (apt-get install bubblewrap), or say sandbox=unsafe to run them as your own user"
            )
        self.limits = limits or Limits()
        self._folder = tempfile.TemporaryDirectory(prefix="sandbox-")
        launcher = Launcher(bubblewrap, Path(self._folder.name), self.limits)
        self._workers = [_Worker(launcher) for _ in range(workers)]
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        # Threads that stay: with the thread that started it, a sandbox is killed.
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
        try:
            self._pool.submit(self._workers[0].probe).result()
        except BaseException:
            self.close()
            raise

    def run(self, job: Job) -> Outcome:
        """What came of one job; see `run_all`."""
        return self.run_all([job])[0]

    def run_all(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What came of each job, in their order.

        Raises:
            SandboxError: a sandbox did not come up, twice, or the probe failed.
        """
        return list(self._pool.map(self._judged, jobs))

    def _judged(self, job: Job) -> Outcome:
        worker = self._free.get()
        try:
            return worker.run(job)
        except Anomaly as anomaly:
            raise SandboxError(str(anomaly)) from anomaly
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """End what still runs; the sandbox cannot be used any more."""
        self._pool.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._folder.cleanup()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _CheckerLost(Anomaly):
    """The checker ended before it had judged all tests; `outcome` is what it had judged until then."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__("the checker ended")
        self.outcome = outcome


_PROBE = Job(
    "import heapq\ndef double(x):\n    return 2 * x", ("assert double(3) == 6", "assert double(3) == 7"), "double"
)


class _Worker:
    """Runs one job after another; keeps the checker from one to the next."""

    def __init__(self, launcher: "Launcher") -> None:
        self._launcher = launcher
        self._checker: _Checker | None = None

    def run(self, job: Job) -> Outcome:
        """What came of a job; after a probe and a second try if what went wrong is not the program's doing."""
        try:
            return self._once(job, self._launcher.limits.wall_seconds)
        except Anomaly:
            self.close()
            self.probe()
        try:
            return self._once(job, self._launcher.limits.wall_seconds)
        except _CheckerLost as lost:
            self.close()
            return lost.outcome
        except Anomaly as anomaly:
            raise SandboxError(f"a sandbox did not come up, twice: {anomaly}") from anomaly

    def probe(self) -> None:
        """Run a program whose outcome is known.

        Raises:
            SandboxError: the outcome is another.
        """
        try:
            outcome = self._once(_PROBE, _PROBE_SECONDS)
        except Anomaly as anomaly:
            self.close()
            said = f"{anomaly} {self._launcher.complaints()}".strip()
            raise SandboxError(f"a sandbox cannot be had here: {said}") from anomaly
        if [test.passed for test in outcome.tests] != [True, False]:
            raise SandboxError(f"a sandbox judges a trivial program wrongly: {outcome.status}, {outcome.feedback}")

    def close(self) -> None:
        """End the checker; the next job starts another."""
        checker, self._checker = self._checker, None
        if checker is not None:
            checker.end()

    def _once(self, job: Job, wall_seconds: float) -> Outcome:
        begun = time.monotonic()
        try:
            with contextlib.ExitStack() as stack:
                run = _Run(job, begun, wall_seconds, self._launcher.limits, stack)
                if self._checker is None or not self._checker.alive():
                    self.close()
                    self._checker = _Checker(self._launcher)
                self._checker.take(run.question(), run.given, wall_seconds)
                run.start(self._launcher)
                try:
                    run.watch()
                finally:
                    run.end()
                if not run.checker_done():
                    self.close()
                return run.outcome()
        except OSError as error:
            raise Anomaly(f"{type(error).__name__}: {error}") from error


class _Checker:
    """The process that judges, in a sandbox of its own; it serves one job at a time."""

    def __init__(self, launcher: "Launcher") -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = launcher.start("sandbox_checker", {"control": theirs.fileno()}, [theirs.fileno()], None)

    def alive(self) -> bool:
        return self._process.popen.poll() is None

    def take(self, question: bytes, given: Iterable[int], seconds: float) -> None:
        """Hand over a job with its descriptors."""
        self._control.settimeout(seconds)
        socket.send_fds(self._control, [b"j"], list(given))
        self._control.sendall(len(question).to_bytes(4, "little") + question)

    def end(self) -> None:
        self._control.close()
        self._process.kill()


class _Run:
    """One job in its sandbox, from its start to its outcome."""

    def __init__(
        self, job: Job, begun: float, wall_seconds: float, limits: Limits, stack: contextlib.ExitStack
    ) -> None:
        self._job, self._limits, self._begun, self._wall_seconds = job, limits, begun, wall_seconds
        self._nonce = secrets.token_hex(16)
        self._verdicts: list[TestOutcome] = []
        self._said, self._kinds = bytearray(), set[str]()
        self._started, self._broken_load, self._reason, self._status = False, False, "", "ok"
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        self._process: Process | None = None
        # The descriptors of the job: what goes to the checker is closed here once it is sent.
        self._channel, self._to_program = socket.socketpair()
        self._read, self._write = os.pipe()
        for closing in (self._channel.close, self._to_program.close):
            stack.callback(closing)
        stack.callback(os.close, self._read)
        self._close_write = stack.enter_context(contextlib.ExitStack())
        self._close_write.callback(os.close, self._write)
        os.set_blocking(self._read, False)
        self._open: dict[int, str] = {self._read: "verdicts"}
        self._stack = stack

    @property
    def given(self) -> tuple[int, int]:
        """The checker's descriptors: its end of the channel, and where it tells verdicts."""
        return self._channel.fileno(), self._write

    def question(self) -> bytes:
        """The job as the checker takes it."""
        names = self._job.names
        asked = {
            "nonce": self._nonce,
            "entry_points": names,
            "setup": _analysed(self._job.setup, names),
            "tests": [_analysed(test, names) for test in self._job.tests],
        }
        return sandbox_wire.encode(asked, sandbox_wire.plain_only)

    def start(self, launcher: "Launcher") -> None:
        """Start the program."""
        self._channel.close()
        self._close_write.close()
        theirs = self._to_program.fileno()
        said = {"channel": theirs, "program": self._job.program}
        self._process = launcher.start("sandbox_program", said, [theirs], subprocess.PIPE)
        self._to_program.close()
        for name, pipe in (("stdout", self._process.popen.stdout), ("stderr", self._process.popen.stderr)):
            assert pipe is not None
            self._stack.callback(pipe.close)
            os.set_blocking(pipe.fileno(), False)
            self._open[pipe.fileno()] = name

    def watch(self) -> None:
        """Take in what is said until all is judged or a limit is passed."""
        assert self._process is not None
        deadline, looked = self._begun + self._wall_seconds, time.monotonic()
        most = self._limits.memory_mb << 20
        while self._read in self._open and len(self._verdicts) < len(self._job.tests):
            now = time.monotonic()
            if now >= deadline:
                self._stop("timeout", f"Time-out: it was not done within {self._wall_seconds:g} seconds.")
                return
            self._take_in(min(deadline - now, _LOOK_SECONDS))
            if any(len(held) > self._limits.output_kb << 10 for held in self._output.values()):
                self._stop("output", f"Too much output: more than {self._limits.output_kb} kB.")
                return
            if time.monotonic() - looked >= _LOOK_SECONDS:
                if sandbox_watch.memory(self._process.popen.pid, most) > most:
                    self._stop("memory", f"Out of memory: more than {self._limits.memory_mb} MB.")
                    return
                looked = time.monotonic()

    def _stop(self, status: str, reason: str) -> None:
        if not self._reason:  # the first is the cause of those that follow
            self._status, self._reason = status, reason

    def _take_in(self, seconds: float) -> None:
        ready = select.poll()
        for descriptor in self._open:
            ready.register(descriptor, select.POLLIN)
        for descriptor, _ in ready.poll(max(1, seconds * 1000)):
            try:
                piece = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                continue
            name = self._open[descriptor]
            if not piece:
                del self._open[descriptor]
            elif name == "verdicts":
                self._said += piece
                self._hear()
            else:
                self._output[name] += piece

    def _hear(self) -> None:
        while len(self._said) >= 4 and len(self._said) >= 4 + (size := int.from_bytes(self._said[:4], "little")):
            frame = bytes(self._said[4 : 4 + size])
            del self._said[: 4 + size]
            nonce, what, passed, kind, message = sandbox_wire.decode(frame, sandbox_wire.no_handles)
            if not secrets.compare_digest(nonce, self._nonce):
                continue
            if what == "started":
                self._started = True
                assert self._process is not None
                self._process.hold()
            elif what == "failed":
                self._failed_to_load(kind, message)
            elif what == "lost":
                self._lost()
            elif what == len(self._verdicts):
                self._kinds.add(kind)
                test = self._job.tests[what]
                self._verdicts.append(TestOutcome(passed is True, "" if passed is True else _failed(test, message)))

    def _failed_to_load(self, kind: str, message: str) -> None:
        self._broken_load = True
        if kind in ("SyntaxError", "IndentationError", "TabError"):
            self._stop("syntax_error", f"Syntax error: {message}")
        elif kind == "MemoryError":
            self._stop("memory", f"Out of memory while the program was loaded: {message or kind}")
        else:
            said = f"{kind}: {message}" if message else kind
            self._stop("error", f"The program could not be loaded: {said}")

    def _lost(self) -> None:
        """The program is no longer there: how did it end?"""
        assert self._process is not None
        try:
            code = self._process.popen.wait(1.0)
        except subprocess.TimeoutExpired:
            self._stop("crashed", "The program said something that is no answer.")
            return
        number = -code if code < 0 else code - 128 if code > 128 else 0
        if number == signal.SIGXCPU:
            self._stop("timeout", f"Time-out: more than {self._limits.cpu_seconds:g} seconds of CPU time.")
        elif number in set(signal.Signals):
            self._stop("crashed", f"The program was ended by {signal.Signals(number).name}.")
        else:
            self._stop("crashed", f"The program ended itself (exit code {code}).")

    def end(self) -> None:
        """Kill the program with all that it started, and take in what was still said."""
        assert self._process is not None
        self._process.kill()
        for _ in range(3):
            self._take_in(0.001)
        deadline = time.monotonic() + 1.0
        while self._read in self._open and time.monotonic() < deadline and not self._all_judged():
            self._take_in(deadline - time.monotonic())

    def _all_judged(self) -> bool:
        return len(self._verdicts) == len(self._job.tests)

    def checker_done(self) -> bool:
        """Whether the checker has let go of this job."""
        return self._read not in self._open or self._all_judged()

    def outcome(self) -> Outcome:
        """What came of it.

        Raises:
            Anomaly: the sandbox never came up, or the checker was lost.
        """
        stdout, stderr = (
            bytes(held[: self._limits.output_kb << 10]).decode("utf-8", "replace") for held in self._output.values()
        )
        if not self._started:
            raise Anomaly(stderr.strip()[-500:] or self._reason or "it said nothing")
        lost = not self._all_judged() and not self._reason
        if lost:
            self._stop("crashed", "The test ended what judges it.")
        if self._status == "ok" and "MemoryError" in self._kinds:
            self._status = "memory"
        judged = len(self._verdicts)
        for place, test in enumerate(self._job.tests[judged:]):
            message = self._reason if self._broken_load else _ENDED if place else _failed(test, self._reason)
            self._verdicts.append(TestOutcome(False, message))
        outcome = Outcome(tuple(self._verdicts), self._status, stdout, stderr, time.monotonic() - self._begun)
        if lost:
            raise _CheckerLost(outcome)
        return outcome


def _failed(test: str, message: str) -> str:
    shown = test.strip().removeprefix("assert ")
    shown = shown if len(shown) <= 300 else shown[:300] + "..."
    return "\n  ".join([f"Failed: {shown}", *message.splitlines()])


# Tests, taken apart --------------------------------------------------------------------------------------------


def _analysed(source: str, entry_points: Sequence[str] | None) -> dict[str, Any]:
    """What the checker needs of a piece of test code: the names it reads, and the two sides of `assert a == b`."""
    found: dict[str, Any] = {"text": source, "names": [], "got": "", "expected": ""}
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return found  # the checker says what is wrong
    found["names"] = sorted(_names(tree))
    match tree.body:
        case [ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]))]:
            wanted = {*(entry_points or ()), "candidate"}
            if _names(right) & wanted and not _names(left) & wanted:
                left, right = right, left
            found["got"], found["expected"] = ast.unparse(left), ast.unparse(right)
    return found


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
