r"""RandomCalculation: arithmetic that was drawn at random and so is in no corpus (arXiv 2507.10532).

An expression of n steps begins with a random atom and takes up another one n times, on either side and by any of the
four operations:

    e <- (e + a)  or  (a + e), and so with -, *, /

An atom is a whole number i from 0 to 100, a fraction (i/j) of two of them, a square i^2 or a cube i^3. Steps from 1 to
20 make 20 subsets of 1000 expressions each. The subsets are the paper's. The atoms, how likely each of them, each
operation and each side is (equally), and that an expression grows by one atom at a time are guesses. Values are exact
fractions.

The reward of a prediction a where the value is b is a guess in its form as well,

    r = 1 - min(|a - b|, 1)/2 - min(|a - b| / (|b| + 1e-8), 1)/2

1 within the rounding of a float (so that a fraction is as good as its decimal, ours), and 0 for what is no number. Text
is read by a parser of this module, never by Python's own evaluation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from random import Random
from typing import NamedTuple

from evals.rewards.math_answer import LONGEST_ANSWER, stated

MOST_STEPS = 20
SUBSET_SIZE = 1000
PROMPT = "Evaluate the expression and put the result within \\boxed{{}}.\n{expression}\n"  # the wording is ours

_OPERATIONS = "+-*/"
_LARGEST_OPERAND = 100
_EPSILON = Fraction(1, 10**8)
_ROUNDING = Fraction(1, 2**52)  # of a float, relative


class Expression(NamedTuple):
    """text: as it is printed, without brackets around the whole. value: exact."""

    text: str
    value: Fraction


# Generator ---------------------------------------------------------------------------------------------------


def expressions(steps: int, size: int = SUBSET_SIZE, seed: int = 0) -> list[Expression]:
    """`size` different expressions of `steps` steps.

    The same arguments give the same expressions on every machine, and a smaller `size` gives the first of them.

    Raises:
        ValueError: steps outside 1..20, a size below 0.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps={steps}: must be from 1 to {MOST_STEPS}")
    if size < 0:
        raise ValueError(f"size={size}: must be at least 0")
    rng = Random(f"random calculation: {steps} {seed}")
    found: dict[str, Fraction] = {}
    while len(found) < size:
        text, value = _expression(steps, rng)
        found.setdefault(text, value)
    return [Expression(text, value) for text, value in found.items()]


def rows(steps: int, size: int = SUBSET_SIZE, seed: int = 0, template: str = PROMPT) -> list[dict[str, str]]:
    """One subset as prompts and answers.

    Args:
        steps, size, seed: of `expressions`.
        template: the prompt, with {expression} in it (and braces of its own doubled).

    Returns:
        {"prompt", "answer"}; the answer is the value, whole or as the shortest decimal that is the same float.

    Raises:
        ValueError: those of `expressions`; a template without {expression}.
    """
    try:
        with_expression = "\0" in template.format(expression="\0")
    except (IndexError, KeyError, ValueError):
        with_expression = False
    if not with_expression:
        raise ValueError(f"template={template!r}: must have {{expression}} in it, and other braces doubled")
    return [
        {"prompt": template.format(expression=text), "answer": printed(value)}
        for text, value in expressions(steps, size, seed)
    ]


def printed(value: Fraction) -> str:
    """A whole number in full, any other as the shortest decimal that is the same float."""
    return str(value.numerator) if value.denominator == 1 else repr(float(value))


def _expression(steps: int, rng: Random) -> Expression:
    text, value = _atom(rng)
    taken = 0
    while taken < steps:
        operation = _OPERATIONS[int(rng.random() * len(_OPERATIONS))]
        atom = _atom(rng)
        bracketed = Expression(text if taken == 0 else f"({text})", value)
        left, right = (bracketed, atom) if rng.random() < 0.5 else (atom, bracketed)
        if operation == "/" and right.value == 0:
            continue  # another draw
        text, value = f"{left.text} {operation} {right.text}", _applied(operation, left.value, right.value)
        taken += 1
    return Expression(text, value)


def _atom(rng: Random) -> Expression:
    # random() alone: its sequence is the one that Python promises never to change.
    kind, number = int(rng.random() * 4), int(rng.random() * (_LARGEST_OPERAND + 1))
    if kind == 0:
        return Expression(str(number), Fraction(number))
    if kind == 1:
        below = 1 + int(rng.random() * _LARGEST_OPERAND)
        return Expression(f"({number}/{below})", Fraction(number, below))
    return Expression(f"{number}^{kind}", Fraction(number**kind))


def _applied(operation: str, left: Fraction, right: Fraction) -> Fraction:
    if operation == "+":
        return left + right
    if operation == "-":
        return left - right
    return left * right if operation == "*" else left / right


# Evaluator ---------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|[-+*/^()])", re.ASCII)
_LONGEST_EXPRESSION = 5000
_DEEPEST = 100
_LARGEST_EXPONENT = 100
_MOST_BITS = 100_000


def value_of(text: str) -> Fraction:
    """The exact value of an expression of decimal numbers, + - * / ^, signs and brackets.

    `^` binds tighter than a sign before it and to the right (2^3^2 is 2^9); its exponent must be whole.

    Raises:
        ValueError: no such expression, a division by 0, more work than an expression of this module can be.
    """
    if len(text) > _LONGEST_EXPRESSION:
        raise ValueError(f"expression={text[:20]!r}...: must have at most {_LONGEST_EXPRESSION} characters")
    tokens, at = [], 0
    stripped = text.rstrip()
    while at < len(stripped):
        match = _TOKEN.match(stripped, at)
        if match is None:
            raise ValueError(f"expression={text!r}: {stripped[at:].strip()[:1]!r} has no place in it")
        tokens.append(match.group(1))
        at = match.end()
    try:
        return _Parser(tokens).whole()
    except ZeroDivisionError:
        raise ValueError(f"expression={text!r}: divides by 0") from None
    except _WrongError as error:
        raise ValueError(f"expression={text!r}: {error}") from None


class _WrongError(Exception):
    """What is wrong with an expression."""


class _Parser:
    """Recursive descent, computing as it goes."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def whole(self) -> Fraction:
        value = self._sum()
        if self._at < len(self._tokens):
            raise _WrongError(f"{self._tokens[self._at]!r} is not expected")
        return value

    def _taken(self, among: str) -> str | None:
        """The next token if it is one of these."""
        if self._at < len(self._tokens) and self._tokens[self._at] in list(among):
            self._at += 1
            return self._tokens[self._at - 1]
        return None

    def _sum(self) -> Fraction:
        value = self._product()
        while operation := self._taken("+-"):
            value = self._bounded(_applied(operation, value, self._product()))
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while operation := self._taken("*/"):
            value = self._bounded(_applied(operation, value, self._signed()))
        return value

    def _signed(self) -> Fraction:
        negative = False
        while sign := self._taken("+-"):
            negative ^= sign == "-"
        value = self._power()
        return -value if negative else value

    def _power(self) -> Fraction:
        base = self._operand()
        if not self._taken("^"):
            return base
        self._deeper(1)
        exponent = self._signed()
        self._deeper(-1)
        if exponent.denominator != 1 or abs(exponent) > _LARGEST_EXPONENT:
            raise _WrongError(f"exponents must be whole and at most {_LARGEST_EXPONENT}")
        return self._bounded(base ** int(exponent))

    def _operand(self) -> Fraction:
        if self._taken("("):
            self._deeper(1)
            value = self._sum()
            self._deeper(-1)
            if not self._taken(")"):
                raise _WrongError("a bracket is not closed")
            return value
        if self._at == len(self._tokens) or not self._tokens[self._at][0].isdigit():
            raise _WrongError("a number is missing")
        self._at += 1
        return Fraction(self._tokens[self._at - 1])

    def _deeper(self, by: int) -> None:
        self._depth += by
        if self._depth > _DEEPEST:
            raise _WrongError(f"is nested deeper than {_DEEPEST}")

    @staticmethod
    def _bounded(value: Fraction) -> Fraction:
        if value.numerator.bit_length() + value.denominator.bit_length() > _MOST_BITS:
            raise _WrongError("its numbers become too long")
        return value


# Reward ------------------------------------------------------------------------------------------------------

_DECIMAL = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<decimal>{_DECIMAL})(?:(?:[eE]|\\times10\^|\\cdot10\^|\*10\^)(?P<ten>[-+]?\d{{1,3}}))?"
    rf"|(?P<above>{_DECIMAL})/(?P<below>{_DECIMAL})"
    rf"|(?P<sign>[-+]?)\\frac(?P<fraction_above>{_DECIMAL}),(?P<fraction_below>{_DECIMAL})",
    re.ASCII,
)
_FRACTION_BRACES = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")


def number(text: str) -> Fraction | None:
    r"""The number that an answer is, or None: 12, -3.25, 1,234.5, 13/4, \frac{13}{4}, 1.2e5, 1.2 \times 10^{5}.

    Of `x = 3` or `... \approx 3` it is what stands on the right. What would have to be computed is no number: a model
    that repeats the expression has not evaluated it.
    """
    if len(text) > LONGEST_ANSWER:
        return None
    right = re.split(r"=|\\approx|≈", text)[-1]
    bare = re.sub(r"\s|\$|\\[,;!]|(?<=\d)(?:\{,\}|,)(?=\d{3}(?!\d))", "", right).removesuffix(".")
    bare = _FRACTION_BRACES.sub(r"\\frac\1,\2", bare)
    match = _NUMBER.fullmatch(re.sub(r"\^\{([-+]?\d+)\}", r"^\1", bare))
    if match is None:
        return None
    if match["decimal"]:
        return Fraction(match["decimal"]) * Fraction(10) ** int(match["ten"] or 0)
    above, below = (
        (match["above"], match["below"]) if match["above"] else (match["fraction_above"], match["fraction_below"])
    )
    if Fraction(below) == 0:
        return None
    return Fraction(above) / Fraction(below) * (-1 if match["sign"] == "-" else 1)


def closeness(predicted: Fraction | float, value: Fraction | float) -> float:
    """1 - min(|a - b|, 1)/2 - min(|a - b| / (|b| + 1e-8), 1)/2, from 0 to 1; 1 within the rounding of a float.

    Raises:
        ValueError: a number that is not finite.
    """
    for name, one in (("predicted", predicted), ("value", value)):
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError(f"{name}={one}: must be finite")
    gold = Fraction(value)
    apart = abs(Fraction(predicted) - gold)
    if apart <= abs(gold) * _ROUNDING:
        return 1.0
    relative = apart / (abs(gold) + _EPSILON)
    return float(1 - min(apart, Fraction(1)) / 2 - min(relative, Fraction(1)) / 2)


def graded(prompts: Sequence[str], responses: Sequence[str], answers: Sequence[str]) -> list[float | None]:
    r"""`closeness` of the number that each response states to its reference; None where the reference is no number.

    Args:
        prompts: not looked at.
        responses: text; the answer is found as in `evals/rewards/math_answer.py`, the last \boxed{...} first.
        answers: references, a number or a text that states one.
    """
    return [_graded(response, reference) for response, reference in zip(responses, answers, strict=True)]


def _graded(response: str, reference: str) -> float | None:
    gold = number(stated(reference) or reference)
    if gold is None:
        return None
    predicted = number(stated(response) or "")
    return 0.0 if predicted is None else closeness(predicted, gold)
