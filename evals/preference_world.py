"""A generated preference set whose true reward is known: what a method really gains can be told from what it was shown.

A prompt asks for a string of digits with 1 added to each (`next 48213:`, a skill that the mini LM is pre-trained in). A
response is five digits and, after them, a filler of dots, which says nothing:

    right   59324    all digits right                    true reward 1
    near    59334    one digit wrong                     true reward 1/2
    wrong   20817    three or more wrong, or no answer   true reward 0

Demonstrations, for the supervised start, are 40% right, 30% near, 30% wrong, with 0 to 4 dots. In pairs the two
responses differ in quality, and the better one is chosen; `flips` of them are turned round (noise in the labels), and
`length_bias` is the share of pairs whose dots are dealt so that the chosen response is not the shorter one (a preference
for length that has nothing to do with the reward). Right and near responses share most of their tokens: what lowers the
likelihood of the one easily lowers that of the other.

Prompts of train, validation and test are disjoint (those of `evals/mini_world.py`). The standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from evals import mini_world

RIGHT, NEAR, WRONG = "right", "near", "wrong"
REWARDS = {RIGHT: 1.0, NEAR: 0.5, WRONG: 0.0}
_SHARES = {RIGHT: 0.4, NEAR: 0.3, WRONG: 0.3}  # of the demonstrations
_MOST_DOTS = 4


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The true reward of responses: 1, 1/2 or 0, whatever their length.

    Args:
        prompts: of this world, `next 48213:`.
        responses: text, without an end-of-sequence token.
    """
    return [_graded(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _graded(prompt: str, response: str) -> float:
    digits = prompt.removeprefix("next ").removesuffix(":")
    if not digits.isdigit():
        raise ValueError(f"prompt must be of the preference world, got {prompt!r}")
    answer = response.rstrip(".")
    right = _right(digits)
    if len(answer) != len(right) or not answer.isdigit():
        return REWARDS[WRONG]
    differing = sum(a != b for a, b in zip(answer, right, strict=True))
    return REWARDS[RIGHT] if differing == 0 else REWARDS[NEAR] if differing == 1 else REWARDS[WRONG]


def _right(digits: str) -> str:
    return "".join(str((int(digit) + 1) % 10) for digit in digits)


def _answer(right: str, quality: str, rng: random.Random) -> str:
    """Digits of the quality asked for."""
    wrong_digits = {RIGHT: 0, NEAR: 1}.get(quality, 3 + int(rng.random() * 3))
    places = mini_world.draw([(place,) for place in range(len(right))], wrong_digits, rng)
    digits = list(right)
    for (place,) in places:
        digits[place] = str((int(digits[place]) + 1 + int(rng.random() * 9)) % 10)
    return "".join(digits)


def _quality(rng: random.Random, among: Sequence[str] = (RIGHT, NEAR, WRONG)) -> str:
    total = sum(_SHARES[name] for name in among)
    drawn = rng.random() * total
    for name in among:
        drawn -= _SHARES[name]
        if drawn < 0:
            return name
    return among[-1]


def _dots(rng: random.Random) -> str:
    return "." * int(rng.random() * (_MOST_DOTS + 1))


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"dataset.options.{name} must be a number between 0 and 1, got {value!r}")


def _check_size(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or value != int(value) or value < least:
        raise ValueError(f"dataset.options.{name} must be a whole number >= {least}, got {value!r}")


def _demonstration(right: str, rng: random.Random) -> dict[str, Any]:
    return {"answer": _answer(right, _quality(rng), rng) + _dots(rng)}


def _pair(right: str, rng: random.Random, length_bias: float = 0.0, flips: float = 0.0) -> dict[str, Any]:
    _check_share("length_bias", length_bias)
    _check_share("flips", flips)
    better = _quality(rng, (RIGHT, NEAR))
    worse = NEAR if better == RIGHT and rng.random() < 0.5 else WRONG
    answers = [_answer(right, quality, rng) for quality in (better, worse)]
    if rng.random() < flips:
        answers.reverse()
    dots = [_dots(rng), _dots(rng)]
    if rng.random() < length_bias:
        dots.sort(key=len, reverse=True)
    return {"chosen": answers[0] + dots[0], "rejected": answers[1] + dots[1]}


def _ranked(right: str, rng: random.Random, candidates: float = 4) -> dict[str, Any]:
    """One response that is right or near, and others of any quality; scores are the true rewards."""
    _check_size("candidates", int(candidates), 2)
    qualities = [_quality(rng, (RIGHT, NEAR)), WRONG, *(_quality(rng) for _ in range(int(candidates) - 2))]
    responses = [_answer(right, quality, rng) + _dots(rng) for quality in qualities]
    return {"responses": responses, "scores": [REWARDS[quality] for quality in qualities]}


def _groups(right: str, rng: random.Random, members: float = 2, flips: float = 0.0) -> dict[str, Any]:
    """Two groups of independent responses: of the better, right or near, of the worse, near or wrong."""
    _check_size("members", int(members), 1)
    _check_share("flips", flips)

    def drawn(among: Sequence[str]) -> list[str]:
        return [_answer(right, _quality(rng, among), rng) + _dots(rng) for _ in range(int(members))]

    sides = [drawn((RIGHT, NEAR)), drawn((NEAR, WRONG))]
    if rng.random() < flips:
        sides.reverse()
    return {"chosen": sides[0], "rejected": sides[1]}


def _labelled(right: str, rng: random.Random, flips: float = 0.0) -> dict[str, Any]:
    """One response, and whether it is good: right or near as often as wrong."""
    _check_share("flips", flips)
    good = rng.random() < 0.5
    answer = _answer(right, _quality(rng, (RIGHT, NEAR)) if good else WRONG, rng) + _dots(rng)
    return {"answer": answer, "label": good != (rng.random() < flips)}


def _negative(right: str, rng: random.Random) -> dict[str, Any]:
    return {"answer": _answer(right, WRONG, rng) + _dots(rng)}


SKILLS: dict[str, Callable[..., dict[str, Any]]] = {
    "preference_demonstrations": _demonstration,
    "preference_pairs": _pair,
    "preference_ranked": _ranked,
    "preference_groups": _groups,
    "preference_labelled": _labelled,
    "preference_negatives": _negative,
}


def rows(skill: str, split: str, size: int, seed: int, **options: float) -> list[dict[str, Any]]:
    """`size` rows of one skill and split, each of another prompt; the same arguments give the same rows everywhere.

    Args:
        skill: a key of `SKILLS`.
        split: train, validation or test.
        size: how many.
        seed: any integer; it chooses the prompts and the responses.
        options: of the skill: flips, length_bias (shares), candidates, members (numbers of responses).

    Raises:
        ValueError: unknown split, too many rows, an option out of its range.
        TypeError: an option that the skill does not have.
    """
    prompts = mini_world.items("increment", split, size, seed)
    rng = random.Random(f"preference world: {skill} {split} {seed}")
    return [{"prompt": item.prompt, **SKILLS[skill](item.answer, rng, **options)} for item in prompts]
