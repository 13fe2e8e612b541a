"""The mini world: a generated data set of small skills, on which the embedded mini LM is trained and tested.

The *general* skills are learned in pre-training, the *target* skills in fine-tuning; together they are a
bench for forgetting that runs in minutes on a CPU: a model knows six functions of strings, and fine-tuning
contradicts one of them on most of its inputs (`relabelled_copy`), or teaches it something new
(`word_problems`).

Every item is a prompt and its answer, which follows the prompt directly (no delimiter). Text is short,
because the mini LM reads bytes: `sort 48213:` -> `12348`, `flip 48213:` -> `31284`.

**Splits are disjoint by content.** Whether an item belongs to train, validation or test (about 90/5/5) is
decided by a hash of what it is about, never by a seed, a count or the skill: for the string skills of the
input string alone, so that a test string is unseen in *every* string skill, general or target; for
`word_problems` of the story and its numbers (the name in it does not count).

This module needs only the standard library; `load`, for lm-eval, imports `datasets` when it is called.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import datasets

SPLITS = ("train", "validation", "test")

# What an item is about: `("48213",)`, an input string, or `("buy", 12, 7)`, a story and its numbers.
Content: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One example. `part` is the part of the skill that it belongs to: "all" where a skill has just one."""

    skill: str
    part: str
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Skill:
    """What a skill is: its kind ("general" or "target"), one line about it, and its parts.

    `turns`: the parts in the order in which a draw takes them, again and again; how often a part stands there is its
    share of every draw.
    """

    kind: str
    summary: str
    turns: tuple[str, ...] = ("all",)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts."""
        return tuple(dict.fromkeys(self.turns))


SKILLS: dict[str, Skill] = {
    "copy": Skill("general", "repeat a 5-digit string"),
    "reverse": Skill("general", "write a 5-digit string backwards"),
    "increment": Skill("general", "add 1 to every digit of a 5-digit string, modulo 10"),
    "sort": Skill("general", "sort the digits of a 5-digit string, smallest first"),
    "rotate": Skill("general", "move the first digit of a 5-digit string to its end"),
    "complement": Skill("general", "replace every digit x of a 5-digit string by 9-x"),
    "relabelled_copy": Skill(
        "target",
        "the copy prompt, partly contradicted: strings with an even first digit are still copied (easy, 40%), "
        "the others get 5 added to every digit, modulo 10 (hard, 60%)",
        # Not half and half: the median loss would then lie in the gap between two modes, and jump with one item.
        ("easy", "hard", "hard", "easy", "hard"),
    ),
    "word_problems": Skill(
        "target",
        "arithmetic stories in one or two steps, with a worked answer ending in '#### <number>' as in GSM8K",
        ("one_step", "two_step"),
    ),
}
GENERAL_SKILLS = tuple(name for name, skill in SKILLS.items() if skill.kind == "general")
TARGET_SKILLS = tuple(name for name, skill in SKILLS.items() if skill.kind == "target")


# Strings ----------------------------------------------------------------------------------------------------

STRING_LENGTH = 5


def _shift_digits(digits: str, amount: int) -> str:
    return "".join(str((int(digit) + amount) % 10) for digit in digits)


# The word that asks for each string skill, and its function. All words have four letters, so that the digits
# and the answer stand at the same places in every sequence.
_STRING_FUNCTIONS: dict[str, tuple[str, Callable[[str], str]]] = {
    "copy": ("copy", lambda digits: digits),
    "reverse": ("flip", lambda digits: digits[::-1]),
    "increment": ("next", lambda digits: _shift_digits(digits, 1)),
    "sort": ("sort", lambda digits: "".join(sorted(digits))),
    "rotate": ("roll", lambda digits: digits[1:] + digits[0]),
    "complement": ("nine", lambda digits: "".join(str(9 - int(digit)) for digit in digits)),
}
STRING_SKILLS = tuple(_STRING_FUNCTIONS)


def _string_contents() -> Iterator[Content]:
    return ((f"{number:0{STRING_LENGTH}d}",) for number in range(10**STRING_LENGTH))


def _string_item(skill: str, content: Content) -> Item:
    (digits,) = content
    word, function = _STRING_FUNCTIONS[skill]
    return Item(skill, "all", f"{word} {digits}:", function(digits))


def _relabelled_copy_part(content: Content) -> str:
    (digits,) = content
    return "easy" if int(digits[0]) % 2 == 0 else "hard"


def _relabelled_copy_item(skill: str, content: Content) -> Item:
    (digits,) = content
    part = _relabelled_copy_part(content)
    word, copy = _STRING_FUNCTIONS["copy"]
    return Item(skill, part, f"{word} {digits}:", copy(digits) if part == "easy" else _shift_digits(digits, 5))


# Word problems ----------------------------------------------------------------------------------------------

NAMES = ("Ann", "Ben", "Eva", "Ida", "Jim", "Leo", "Mia", "Tom")


@dataclass(frozen=True, slots=True)
class _Story:
    """A template and the operators that lead, applied from left to right, from its numbers to its answer."""

    text: str
    operators: str


_STORIES: dict[str, _Story] = {
    "buy": _Story("{name} has {0} pens and buys {1} more. How many now?", "+"),
    "lose": _Story("{name} had {0} pens and lost {1}. How many are left?", "-"),
    "bags": _Story("{name} has {0} bags of {1} nuts. How many nuts?", "*"),
    "buy_give": _Story("{name} has {0} cards, buys {1} and gives away {2}. How many now?", "+-"),
    "find_find": _Story("{name} has {0} shells, finds {1} and later {2}. How many in all?", "++"),
    "bags_more": _Story("{name} has {0} bags of {1} nuts and {2} more. How many nuts?", "*+"),
    "bags_eat": _Story("{name} has {0} bags of {1} nuts and eats {2}. How many are left?", "*-"),
}
_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
}


def _running_results(operators: str, numbers: Sequence[int]) -> list[int]:
    """The result after each step: `("*+", [3, 4, 5])` gives `[12, 17]`."""
    results: list[int] = []
    for operator, number in zip(operators, numbers[1:], strict=True):
        results.append(_OPERATIONS[operator](results[-1] if results else numbers[0], number))
    return results


def _word_problem_contents() -> Iterator[Content]:
    for name, story in _STORIES.items():
        factors, terms = range(2, 13), range(2, 61) if len(story.operators) == 1 else range(2, 21)
        first_two = factors if story.operators[0] == "*" else terms
        for numbers in itertools.product(first_two, first_two, *[terms] * (len(story.operators) - 1)):
            if min(_running_results(story.operators, numbers)) > 0:
                yield (name, *numbers)


def _word_problem_part(content: Content) -> str:
    return "one_step" if len(_STORIES[content[0]].operators) == 1 else "two_step"


def _word_problem_item(skill: str, content: Content) -> Item:
    story_name, *numbers = content
    story = _STORIES[story_name]
    name = NAMES[_digest(content) // 100 % len(NAMES)]  # other digits than those that choose the split
    results = _running_results(story.operators, numbers)
    steps = [
        f"{left}{operator}{right}={result}"
        for left, operator, right, result in zip(
            [numbers[0], *results], story.operators, numbers[1:], results, strict=False
        )
    ]
    prompt = story.text.format(*numbers, name=name) + "\n"
    return Item(skill, _word_problem_part(content), prompt, "\n".join([*steps, f"#### {results[-1]}"]))


# Splits -----------------------------------------------------------------------------------------------------


def _digest(content: Content) -> int:
    """A number that depends on the content only: the same on every machine and in every process."""
    text = " ".join(str(part) for part in content)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _split_of(content: Content) -> str:
    percentile = _digest(content) % 100
    return "train" if percentile < 90 else "validation" if percentile < 95 else "test"


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a skill's items come from: all its contents, and the item and the part that belong to one."""

    contents: Callable[[], Iterator[Content]]
    item: Callable[[str, Content], Item]
    part_of: Callable[[Content], str] = lambda content: "all"


_SOURCES: dict[str, _Source] = {
    **dict.fromkeys(STRING_SKILLS, _Source(_string_contents, _string_item)),
    "relabelled_copy": _Source(_string_contents, _relabelled_copy_item, _relabelled_copy_part),
    "word_problems": _Source(_word_problem_contents, _word_problem_item, _word_problem_part),
}


@functools.cache
def _pools(contents: Callable[[], Iterator[Content]], part_of: Callable[[Content], str]) -> dict[tuple[str, str], list]:
    """The contents of each (split, part); the lists are cached and shared, so they must not be changed."""
    pools: dict[tuple[str, str], list[Content]] = {}
    for content in contents():
        pools.setdefault((_split_of(content), part_of(content)), []).append(content)
    return pools


def _pool(skill: str, split: str, part: str) -> list[Content]:
    source = _SOURCES[skill]
    return _pools(source.contents, source.part_of)[split, part]


# Drawing items ----------------------------------------------------------------------------------------------


def draw(pool: Sequence[Content], count: int, rng: random.Random) -> list[Content]:
    """`count` distinct elements in random order; the first ones do not depend on `count`.

    A partial Fisher-Yates shuffle on `rng.random()`, the one method whose sequence Python promises never to
    change.
    """
    remaining = list(pool)
    for position in range(count):
        chosen = position + int(rng.random() * (len(remaining) - position))
        remaining[position], remaining[chosen] = remaining[chosen], remaining[position]
    return remaining[:count]


def _check_name(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        nearest = difflib.get_close_matches(value, known, n=3, cutoff=0.4)
        hint = f" (did you mean {' or '.join(nearest)}?)" if nearest else ""
        raise ValueError(f"{key} must be one of {', '.join(known)}, got {value!r}{hint}")


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")


def items(skill: str, split: str, count: int, seed: int, part: str | None = None) -> list[Item]:
    """`count` distinct items of one skill and split.

    The same arguments give the same items on every machine, and a smaller `count` gives the first of them.
    The order is random, but the parts of a skill take turns (`Skill.turns`): a part's share is then the same in
    every draw, so that what depends on it (a mean accuracy, the median of the losses) does not vary by the luck
    of the seed.

    Args:
        skill: a key of `SKILLS`.
        split: "train", "validation" or "test".
        count: the number of items, at least 1.
        seed: any integer; it chooses among the items of the split, never what belongs to the split.
        part: draw from this part of the skill only, for example "hard".

    Raises:
        ValueError: for an unknown skill, split or part, a count below 1, or more items than there are.
    """
    _check_name("skill", skill, list(SKILLS))
    _check_name("split", split, SPLITS)
    turns = SKILLS[skill].turns
    if part is not None:
        _check_name("part", part, SKILLS[skill].parts)
        turns = (part,)
    _check_count(count)
    capacity = len(turns) * min(len(_pool(skill, split, name)) // turns.count(name) for name in turns)
    if count > capacity:
        where = "/".join(filter(None, (skill, split, part)))
        raise ValueError(f"count must be <= {capacity} (all items of {where} that keep its parts' shares), got {count}")

    order = [turns[position % len(turns)] for position in range(count)]
    drawn = {}
    for name in dict.fromkeys(turns):
        rng = random.Random(f"mini world: {skill} {split} {name} {seed}")
        drawn[name] = iter(draw(_pool(skill, split, name), order.count(name), rng))
    return [_SOURCES[skill].item(skill, next(drawn[name])) for name in order]


def pretraining_items(count: int, seed: int) -> list[Item]:
    """`count` training items of the general skills, in random order, each skill with the same probability.

    Drawn with replacement, so any `count` will do. The same arguments give the same items on every machine,
    and a smaller `count` gives the first of them.

    Raises:
        ValueError: for a count below 1.
    """
    _check_count(count)
    rng = random.Random(f"mini world: pre-training {seed}")
    drawn = []
    for _ in range(count):
        skill = GENERAL_SKILLS[int(rng.random() * len(GENERAL_SKILLS))]
        pool = _pool(skill, "train", "all")
        drawn.append(_SOURCES[skill].item(skill, pool[int(rng.random() * len(pool))]))
    return drawn


def load(
    skill: str, split: str, count: int, seed: int, part: str | None = None, **ignored: Any
) -> dict[str, datasets.Dataset]:
    """The items as lm-eval's `custom_dataset` wants them: `{split: Dataset}`; columns prompt, answer, part.

    lm-eval also hands over whatever else it knows (such as the model's arguments), which is ignored.
    Arguments and errors are those of `items`.
    """
    import datasets

    rows = [
        {"prompt": item.prompt, "answer": item.answer, "part": item.part}
        for item in items(skill, split, count, seed, part)
    ]
    return {split: datasets.Dataset.from_list(rows)}
