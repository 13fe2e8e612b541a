"""What runs inside the sandbox of a model's program: it loads the program, then answers questions about it.

The questions come from the checker (`evals/sandbox_checker.py`), a process of another sandbox, as frames of plain
values (`evals/sandbox_wire.py`): what is there by some name, call it with these arguments, the next of that iterator.
Nothing in this process knows a test, an expected value or how a verdict is told, so that a program may do here
whatever it likes.

It is loaded at every start of a sandbox and therefore imports next to nothing.
"""

import os
import sys

from evals.sandbox_confine import confine
from evals.sandbox_wire import decode, encode, no_handles, read_exactly, read_frame, write_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

_FILE = "<program>"
_MOST_TEXT = 1000


def main() -> None:
    """Read the job from standard input, confine, load, answer until the checker has asked everything."""
    size = os.fstat(0).st_size
    job = decode(read_exactly(0, size) or b"", no_handles)
    os.close(0)
    os.open("/dev/null", os.O_RDONLY)  # becomes 0
    confine(job["limits"], job["user"])
    channel = job["channel"]
    objects: list[Any] = []

    def say(number: int, *said: object) -> None:
        write_frame(channel, encode([number, *said], lambda value: _keep(objects, value)))

    say(0, "started")
    module: ModuleType = type(sys)("program")  # not __main__: what stands below its guard does not run
    sys.modules["program"] = module
    try:
        exec(compile(job["program"], _FILE, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        say(0, "failed", *_told(error, job["program"]))
        return
    say(0, "loaded")
    while (frame := read_frame(channel)) is not None:
        number, operation, *operands = decode(frame, lambda number, _: objects[number])
        try:
            say(number, "value", _OPERATIONS[operation](module, *operands))
        except BaseException as error:
            say(number, "raised", *_told(error, job["program"]))


def _keep(objects: "list[Any]", value: "Any") -> tuple[int, str]:
    objects.append(value)
    named = type(value) in (type, type(main), type(len))
    return len(objects) - 1, str(value.__name__ if named else type(value).__name__)[:100]


# Operations --------------------------------------------------------------------------------------------------


def _names(module: "ModuleType", *names: str) -> "dict[str, Any]":
    """Those of the names that the program has, each with its value."""
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def _call(module: "ModuleType", function: "Any", arguments: "list[Any]", named: "dict[str, Any]") -> "list[Any]":
    """[what it returned] or, of a call that returns None, [None, positional arguments as they are afterwards]."""
    returned = function(*arguments, **named)
    return [returned] if returned is not None else [None, arguments]


def _next(module: "ModuleType", iterator: "Any") -> "list[Any]":
    """[the next value], or [] at the end."""
    for value in iterator:
        return [value]
    return []


def _iterate(module: "ModuleType", value: "Any") -> "Any":
    return _Opaque(iter(value))


class _Opaque:
    """An iterator that is never taken for a plain value."""

    def __init__(self, iterator: "Any") -> None:
        self._iterator = iterator

    def __iter__(self) -> "Any":
        return self._iterator


_OPERATIONS: "dict[str, Any]" = {
    "names": _names,
    "call": _call,
    "get": lambda module, value, name: getattr(value, name),
    "set": lambda module, value, name, held: setattr(value, name, held),
    "item": lambda module, value, key: value[key],
    "length": lambda module, value: len(value),
    "text": lambda module, value: str(value),
    "iterate": _iterate,
    "next": _next,
}


# What was raised ---------------------------------------------------------------------------------------------


def _told(error: BaseException, program: str) -> tuple[str, str, str]:
    """Name of the type, message, and the last lines of the program on its way. (`traceback` is slow to load.)"""
    name = type(error).__name__
    try:
        message = str(error)[:_MOST_TEXT]
    except BaseException:
        message = "(its message cannot be told)"
    lines = program.splitlines()
    went: list[str] = []
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == _FILE:
            at = step.tb_lineno
            source = lines[at - 1].strip() if 0 < at <= len(lines) else ""
            went = [*went[-2:], f"line {at}, in {step.tb_frame.f_code.co_name}: {source}"]
        step = step.tb_next
    if isinstance(error, SyntaxError) and error.filename == _FILE:
        message, went = str(error.msg), [f"line {error.lineno}: {(error.text or '').strip()}"]
    return name, message, "\n".join(went)[:_MOST_TEXT]
