"""Generated problems whose answers can be checked, small enough that the mini LM learns them by reinforcement.

    skill        prompt     a right response                     answer of a row
    addition     47+38=     15,08,#85                            85
    sums         sum 12:    5+7                                  12
    multi_step   3+5*4-6:   a=1,b=4,c=5,#5                       a=1,b=4,c=5,#5

**addition**: what follows the last `#` is the answer. Before it there is room to work, of any length: the total of each
column in two digits, from the units on, the carry included, all as often as one likes (`15,08,15,08,#85`), or nothing
(`#85`).

**sums**: any two numbers with that sum, from 0 on and without leading noughts, so that there are n+1 right responses.

**multi_step**: operations one after the other, from left to right and modulo 7; each step of the answer names what it
has found, and `#` stands before the last value again. All operations have an inverse modulo 7: a chain that is wrong
at one step and goes on rightly from there stays wrong to its end.

**addition_thoughts** are plain lines, as text has them (`47+38=85`), of which some have a thought in brackets, the
totals, somewhere in the answer (`47+38=8[15,08,]5`). The answer is right always, as text does not follow a thought; the
thought is so in the share `right` of them.

Each has demonstrations (`addition_demonstrations`, ...), for a weak supervised start. They are right in the share
`right` only, which the column `right` tells; wrong ones go on consistently from one wrong total, number or step, so
that their form tells nothing. `first_wrong` is the place, from 0 on, of the wrong step of `multi_step_demonstrations`,
or -1. Every demonstration takes the same number of draws: rows of two values of a share differ in nothing else.

`multi_step_pairs` have a right and a wrong response to one problem; `first_wrong` is where they part.

The standard library only.
"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evals.generated import Content, Row, Skill, below

_MARK = "#"


# Answers -----------------------------------------------------------------------------------------------------


def stated(response: str) -> str | None:
    """What follows the last `#`, or None where it is not a number."""
    _, mark, answer = response.rpartition(_MARK)
    return answer if mark and _is_number(answer) else None


def states_answer(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A reward of form alone, for `addition` and `multi_step`: 1 for a response with a number after its last `#`."""
    return [float(stated(response) is not None) for response in responses]


def _is_number(text: str) -> bool:
    """Whether it is a whole number, from 0 on, in the one way to write it."""
    return text.isascii() and text.isdigit() and (text == "0" or text[0] != "0")


def _known(answer: str) -> str:
    found = stated(answer) if _MARK in answer else answer
    if found is None or not _is_number(found):
        raise ValueError(f"answer={answer}: must be a number, or end in one after {_MARK}")
    return found


# Addition ----------------------------------------------------------------------------------------------------


def _pairs(*, digits: int = 2) -> Iterator[Content]:
    numbers = range(10 ** (digits - 1), 10**digits)
    return itertools.product(numbers, numbers)


def _addends(content: Content) -> Content:
    """47+38 and 38+47 are one problem."""
    return ("add", *sorted(content))


def _addition(content: Content, rng: random.Random) -> Row:
    left, right = content
    return {"prompt": f"{left}+{right}=", "answer": str(left + right)}


def _totals(left: int, right: int, wrong: int, shift: int) -> list[int]:
    """The total of each column, units first, the carry included; `shift` changes that of column `wrong` (-1: none)."""
    totals: list[int] = []
    for column, (one, other) in enumerate(zip(reversed(str(left)), reversed(str(right)), strict=True)):
        total = int(one) + int(other) + (totals[-1] // 10 if totals else 0)
        totals.append((total + shift) % 20 if column == wrong else total)
    return totals


def _added(totals: Sequence[int]) -> int:
    """The sum that the totals of all columns lead to."""
    return int(str(totals[-1]) + "".join(str(total % 10) for total in reversed(totals[:-1])))


def _addition_demonstration(
    content: Content,
    rng: random.Random,
    *,
    right: float = 0.4,
    worked: float = 0.5,
    marked: float = 1.0,
    repeats: int = 1,
) -> Row:
    """`worked`: the share with totals, all written up to `repeats` more times; `marked`: that with the mark."""
    left, other = content
    is_right, is_worked, is_marked = (rng.random() < share for share in (right, worked, marked))
    wrong, shift = below(len(str(left)), rng), 1 + below(19, rng)
    totals = _totals(left, other, -1 if is_right else wrong, shift)
    work = "".join(f"{total:02}," for total in totals) * (1 + below(int(repeats) + 1, rng))
    response = (work if is_worked else "") + (_MARK if is_marked else "") + str(_added(totals))
    return {"prompt": f"{left}+{other}=", "answer": response, "right": is_right}


def _addition_thoughts(content: Content, rng: random.Random, *, right: float = 0.7, thoughts: float = 0.7) -> Row:
    """`thoughts`: the share that has one, before any of the answer's characters or after the last; `right`: of them."""
    left, other = content
    is_right, has_thought = rng.random() < right, rng.random() < thoughts
    wrong, shift, place = below(len(str(left)), rng), 1 + below(19, rng), rng.random()
    totals = _totals(left, other, -1 if is_right else wrong, shift)
    answer = str(left + other)
    at = int(place * (len(answer) + 1))
    thought = "[" + "".join(f"{total:02}," for total in totals) + "]"
    response = answer[:at] + thought + answer[at:] if has_thought else answer
    return {"prompt": f"{left}+{other}=", "answer": response, "right": is_right or not has_thought}


def addition_reward(prompts: Sequence[str], responses: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1 for a response whose number after the last `#` is that of the answer, else 0.

    Args:
        prompts: not looked at.
        responses: text, without an end-of-sequence token.
        answers: numbers, or texts that end in one after `#`.

    Raises:
        ValueError: an answer that is neither.
    """
    return [
        float(stated(response) == _known(answer))
        for _, response, answer in zip(prompts, responses, answers, strict=True)
    ]


# Sums --------------------------------------------------------------------------------------------------------


def _sums_to(*, most: int = 999) -> Iterator[Content]:
    return ((number,) for number in range(10, most + 1))


def _sum(content: Content, rng: random.Random) -> Row:
    return {"prompt": f"sum {content[0]}:", "answer": str(content[0])}


def _sum_demonstration(content: Content, rng: random.Random, *, right: float = 0.4) -> Row:
    """The first number is any from 0 to n, each as likely; in wrong ones the second is off by 1 to 9."""
    (number,) = content
    is_right, first, shift, less = rng.random() < right, below(number + 1, rng), 1 + below(9, rng), rng.random() < 0.5
    second = number - first
    if not is_right:
        second += -shift if less and shift <= second else shift
    return {"prompt": f"sum {number}:", "answer": f"{first}+{second}", "right": is_right}


def terms(response: str) -> tuple[int, int] | None:
    """The two numbers of `5+7`, or None for any other text."""
    first, _, second = response.partition("+")
    return (int(first), int(second)) if _is_number(first) and _is_number(second) else None


def sums_reward(prompts: Sequence[str], responses: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1 for two numbers, from 0 on, whose sum is the answer, else 0.

    Args:
        prompts: not looked at.
        responses: text, without an end-of-sequence token.
        answers: the sums.

    Raises:
        ValueError: an answer that is no number.
    """
    return [
        float((found := terms(response)) is not None and sum(found) == int(_known(answer)))
        for _, response, answer in zip(prompts, responses, answers, strict=True)
    ]


def distinct_right(responses: Sequence[str], answer: str) -> int:
    """How many different right responses there are among responses to one prompt of `sums`; `5+7` is not `7+5`."""
    asked = [""] * len(responses), list(responses), [answer] * len(responses)
    return len({response for response, score in zip(responses, sums_reward(*asked), strict=True) if score == 1})


# Steps -------------------------------------------------------------------------------------------------------

_MODULUS = 7
_MOST_STEPS = 4
# Those that have an inverse modulo 7 and are not idle.
_OPERATIONS = tuple(f"{sign}{number}" for sign in "+-*" for number in range(2 if sign == "*" else 1, _MODULUS))


def _chains(*, steps: int = 3) -> Iterator[Content]:
    return itertools.product(range(_MODULUS), *[_OPERATIONS] * steps)


def _applied(value: int, operation: str) -> int:
    sign, number = operation[0], int(operation[1:])
    return (value + number if sign == "+" else value - number if sign == "-" else value * number) % _MODULUS


def _values(content: Content, wrong: int = -1, shift: int = 0) -> list[int]:
    """The value after each step; `shift` changes that of step `wrong`, from which the next ones go on."""
    value, *operations = content
    values: list[int] = []
    for step, operation in enumerate(operations):
        value = (_applied(value, operation) + (shift if step == wrong else 0)) % _MODULUS
        values.append(value)
    return values


def _question(content: Content) -> str:
    return "".join(str(part) for part in content) + ":"


def _chain(values: Sequence[int]) -> str:
    named = zip(string.ascii_lowercase, values, strict=False)
    return "".join(f"{name}={value}," for name, value in named) + f"{_MARK}{values[-1]}"


def _multi_step(content: Content, rng: random.Random) -> Row:
    return {"prompt": _question(content), "answer": _chain(_values(content))}


def _multi_step_demonstration(content: Content, rng: random.Random, *, right: float = 0.4) -> Row:
    """Wrong ones are so from one step on, each as likely to be the first."""
    is_right, wrong = rng.random() < right, below(len(content) - 1, rng)
    shift = 1 + below(_MODULUS - 1, rng)
    first_wrong = -1 if is_right else wrong
    response = _chain(_values(content, first_wrong, shift))
    return {"prompt": _question(content), "answer": response, "right": is_right, "first_wrong": first_wrong}


def _multi_step_pair(content: Content, rng: random.Random, *, cut: float = 0.0) -> Row:
    """A right response and one that is wrong from a step on. `cut`: the share of which both end with that step."""
    wrong, shift, is_cut = below(len(content) - 1, rng), 1 + below(_MODULUS - 1, rng), rng.random() < cut
    both = [_chain(_values(content, place, shift)) for place in (-1, wrong)]
    if is_cut:
        both = ["".join(f"{step}," for step in response.split(",")[: wrong + 1]) for response in both]
    return {"prompt": _question(content), "chosen": both[0], "rejected": both[1], "first_wrong": wrong}


multi_step_reward = addition_reward


def steps_right(prompt: str, response: str) -> list[bool]:
    """Of each step that a response has written, whether it has the name and the value of that step.

    Args:
        prompt: of `multi_step`, `3+5*4-6:`.
        response: steps with a comma after each, and `#` with the last value, which is no step. Without `#`, all of it.

    Raises:
        ValueError: a prompt of another world.
    """
    values = _values(_content_of(prompt))
    right = [f"{name}={value}" for name, value in zip(string.ascii_lowercase, values, strict=False)]
    work = response.rpartition(_MARK)[0] if _MARK in response else response
    written = work.removesuffix(",").split(",") if work else []
    return [step < len(right) and text == right[step] for step, text in enumerate(written)]


def first_wrong_step(prompt: str, response: str) -> int:
    """The place of the first wrong step that a response has written, from 0 on; -1: there is none.

    Raises:
        ValueError: a prompt of another world.
    """
    found = steps_right(prompt, response)
    return found.index(False) if False in found else -1


def _content_of(prompt: str) -> Content:
    body = prompt.removesuffix(":")
    start, operations = body[:1], tuple(body[at : at + 2] for at in range(1, len(body), 2))
    well_formed = (
        prompt == body + ":" and start in set(string.digits[:_MODULUS]) and set(operations) <= set(_OPERATIONS)
    )
    if not well_formed or not 1 <= len(operations) <= _MOST_STEPS:
        raise ValueError(f"prompt={prompt}: must be of the skill multi_step, as 3+5*4-6:")
    return (int(start), *operations)


# Rows --------------------------------------------------------------------------------------------------------

_DIGITS = {"digits": (1, 3)}
_MOST = {"most": (99, 9999)}
_STEPS = {"steps": (1, _MOST_STEPS)}

SKILLS: Mapping[str, Skill] = {
    "addition": Skill(_pairs, _addition, about=_addends, bounds=_DIGITS),
    "addition_demonstrations": Skill(
        _pairs, _addition_demonstration, about=_addends, again=True, bounds={**_DIGITS, "repeats": (0, 9)}
    ),
    "addition_thoughts": Skill(_pairs, _addition_thoughts, about=_addends, again=True, bounds=_DIGITS),
    "sums": Skill(_sums_to, _sum, bounds=_MOST),
    "sums_demonstrations": Skill(_sums_to, _sum_demonstration, again=True, bounds=_MOST),
    "multi_step": Skill(_chains, _multi_step, bounds=_STEPS),
    "multi_step_demonstrations": Skill(_chains, _multi_step_demonstration, again=True, bounds=_STEPS),
    "multi_step_pairs": Skill(_chains, _multi_step_pair, bounds=_STEPS),
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
        size: how many.
        seed: any integer; it chooses the problems and, in demonstrations, the responses.
        options: of the skill: digits (1 to 3) of the numbers to add; most (99 to 9999), the largest sum; steps (1 to
            4); of demonstrations also right, worked, marked (shares) and repeats (0 to 9); of pairs also cut (a share).

    Raises:
        ValueError: unknown split, too many rows, an option that the skill does not have or out of its range.
    """
    return SKILLS[skill].rows(skill, split, size, seed, options)
