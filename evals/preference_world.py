"""A generated preference set whose true reward is known: what a method really gains can be told from what it was shown.

A prompt asks for a string of digits with 1 added to each (`next 48213:`, a skill that the mini LM is pre-trained in). A
response is five digits and, after them, a filler of 0 to 4 dots, which says nothing:

    right   59324    all digits right                 true reward 1
    near    59334    one digit wrong                  true reward 1/2
    wrong   20817    more wrong, or no such answer    true reward 0; those of the data have three to five wrong

Demonstrations, for the supervised start, are right in 40%, near in 30% and wrong in 30% of all draws. In pairs the two
responses differ in quality, and the better one is chosen; the share `flips` of them is turned round (noise in the
labels), and in the share `length_bias` the dots are dealt so that the chosen response is not the shorter one (a
preference for length that has nothing to do with the reward). Right and near responses share most of their tokens: what
lowers the likelihood of the one easily lowers that of the other.

Prompts of train, validation and test are disjoint (those of `evals/mini_world.py`). The standard library only.
"""

from __future__ import annotations

import difflib
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evals import mini_world

RIGHT, NEAR, WRONG = "right", "near", "wrong"
REWARDS = {RIGHT: 1.0, NEAR: 0.5, WRONG: 0.0}
_SHARES = {RIGHT: 0.4, NEAR: 0.3, WRONG: 0.3}  # of the demonstrations
_MOST_DOTS = 4


# The true reward ---------------------------------------------------------------------------------------------


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The true reward of responses: 1, 1/2 or 0, however many dots are after the digits.

    Args:
        prompts: of this world, `next 48213:`.
        responses: text, without an end-of-sequence token.

    Raises:
        ValueError: a prompt of another world.
    """
    return [_graded(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _graded(prompt: str, response: str) -> float:
    digits = prompt.removeprefix("next ").removesuffix(":")
    if prompt != f"next {digits}:" or not _all_digits(digits):
        raise ValueError(f"prompt must be of the preference world, got {prompt!r}")
    answer = response.rstrip(".")
    right = _right(digits)
    if len(answer) != len(right) or not _all_digits(answer):
        return REWARDS[WRONG]
    differing = sum(a != b for a, b in zip(answer, right, strict=True))
    return REWARDS[RIGHT] if differing == 0 else REWARDS[NEAR] if differing == 1 else REWARDS[WRONG]


def _all_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _right(digits: str) -> str:
    return "".join(str((int(digit) + 1) % 10) for digit in digits)


# Responses ---------------------------------------------------------------------------------------------------
# All randomness is `rng.random()`, whose sequence Python promises never to change. How often it is drawn depends on no
# share: rows of two values of `flips` or `length_bias` differ in nothing else.


def _answer(right: str, quality: str, rng: random.Random) -> str:
    """Digits of the quality asked for."""
    wrong_digits = {RIGHT: 0, NEAR: 1}.get(quality, 3 + int(rng.random() * 3))
    places = mini_world.draw([(place,) for place in range(len(right))], wrong_digits, rng)
    digits = list(right)
    for (place,) in places:
        digits[place] = str((int(digits[place]) + 1 + int(rng.random() * 9)) % 10)
    return "".join(digits)


def _quality(rng: random.Random, among: Sequence[str] = (RIGHT, NEAR, WRONG)) -> str:
    """One of some qualities, by their shares of the demonstrations."""
    drawn = rng.random() * sum(_SHARES[name] for name in among)
    for name in among:
        drawn -= _SHARES[name]
        if drawn < 0:
            return name
    return among[-1]


def _dots(rng: random.Random) -> str:
    return "." * int(rng.random() * (_MOST_DOTS + 1))


def _demonstration(right: str, rng: random.Random) -> dict[str, Any]:
    return {"answer": _answer(right, _quality(rng), rng) + _dots(rng)}


def _pair(
    right: str, rng: random.Random, *, flips: float = 0.0, length_bias: float = 0.0, pairs_per_prompt: float = 1
) -> dict[str, Any]:
    """A better response, right or near, and a worse one: near or wrong. `rows` sees to how many a prompt has."""
    better = _quality(rng, (RIGHT, NEAR))
    worse = NEAR if better == RIGHT and rng.random() < 0.5 else WRONG
    answers = [_answer(right, quality, rng) for quality in (better, worse)]
    if rng.random() < flips:
        answers.reverse()
    dots = [_dots(rng), _dots(rng)]
    if rng.random() < length_bias:
        dots.sort(key=len, reverse=True)
    return {"chosen": answers[0] + dots[0], "rejected": answers[1] + dots[1]}


def _ranked(right: str, rng: random.Random, *, candidates: float = 4) -> dict[str, Any]:
    """One response that is right or near, one that is wrong, others of any quality; scores are the true rewards."""
    qualities = [_quality(rng, (RIGHT, NEAR)), WRONG, *(_quality(rng) for _ in range(int(candidates) - 2))]
    responses = [_answer(right, quality, rng) + _dots(rng) for quality in qualities]
    return {"responses": responses, "scores": [REWARDS[quality] for quality in qualities]}


def _groups(right: str, rng: random.Random, *, flips: float = 0.0, members: float = 2) -> dict[str, Any]:
    """Two groups of independent responses: the chosen are right or near, the rejected near or wrong."""

    def drawn(among: Sequence[str]) -> list[str]:
        return [_answer(right, _quality(rng, among), rng) + _dots(rng) for _ in range(int(members))]

    sides = [drawn((RIGHT, NEAR)), drawn((NEAR, WRONG))]
    if rng.random() < flips:
        sides.reverse()
    return {"chosen": sides[0], "rejected": sides[1]}


def _labelled(right: str, rng: random.Random, *, flips: float = 0.0) -> dict[str, Any]:
    """One response, and whether it is good: right or near as often as wrong."""
    good = rng.random() < 0.5
    answer = _answer(right, _quality(rng, (RIGHT, NEAR)) if good else WRONG, rng) + _dots(rng)
    return {"answer": answer, "label": good != (rng.random() < flips)}


def _negative(right: str, rng: random.Random) -> dict[str, Any]:
    return {"answer": _answer(right, WRONG, rng) + _dots(rng)}


# Rows --------------------------------------------------------------------------------------------------------

SKILLS: dict[str, Callable[..., dict[str, Any]]] = {
    "preference_demonstrations": _demonstration,
    "preference_pairs": _pair,
    "preference_ranked": _ranked,
    "preference_groups": _groups,
    "preference_labelled": _labelled,
    "preference_negatives": _negative,
}
_SHARE_OPTIONS = ("flips", "length_bias")
_LEAST = {"pairs_per_prompt": 1, "candidates": 2, "members": 1}


def check_options(skill: str, options: Mapping[str, float]) -> None:
    """Check the options of a skill.

    Raises:
        ValueError: one that the skill does not have, or a value out of its range; begins with `name=value`.
    """
    parameters = inspect.signature(SKILLS[skill]).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for name, value in options.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f" (nearest: {nearest[0]})" if nearest else ""
            raise ValueError(f"{name}={value}: {skill} has no such option{hint}; it has {', '.join(known) or 'none'}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _SHARE_OPTIONS and not (number and 0 <= value <= 1):
            raise ValueError(f"{name}={value}: must be a number between 0 and 1")
        if name in _LEAST and not (number and value == value // 1 and value >= _LEAST[name]):
            raise ValueError(f"{name}={value}: must be a whole number >= {_LEAST[name]}")


def rows(skill: str, split: str, size: int, seed: int, **options: float) -> list[dict[str, Any]]:
    """`size` rows of one skill and split, each of another prompt (pairs: `pairs_per_prompt` rows after one another).

    The same arguments give the same rows on every machine, and a smaller `size` gives the first of them.

    Args:
        skill: a key of `SKILLS`.
        split: train, validation or test.
        size: how many.
        seed: any integer; it chooses the prompts and the responses.
        options: of the skill: flips, length_bias (shares), pairs_per_prompt, candidates, members (whole numbers).

    Raises:
        ValueError: unknown split, too many rows, an option that the skill does not have or out of its range.
    """
    check_options(skill, options)
    each = int(options.get("pairs_per_prompt", 1))
    prompts = mini_world.items("increment", split, -(-size // each), seed)
    rng = random.Random(f"preference world: {skill} {split} {seed}")
    asked = [item for item in prompts for _ in range(each)][:size]
    return [{"prompt": item.prompt, **SKILLS[skill](item.answer, rng, **options)} for item in asked]
