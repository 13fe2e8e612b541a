"""A toy programming language with unit tests and error messages, for policies that repair what they wrote.

A program computes a number modulo 11 from x. Its digits are 0 to 9 and A, which is ten:

    program  = term, then any number of (+ or -) term
    term     = factor, then any number of * factor; the * may be left out before x
    factor   = a digit, x or a line: u~v goes through u at 0 and v at 1, as u+(v-u)*x does

so that `3x+7`, `x*3+7`, `x+x+x+7` and `7~A` are one function. Errors are `too long` (more than 8 signs), `bad digit`
(another letter), `bad operator` (another sign) and `syntax`.

A problem is a hidden function ax+b (a from 1 to A) of which the prompt shows one point: `f(0)=3;`. Ten such functions
agree with that, so that a first attempt passes by luck alone, once in ten times. Tests are four other points; the score
is the share of them that is passed. After a failure the feedback says what a unit test would: `!1:6/A;` for f(1), which
is 6 and was ten, or the error, `!syntax;`. It follows the attempt directly, and the next attempt follows it. Where f is
3x+3, the second attempt here passes all tests:

    f(0)=3;3~A!1:6/A;3~6

The prompt shows f(0) or f(1), and the first test is the other of them: written as a line, the right program is put
together from both, which the mini LM learns soon. With more points that may be shown (`shown`), or written as ax+b
(less `lines`), it takes arithmetic modulo 11, which the mini LM learns slowly.

As 11 is a prime number, the shown point and one failed test determine a and b, and a wrong program that agrees with the
shown point agrees nowhere else: it fails all tests.

`programs_demonstrations`, for a weak supervised start, has first attempts (programs that agree with the shown point)
and dialogues with failures, whose last attempt is right more often than by luck.

Many problems have the same prompt; what splits do not share is a function together with the point that is shown. The
parser is our own and nothing is ever executed. The standard library only.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from evals.generated import Content, Row, Skill, below
from evals.rewards.graded import Graded

MODULUS = 11
_DIGITS = "0123456789A"
_MOST_SIGNS = 8
_TESTS = 4
_FACTOR = r"(?:[0-9A]~[0-9A]|[0-9Ax])"
_TERM = rf"{_FACTOR}(?:\*{_FACTOR}|x)*"
_PROGRAM = re.compile(rf"{_TERM}(?:[+-]{_TERM})*")
_SIGNED_TERM = re.compile(rf"([+-]?)({_TERM})")


# The language ------------------------------------------------------------------------------------------------


class ProgramError(ValueError):
    """What is wrong with a program: too long, bad digit, bad operator or syntax."""


def values(program: str) -> list[int]:
    """What a program computes of each x from 0 to ten [11].

    Raises:
        ProgramError: it is none.
    """
    if len(program) > _MOST_SIGNS:
        raise ProgramError("too long")
    for sign in program:
        if sign not in "x+-*~" + _DIGITS:
            raise ProgramError("bad digit" if sign.isalnum() else "bad operator")
    if not _PROGRAM.fullmatch(program):
        raise ProgramError("syntax")
    terms = [(-1 if sign == "-" else 1, re.findall(_FACTOR, term)) for sign, term in _SIGNED_TERM.findall(program)]
    return [
        sum(sign * prod(_factor(factor, x) for factor in factors) for sign, factors in terms) % MODULUS
        for x in range(MODULUS)
    ]


def _factor(factor: str, x: int) -> int:
    if factor == "x":
        return x
    first, last = _DIGITS.index(factor[0]), _DIGITS.index(factor[-1])  # of a digit the same
    return first + (last - first) * x


# Unit tests --------------------------------------------------------------------------------------------------


def reward(
    prompts: Sequence[str], responses: Sequence[str], answers: Sequence[str], *, held_out: bool = False
) -> list[Graded]:
    """The share of tests that a program passes, and as feedback the first that it fails, or its error.

    Args:
        prompts: not looked at.
        responses: programs, without an end-of-sequence token.
        answers: of rows of `programs`: JSON, `{"tests": {"3": "1", ...}, "held_out": {...}}`, x to f(x).
        held_out: whether the points count that feedback never shows, instead of the tests; then there is no feedback.

    Raises:
        ValueError: an answer of another kind.
    """
    name = "held_out" if held_out else "tests"
    graded = []
    for _, response, answer in zip(prompts, responses, answers, strict=True):
        score, feedback = _tested(response, _told(answer, name))
        graded.append(Graded(score, "" if held_out else feedback))
    return graded


def _told(answer: str, name: str) -> list[tuple[int, int]]:
    try:
        points = [(_DIGITS.index(x), _DIGITS.index(value)) for x, value in json.loads(answer)[name].items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"answer={answer}: must be JSON with {name}, from x to f(x) in digits 0 to A") from error
    if not points:
        raise ValueError(f"answer={answer}: {name} must not be empty")
    return points


def _tested(program: str, points: Sequence[tuple[int, int]]) -> tuple[float, str]:
    """Score and feedback."""
    try:
        got = values(program)
    except ProgramError as error:
        return 0.0, f"!{error};"
    failed = [(x, expected) for x, expected in points if got[x] != expected]
    feedback = ""
    if failed:
        x, expected = failed[0]
        feedback = f"!{_DIGITS[x]}:{_DIGITS[expected]}/{_DIGITS[got[x]]};"
    return 1 - len(failed) / len(points), feedback


# Problems ----------------------------------------------------------------------------------------------------


def _functions(*, shown: int = 2) -> Iterator[Content]:
    """a, b and all x in their order: one of the first `shown`, for the prompt; the others of these; the rest."""
    orders = [(*range(x, shown), *range(x), *range(shown, MODULUS)) for x in range(shown)]
    return itertools.product(range(1, MODULUS), range(MODULUS), orders)


def _points(content: Content) -> list[tuple[int, int]]:
    """x and f(x), in the order of the problem."""
    a, b, order = content
    return [(x, (a * x + b) % MODULUS) for x in order]


def _prompt(content: Content) -> str:
    x, value = _points(content)[0]
    return f"f({_DIGITS[x]})={_DIGITS[value]};"


def _programs(content: Content, rng: random.Random) -> Row:
    texts = [(_DIGITS[x], _DIGITS[value]) for x, value in _points(content)[1:]]
    answer = {"tests": dict(texts[:_TESTS]), "held_out": dict(texts[_TESTS:])}
    return {"prompt": _prompt(content), "answer": json.dumps(answer)}


def _agreeing(content: Content, a: int) -> int:
    """The b with which this a agrees with the point shown."""
    x, value = _points(content)[0]
    return (value - a * x) % MODULUS


def _written(a: int, b: int, as_line: bool) -> str:
    return f"{_DIGITS[b]}~{_DIGITS[(a + b) % MODULUS]}" if as_line else f"{_DIGITS[a]}x+{_DIGITS[b]}"


def _attempt(content: Content, a: int, rng: random.Random, careless: float, lines: float) -> str:
    """A program with this a; in the share `careless`, as often as not with any b, or broken."""
    slips, is_broken, as_line = (rng.random() < share for share in (careless, 0.5, lines))
    b, how = below(MODULUS, rng), below(4, rng)
    text = _written(a, b if slips else _agreeing(content, a), as_line)
    if not (slips and is_broken):
        return text
    return (text[:-1], "y" + text[1:], text.replace("~", "/").replace("+", "/"), text + "+0+0+0")[how]


def _demonstration(
    content: Content,
    rng: random.Random,
    *,
    dialogues: float = 0.5,
    corrected: float = 0.5,
    careless: float = 0.1,
    lines: float = 1.0,
    failures: int = 2,
) -> Row:
    """`dialogues`: the share with failures, 1 to `failures`; `corrected`: that of these which end in f for sure."""
    a, tests = content[0], _points(content)[1 : _TESTS + 1]
    prompt = _prompt(content)
    is_dialogue, is_corrected, rounds = (
        rng.random() < dialogues,
        rng.random() < corrected,
        1 + below(int(failures), rng),
    )
    for _ in range(rounds if is_dialogue else 0):
        other = (a + below(MODULUS - 2, rng)) % (MODULUS - 1) + 1  # any but a
        attempt = _attempt(content, other, rng, careless, lines)
        prompt += attempt + _tested(attempt, tests)[1]
    guess = _attempt(content, 1 + below(MODULUS - 1, rng), rng, careless, lines)
    right = _attempt(content, a, rng, 0.0, lines)
    last = right if is_dialogue and is_corrected else guess
    return {"prompt": prompt, "answer": last, "right": _tested(last, tests)[0] == 1}


# Rows --------------------------------------------------------------------------------------------------------

_SHOWN = {"shown": (1, MODULUS)}

SKILLS: Mapping[str, Skill] = {
    "programs": Skill(_functions, _programs, bounds=_SHOWN),
    "programs_demonstrations": Skill(_functions, _demonstration, again=True, bounds={**_SHOWN, "failures": (1, 4)}),
}


def check_options(skill: str, options: Mapping[str, float]) -> None:
    """Check the options of a skill.

    Raises:
        ValueError: one that the skill does not have, or a value out of its range; begins with `name=value`.
    """
    SKILLS[skill].check_options(skill, options)


def rows(skill: str, split: str, size: int, seed: int, **options: float) -> list[dict[str, Any]]:
    """`size` rows of one skill and split: of problems, each another; of demonstrations, problems come again in turns.

    The same arguments give the same rows on every machine, and a smaller `size` gives the first of them.

    Args:
        skill: a key of `SKILLS`.
        split: train, validation or test.
        size: how many; there are about 200 problems to train on and 10 to test with, 1,100 and 50 with `shown: 11`.
        seed: any integer; it chooses the problems and, in demonstrations, the attempts.
        options: shown (1 to 11), how many x, from 0 on, may be the one that the prompt shows; of demonstrations also
            dialogues, corrected, careless, lines (shares), failures (1 to 4).

    Raises:
        ValueError: unknown split, too many rows, an option that the skill does not have or out of its range.
    """
    return SKILLS[skill].rows(skill, split, size, seed, options)
