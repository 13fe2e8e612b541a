"""The number game: whole numbers are joined by + - * / until one is left, which is to be the target. Game24 is one.

    prompt     2,3,7>13:          the numbers, and the target
    actions    2*3=6,7;           one operation, and the numbers that are then left, in their order
               6+7=13             the last one leaves one number, and nothing follows
    response   2*3=6,7;6+7=13     a trajectory: its actions one after the other

An action takes two of the numbers that are left: of `+` and `*` the smaller stands first, of `-` and `/` the larger, as
no number is negative, and `/` must leave no remainder. Two actions of the same text are one. Every state is reached by
one sequence of actions (the response so far is the state), so that all trajectories form a tree.

`numbers` are problems with at least `solutions` right trajectories, of numbers from 1 to `most` (`{numbers: 4, most:
13, target: 24}` are those of Game24 without fractions). `numbers_demonstrations` have one right trajectory of each,
always the same one.

The standard library only.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evals.generated import Content, Row, Skill, below

_PROMPT = re.compile(r"(\d+(?:,\d+)+)>(\d+):")
_END = ";"
Left = tuple[int, ...]


# The game ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 16)
def _moves(left: Left) -> tuple[tuple[str, Left], ...]:
    """What can be done with numbers (in their order): the operation, and the numbers that are left then."""
    found: dict[tuple[str, Left], None] = {}
    for first, second in itertools.combinations(range(len(left)), 2):
        small, large = left[first], left[second]
        others = [number for place, number in enumerate(left) if place not in (first, second)]
        results = {
            f"{small}+{large}": small + large,
            f"{large}-{small}": large - small,
            f"{small}*{large}": small * large,
        }
        if small and large % small == 0:
            results[f"{large}/{small}"] = large // small
        for operation, result in results.items():
            found[operation, tuple(sorted([*others, result]))] = None
    return tuple(found)


def _asked(prompt: str) -> tuple[Left, int]:
    """The numbers, in their order, and the target.

    Raises:
        ValueError: a prompt of another world.
    """
    found = _PROMPT.fullmatch(prompt)
    if found is None:
        raise ValueError(f"prompt={prompt}: must be numbers and a target, as 2,3,7>13:")
    return tuple(sorted(int(number) for number in found[1].split(","))), int(found[2])


def _written(operation: str, left: Left) -> str:
    return f"{operation}={','.join(map(str, left))}" + (_END if len(left) > 1 else "")


def _after(prompt: str, taken: Sequence[str]) -> Left | None:
    """The numbers that are left after actions; None: one of them is not allowed."""
    left, _ = _asked(prompt)
    for action in taken:
        following = {_written(*move): move[1] for move in _moves(left)}
        if action not in following:
            return None
        left = following[action]
    return left


def actions(prompt: str, taken: Sequence[str]) -> list[str]:
    """The actions that are allowed after others, each once and in an order of its own; none where the game is over.

    Args:
        prompt: of `numbers`, `2,3,7>13:`.
        taken: actions, from the first on.

    Raises:
        ValueError: a prompt of another world, or an action that was not allowed.
    """
    left = _after(prompt, taken)
    if left is None:
        raise ValueError(f"taken={list(taken)}: must be actions that were allowed after {prompt}")
    return [_written(*move) for move in _moves(left)]


def _taken(response: str) -> list[str]:
    """The actions of a response."""
    return re.findall(rf"[^{_END}]*{_END}|[^{_END}]+$", response)


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """1 for a trajectory of allowed actions that leaves the target alone, else 0.

    Args:
        prompts: of `numbers`.
        responses: text, without an end-of-sequence token.

    Raises:
        ValueError: a prompt of another world.
    """
    return [
        float(_after(prompt, _taken(response)) == (_asked(prompt)[1],))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def trajectories(prompt: str) -> Iterator[tuple[list[str], bool]]:
    """All there are, and whether each is right.

    Raises:
        ValueError: a prompt of another world.
    """
    start, target = _asked(prompt)
    waiting: list[tuple[list[str], Left]] = [([], start)]
    while waiting:
        taken, left = waiting.pop()
        following = [([*taken, _written(*move)], move[1]) for move in _moves(left)]
        if not following:
            yield taken, left == (target,)
        waiting += following[::-1]


@functools.lru_cache(maxsize=1 << 14)
def solutions(prompt: str) -> tuple[str, ...]:
    """All right responses, in the order of `trajectories`.

    Raises:
        ValueError: a prompt of another world.
    """
    return tuple("".join(taken) for taken, is_right in trajectories(prompt) if is_right)


# Problems ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 18)
def _ends(left: Left) -> Mapping[int, int]:
    """How many trajectories lead from numbers to each last number."""
    if len(left) == 1:
        return {left[0]: 1}
    found: Counter[int] = Counter()
    for _, following in _moves(left):
        found.update(_ends(following))
    return found


def _games(*, numbers: int = 3, most: int = 13, target: int = 0, solutions: int = 2) -> Iterator[Content]:
    """Numbers in their order and a target of at most two digits; `target`: 0 for any."""
    for left in itertools.combinations_with_replacement(range(1, most + 1), numbers):
        for end, count in sorted(_ends(left).items()):
            if count >= solutions and 1 <= end <= 99 and target in (0, end):
                yield (*left, end)


def _question(content: Content) -> str:
    *numbers, target = content
    return f"{','.join(map(str, numbers))}>{target}:"


def _numbers(content: Content, rng: random.Random) -> Row:
    return {"prompt": _question(content), "answer": str(content[-1])}


def _demonstration(content: Content, rng: random.Random) -> Row:
    """The same right trajectory whenever the problem comes again: of all its right ones any, each as likely."""
    prompt = _question(content)
    found = solutions(prompt)
    return {"prompt": prompt, "answer": found[below(len(found), random.Random(f"the one solution: {prompt}"))]}


_BOUNDS = {"numbers": (2, 4), "most": (1, 13), "target": (0, 99), "solutions": (1, 99)}

SKILLS: Mapping[str, Skill] = {
    "numbers": Skill(_games, _numbers, bounds=_BOUNDS),
    "numbers_demonstrations": Skill(_games, _demonstration, again=True, bounds=_BOUNDS),
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
        seed: any integer; it chooses the problems.
        options: numbers (2 to 4) of a problem, each from 1 to most (1 to 13); target (0: any); solutions, how many
            right trajectories there are at least.

    Raises:
        ValueError: unknown split, too many rows, an option that the skill does not have or out of its range.
    """
    return SKILLS[skill].rows(skill, split, size, seed, options)
