r"""Whether a response gives the answer of its reference, by math-verify (github.com/huggingface/Math-Verify).

What is taken for the answer of a text, the first of these that it has (this order is ours):

    the last complete \boxed{...}      \boxed{\frac{1}{2}}
    the last <answer>...</answer>      <answer>1/2</answer>
    what follows the last ####, on its line, or the last "answer is" or "answer:"      #### 1,234

A reference without any of them is an answer itself. In a box, an <answer> or a bare reference LaTeX is read; after
"####" and "answer is", numbers, fractions of them and LaTeX between dollars, so that words may follow. As in TRL's
accuracy reward a response is never searched for just any number: one that states no answer is wrong. Floats are
compared after math-verify's rounding to six decimals, everything else must be equal symbolically.

A policy in training writes anything, and sympy would work on some of it for hours. So:

- answers longer than `LONGEST_ANSWER` characters, or with brackets in brackets beyond `DEEPEST_BRACKETS`, are none (the
  time of the LaTeX parser doubles with every few of them);
- an expression with a power or a factorial beyond `LARGEST_EXPONENT` is not computed, only compared as text;
- math-verify runs in a process of its own, which the kernel ends after `CPU_SECONDS` of one comparison (then the answer
  counts as wrong) and to which it gives at most `MEMORY_BYTES`. It is started at the first comparison and again when it
  was ended. math-verify's own limits are not used: they are signals, which work in the main thread only.

All these limits are ours.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import math
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

LONGEST_ANSWER = 500
DEEPEST_BRACKETS = 12
LARGEST_EXPONENT = 10_000
CPU_SECONDS = 3
MEMORY_BYTES = 4 * 2**30
_WALL_SECONDS = 60.0  # only for a process that waits without computing: a busy machine must not decide what is right

_BRACES = re.compile(r"\\boxed\s*\{|\\[{}\\]|[{}]")
_STATED = re.compile(r"####|\banswer(?:\s+is\b:?|\s*:)", re.IGNORECASE)


# Rewards -----------------------------------------------------------------------------------------------------


def correct(prompts: Sequence[str], responses: Sequence[str], answers: Sequence[str]) -> list[float | None]:
    """1 for a response with the answer of its reference, else 0; None where the reference has none that can be read.

    Args:
        prompts: not looked at.
        responses: text.
        answers: references: an answer, or a whole solution that ends in one (`#### 42`, `\\boxed{42}`).

    Raises:
        ImportError: math-verify is not installed.
    """
    return [_scored(response, reference) for response, reference in zip(responses, answers, strict=True)]


def binary(
    prompts: Sequence[str],
    responses: Sequence[str],
    answers: Sequence[str],
    *,
    right: float = 1.0,
    wrong: float = 0.0,
) -> list[float | None]:
    """`correct` on another scale, e.g. `wrong=-1`; a method that asks whether a response is solved needs right >= 1.

    Raises:
        ValueError: a score that is not finite, or right <= wrong.
    """
    for name, value in (("right", right), ("wrong", wrong)):
        if not math.isfinite(value):
            raise ValueError(f"{name}={value}: must be finite")
    if not right > wrong:
        raise ValueError(f"right={right}: must be above wrong={wrong}")
    scores = correct(prompts, responses, answers)
    return [None if score is None else right if score else wrong for score in scores]


def _scored(response: str, reference: str) -> float | None:
    gold = _readable_reference(reference)
    if gold is None or not _verifier.ask("parses", gold):
        return None
    candidate = _readable_response(response)
    return float(candidate is not None and _verifier.ask("equal", gold, candidate))


# What else is asked of answers -------------------------------------------------------------------------------


def states_answer(response: str) -> bool:
    """Whether a response states an answer that sympy can read."""
    text = _readable_response(response)
    return text is not None and _verifier.ask("expression", text)


def agree(first: str, second: str) -> bool:
    """Whether two responses state the same answer; False if one of them states none."""
    readable = [_readable_response(response) for response in (first, second)]
    return None not in readable and _verifier.ask("equal", *readable)


def stated(text: str) -> str | None:
    """The answer of a text as it stands there, or None."""
    found = _found(text)
    return None if found is None else found[1]


def last_boxed(text: str) -> str | None:
    r"""What is in the last \boxed{...} whose braces are balanced, or None."""
    opened: list[tuple[bool, int]] = []
    last, at = None, -1
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            boxed, start = opened.pop() if opened else (False, 0)
            if boxed and start > at:
                last, at = text[start : match.start()], start
        elif len(token) != 2:  # \{, \} and \\ open and close nothing
            opened.append((token != "{", match.end()))
    return last


# From text to what math-verify reads -------------------------------------------------------------------------


def _found(text: str) -> tuple[str, str] | None:
    """How the answer of a text is marked ("box", "tag" or "line"), and the answer."""
    boxed = last_boxed(text)
    if boxed is not None:
        return "box", boxed.strip()
    before, closed, _ = text.rpartition("</answer>")
    _, opened, inside = before.rpartition("<answer>")
    if closed and opened:
        return "tag", inside.strip()
    marks = list(_STATED.finditer(text))
    if not marks:
        return None
    lines = text[marks[-1].end() :].strip().splitlines()
    return "line", lines[0].strip() if lines else ""


def _readable(mark: str, answer: str) -> str | None:
    """An answer in the form that math-verify finds for certain."""
    if not answer or len(answer) > LONGEST_ANSWER or _depth(answer) > DEEPEST_BRACKETS:
        return None
    answer = answer.replace(r"\%", "%")
    if mark == "line":
        answer = answer.replace("**", "").replace("%$", "$%")
        return "answer: " + (answer.replace("$", "") if answer.count("$") == 1 else answer)  # one dollar: a currency
    for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        inner = answer.removeprefix(left).removesuffix(right)
        if len(inner) == len(answer) - len(left + right):
            answer = inner
            break
    # A percent sign is understood after a formula only.
    return rf"$\boxed{{{answer.removesuffix('%')}}}$%" if answer.endswith("%") else rf"\boxed{{{answer}}}"


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest


def _readable_response(response: str) -> str | None:
    found = _found(response)
    return None if found is None else _readable(*found)


def _readable_reference(reference: str) -> str | None:
    return _readable(*(_found(reference) or ("bare", reference.strip())))


# The process of math-verify ----------------------------------------------------------------------------------


class _Verifier:
    """This side of the process. One question at a time, from any thread; a forked process starts one of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._asked = functools.lru_cache(maxsize=100_000)(self._ask)

    def ask(self, *question: str | None) -> bool:
        """False also if the answer took too long. What was asked before is remembered."""
        with self._lock:
            return self._asked(*question)

    def _ask(self, *question: str | None) -> bool:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._start()
        answer = self._sent(json.dumps(question).encode() + b"\n")
        if answer is None:
            self.stop()
        return answer == b"1"

    def _start(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("math-verify is not installed: pip install math-verify")
        # -P: the modules beside this file must not be found in place of others. The seed: sympy orders by hash.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(CPU_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the training, which then ends this
            env={**os.environ, **threads, "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""},
        )
        self._owner = os.getpid()
        if self._received() is None:
            self.stop()
            raise RuntimeError("the process of math-verify did not start (what it said is above)")

    def _sent(self, line: bytes) -> bytes | None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            return None
        return self._received()

    def _received(self) -> bytes | None:
        """The one byte of an answer; None if the process ended or says nothing."""
        assert self._process is not None and self._process.stdout is not None
        out = self._process.stdout.fileno()
        waiting = select.poll()  # select.select fails in a process with more than 1024 open files
        waiting.register(out, select.POLLIN)
        return (os.read(out, 1) or None) if waiting.poll(_WALL_SECONDS * 1000) else None

    def stop(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        self._process = None


_verifier = _Verifier()
atexit.register(_verifier.stop)


def _serve(cpu_seconds: int) -> None:
    """The process: a question a line (JSON), an answer a byte."""
    import logging
    import resource

    import math_verify

    logging.disable(logging.CRITICAL)
    boxed = math_verify.LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    numbers = math_verify.ExprExtractionConfig(try_extract_without_anchor=False)

    @functools.lru_cache(maxsize=10_000)
    def parsed(text: str) -> list[Any]:
        configs = [boxed, numbers] if text.startswith("answer") else [boxed]
        found = math_verify.parse(text, configs, parsing_timeout=None)
        return [one for one in found if isinstance(one, str) or not _too_large(one)]

    def answer(kind: str, first: str, second: str | None = None) -> bool:
        one = parsed(first)
        if kind == "equal":
            return bool(math_verify.verify(one, parsed(second or ""), timeout_seconds=None))
        return bool(one) if kind == "parses" else any(not isinstance(part, str) for part in one)

    def limit(kind: int, value: int) -> None:
        """Set the soft limit, within the hard one that this process was given."""
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))

    out = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.write(out, b"1")  # started
    for stream in (1, 2):  # parsers print what they do not understand
        os.dup2(nowhere, stream)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, MEMORY_BYTES)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + cpu_seconds)
        try:
            right = answer(*json.loads(line))
        except Exception:  # of a parser or of sympy, on text that is no mathematics: memory, depth, types
            right = False
        os.write(out, b"1" if right else b"0")


def _too_large(expression: Any) -> bool:
    """Whether a parsed expression has a power or a factorial that nobody should compute."""
    from sympy import Pow, factorial, preorder_traversal

    for node in preorder_traversal(expression):
        argument = node.exp if isinstance(node, Pow) else node.args[0] if isinstance(node, factorial) else None
        if argument is not None and _size(argument) > LARGEST_EXPONENT:
            return True
    return False


def _size(expression: Any) -> float:
    """An upper bound of the absolute value, with 4 for constants and 1 for unknowns; inf beyond a float."""
    from sympy import Add, Mul, Number, NumberSymbol, Pow, factorial

    if isinstance(expression, Number):
        try:
            return abs(float(expression))
        except OverflowError:
            return math.inf
    if isinstance(expression, NumberSymbol):
        return 4.0
    parts = [_size(part) for part in expression.args]
    if isinstance(expression, Add):
        return sum(parts)
    if isinstance(expression, Mul):
        return math.prod(parts)
    if isinstance(expression, Pow):
        base = max(parts[0], 1 / parts[0] if parts[0] else 1.0)
        exponent = math.log(base) * parts[1] if base > 1 else 0.0
        return math.exp(exponent) if exponent < 700 else math.inf
    if isinstance(expression, factorial):
        return math.gamma(parts[0] + 1) if parts[0] < 170 else math.inf
    return max(parts, default=1.0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
