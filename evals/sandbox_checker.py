"""What judges a model's program: it runs the tests in an interpreter of its own, where the program never was.

The program lives in another sandbox (`evals/sandbox_program.py`). A test that says `assert f(2) == 4` is run here, and
its `f` is a stand-in: it sends 2 over and gets plain data back, which are compared here. So a program cannot patch,
read or end what judges it, and an object of its own whose `==` is always true never comes here: what is not plain
arrives as a `Remote`, which refuses to be compared.

One checker serves many jobs, one after another, each in a fork of its own. It takes them from a socket, together with
the two descriptors that belong to the job: the channel to its program, and where the verdicts go. Every verdict
carries the nonce of its job, which is nowhere but here and in the process that started both sandboxes.

Arguments travel as copies. What a call changes in its lists, dicts and sets comes back only if it returned None, as
functions do that work in place: one that returns something could else spoil the very values that it is judged by
(`assert f(x) == sorted(x)`).
"""

import array
import builtins
import contextlib
import os
import socket
import sys

from evals.sandbox_confine import confine
from evals.sandbox_wire import (
    WireError,
    decode,
    encode,
    no_handles,
    plain_only,
    read_exactly,
    read_frame,
    write_frame,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_MOST_TEXT = 300
# A test could take these for the end of a loop of its own.
_NOT_RAISED = (StopIteration, StopAsyncIteration, GeneratorExit)


def main() -> None:
    """Serve jobs from a socket until its other end is closed."""
    settings = decode(read_exactly(0, os.fstat(0).st_size) or b"", no_handles)
    confine(settings["limits"], settings["user"])
    nowhere = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    control = socket.socket(fileno=settings["control"])
    while True:
        descriptors = array.array("i")
        head, ancillary, _, _ = control.recvmsg(1, socket.CMSG_SPACE(2 * descriptors.itemsize))
        if not head:
            return
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        payload = read_frame(control.fileno())
        if payload is None:
            return
        child = os.fork()
        if child == 0:
            control.close()
            try:
                _judge(decode(payload, no_handles), *descriptors)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(child, 0)


def _judge(job: "dict[str, Any]", channel: int, verdicts: int) -> None:
    """Run one job's tests; say as frames [nonce, place or what happened, passed, kind, message] what came of them."""

    def say(what: int | str, passed: bool = False, kind: str = "", message: str = "") -> None:
        write_frame(verdicts, encode([job["nonce"], what, passed, kind, message], plain_only))

    program = _Program(channel)
    if program.heard(0)[:1] != ["started"]:
        return
    say("started")
    loaded = program.heard(0)
    if loaded[:1] == ["failed"]:
        say("failed", False, loaded[1], "\n".join(text for text in loaded[2:4] if text))
        return
    if loaded[:1] != ["loaded"]:
        say("lost")
        return
    say("loaded")
    shared: dict[str, Any] = {"__name__": "tests"}
    try:
        _bind(shared, job["setup"]["names"], job["entry_points"], program)
        exec(compile(job["setup"]["text"], "<setup>", "exec", dont_inherit=True), shared)
        failed = None
    except BaseException as error:
        failed = (_kind(error), f"the tests' setup: {_told(error)}")
    for place, test in enumerate(job["tests"]):
        passed, kind, message = (False, *failed) if failed else _run(test, dict(shared), job["entry_points"], program)
        if program.lost:
            say("lost")
            return
        say(place, passed, kind, message)


def _bind(
    namespace: "dict[str, Any]", names: "list[str]", entry_points: "list[str] | None", program: "_Program"
) -> None:
    """Give a test what it uses and does not define: the program's functions, or modules of Python's library.

    A module that the program imported is not asked, nor a builtin that it replaced; only an entry point may be called
    like one.
    """
    asked = []
    for name in names:
        if entry_points is not None and name in (*entry_points, "candidate"):
            asked.append(entry_points[0] if name == "candidate" else name)
        elif name in namespace or hasattr(builtins, name):
            continue
        elif name in sys.stdlib_module_names:
            namespace[name] = __import__(name)
        elif entry_points is None:
            asked.append(name)
    if asked:
        namespace.update(program.ask("names", *asked))
    if entry_points and "candidate" in names and entry_points[0] in namespace:
        namespace["candidate"] = namespace[entry_points[0]]


def _run(
    test: "dict[str, Any]", namespace: "dict[str, Any]", entry_points: "list[str] | None", program: "_Program"
) -> tuple[bool, str, str]:
    """Whether a test passed, the kind of what went wrong, and what went wrong."""
    program.last_call = ""
    try:
        _bind(namespace, test["names"], entry_points, program)
        if test["got"]:
            got = eval(compile(test["got"], "<test>", "eval", dont_inherit=True), namespace)
            expected = eval(compile(test["expected"], "<test>", "eval", dont_inherit=True), namespace)
            if got == expected:
                return True, "", ""
            return False, "wrong", f"expected: {_short(expected)}\ngot: {_short(got)}"
        exec(compile(test["text"], "<test>", "exec", dont_inherit=True), namespace)
    except BaseException as error:
        told = _told(error)
        return False, _kind(error), f"{program.last_call}\n{told}" if program.last_call else told
    return True, "", ""


def _kind(error: BaseException) -> str:
    return "wrong" if isinstance(error, AssertionError) else type(error).__name__


def _told(error: BaseException) -> str:
    """Type and message of an error; of one in the program, the lines that it went through there."""
    trace = getattr(error, "program_trace", None)
    if isinstance(error, AssertionError) and trace is None:
        said = str(error)[:_MOST_TEXT]
        return f"the assertion does not hold{f': {said}' if said else ''}"
    said = str(error) if isinstance(error, _ProgramError | NotPlain) else f"{type(error).__name__}: {error}"
    return f"{said[:1000]}\n{trace}" if trace else said[:1000]


def _short(value: object) -> str:
    if isinstance(value, Remote):
        return repr(value)
    try:
        text = repr(value)
    except ValueError:  # an integer of too many digits
        text = f"{type(value).__name__} too long to show"
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "..."


# The program, from outside ------------------------------------------------------------------------------------


class _ProgramError(Exception):
    """An exception in the program that Python's library has no name for, or that must not be raised here."""


class NotPlain(TypeError):
    """A value that stays in the program was used where only a plain value can be judged."""


class _Program:
    """The process at the other end of the channel. Once `lost`, no test passes."""

    def __init__(self, channel: int) -> None:
        self._channel, self._number = channel, 0
        self.lost, self.last_call = False, ""

    def heard(self, number: int) -> "list[Any]":
        """What it says as answer to a question; [] if it says nothing, something else or rubbish, and is lost."""
        if not self.lost:
            try:
                payload = read_frame(self._channel)
                told = None if payload is None else decode(payload, lambda at, name: Remote(self, at, name))
            except (WireError, OSError):
                told = None
            if isinstance(told, list) and len(told) >= 2 and type(told[0]) is int and told[0] == number:
                return told[1:]
            self.lost = True
        return []

    def ask(self, operation: str, *operands: object) -> "Any":
        """What an operation gives there.

        Raises:
            Exception: what was raised there, by its name, if that is of Python's library.
            NotPlain: an operand can not be sent.
        """
        self._number += 1
        question = encode([self._number, operation, *operands], self._handle)
        try:
            write_frame(self._channel, question)
        except OSError:
            self.lost = True
        match self.heard(self._number):
            case ["value", value]:
                return value
            case ["raised", str(name), str(message), str(trace)]:
                raise _raised(name, message, trace)
        self.lost = True
        raise _ProgramError("the program ended")

    def _handle(self, value: object) -> tuple[int, str]:
        if isinstance(value, Remote):
            return object.__getattribute__(value, "_at"), ""
        raise NotPlain(f"{type(value).__name__} cannot be sent to the program: it is not a plain value")


def _raised(name: str, message: str, trace: str) -> BaseException:
    kind = getattr(builtins, name, None)
    error: BaseException = _ProgramError(f"{name}: {message}")
    if isinstance(kind, type) and issubclass(kind, BaseException) and not issubclass(kind, _NOT_RAISED):
        with contextlib.suppress(TypeError):  # it takes more than a message
            error = kind(message)
    error.program_trace = trace or "in the program"  # type: ignore[attr-defined]
    return error


class Remote:
    """Something that stays in the program: its functions, classes, objects. It can be called, asked and passed back."""

    __slots__ = ("_at", "_name", "_program")

    def __init__(self, program: _Program, at: int, name: str) -> None:
        for slot, value in (("_program", program), ("_at", at), ("_name", name)):
            object.__setattr__(self, slot, value)

    def __call__(self, *arguments: object, **named: object) -> "Any":
        program = self._program
        shown = [_short(value) for value in arguments] + [f"{name}={_short(held)}" for name, held in named.items()]
        program.last_call = f"last call: {self._name}({', '.join(shown)})"[:_MOST_TEXT]
        answer = program.ask("call", self, list(arguments), named)
        if not isinstance(answer, list) or not answer:
            program.lost = True
            raise _ProgramError("the program answered a call with no value")
        if answer[0] is None and len(answer) == 2 and isinstance(answer[1], list):
            for ours, theirs in zip(arguments, answer[1], strict=False):
                _changed(ours, theirs)
        program.last_call += f" gave {_short(answer[0])}"
        return answer[0]

    def __getattr__(self, name: str) -> "Any":
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask("get", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._program.ask("set", self, name, value)

    def __getitem__(self, key: object) -> "Any":
        return self._program.ask("item", self, key)

    def __len__(self) -> int:
        return int(self._program.ask("length", self))

    def __iter__(self) -> "Iterator[Any]":
        iterator = self._program.ask("iterate", self)
        while step := self._program.ask("next", iterator):
            yield step[0]

    def __str__(self) -> str:
        return str(self._program.ask("text", self))

    def __repr__(self) -> str:
        return f"<{self._name} of the program>"

    def __eq__(self, other: object) -> bool:
        raise NotPlain(f"{self!r} is not a plain value: it cannot be compared")

    def __bool__(self) -> bool:
        raise NotPlain(f"{self!r} is not a plain value: it is neither true nor false")

    __hash__ = object.__hash__


def _changed(ours: "Any", theirs: "Any") -> None:
    """Take over what a call in place made of an argument."""
    if type(ours) is not type(theirs):
        return
    if isinstance(ours, list | bytearray):
        ours[:] = theirs
    elif isinstance(ours, dict | set):
        ours.clear()
        ours.update(theirs)
