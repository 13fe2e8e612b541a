"""What generated problem sets share: splits by content, draws that repeat everywhere, options of skills.

A skill makes rows of contents, which are what problems are about: `(47, 38)`, two numbers to add. Whether a content
belongs to train, validation or test (about 90/5/5) is decided by a hash of it alone, so that splits are disjoint
whatever seed or size is asked for. All randomness is `rng.random()`, whose sequence Python promises never to change.

The standard library only.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from evals.mini_world import SPLITS, draw

Content: TypeAlias = tuple[Any, ...]
Row: TypeAlias = dict[str, Any]


def split_of(content: Content) -> str:
    """train, validation or test: the same on every machine."""
    text = " ".join(str(part) for part in content)
    percentile = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
    return "train" if percentile < 90 else "validation" if percentile < 95 else "test"


def below(count: int, rng: random.Random) -> int:
    """A whole number from 0 to `count - 1`, each as likely."""
    return int(rng.random() * count)


def itself(content: Content) -> Content:
    """What decides the split of most contents."""
    return content


@dataclass(frozen=True)
class Skill:
    """How the rows of a skill are made.

    contents: all there are; its keyword parameters are options. row: (content, rng, options) -> a row; so are its
    keyword-only parameters. about: what of a content decides its split. again: whether a content may come again, once
    all had their turn. bounds: least and most of each option whose default is a whole number; other options are shares.
    """

    contents: Callable[..., Iterable[Content]]
    row: Callable[..., Row]
    about: Callable[[Content], Content] = itself
    again: bool = False
    bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def check_options(self, name: str, options: Mapping[str, float]) -> None:
        """Check the options of this skill, which is called `name`.

        Raises:
            ValueError: one that the skill does not have, or a value out of its range; begins with `option=value`.
        """
        known = list(_options(self.contents) | _options(self.row))
        for option, value in options.items():
            if option not in known:
                nearest = difflib.get_close_matches(option, known, n=1, cutoff=0.4)
                hint = f" (nearest: {nearest[0]})" if nearest else ""
                raise ValueError(
                    f"{option}={value}: {name} has no such option{hint}; it has {', '.join(known) or 'none'}"
                )
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if option not in self.bounds:
                if not (number and 0 <= value <= 1):
                    raise ValueError(f"{option}={value}: must be a number between 0 and 1")
                continue
            least, most = self.bounds[option]
            if not (number and value == value // 1 and least <= value <= most):
                raise ValueError(f"{option}={value}: must be a whole number from {least} to {most}")

    def rows(self, name: str, split: str, size: int, seed: int, options: Mapping[str, float]) -> list[Row]:
        """`size` rows of one split; a smaller `size` gives the first of them.

        Raises:
            ValueError: unknown split, a size below 1 or above the number of problems, a wrong option.
        """
        self.check_options(name, options)
        if split not in SPLITS:
            raise ValueError(f"split={split}: must be one of {', '.join(SPLITS)}")
        if size < 1:
            raise ValueError(f"size={size}: must be >= 1")
        shaping = {option: int(value) for option, value in options.items() if option in _options(self.contents)}
        writing = {option: value for option, value in options.items() if option in _options(self.row)}
        pool = _pools(self.contents, self.about, tuple(sorted(shaping.items()))).get(split, [])
        if size > len(pool) and not (self.again and pool):
            raise ValueError(f"size={size}: must be <= {len(pool)}, as {name} has no more problems in {split}")
        # Two streams: the problems do not depend on what is drawn for the rows.
        drawn = _in_turns(pool, size, random.Random(f"generated problems: {name} {split} {seed}"))
        rng = random.Random(f"generated rows: {name} {split} {seed}")
        return [self.row(content, rng, **writing) for content in drawn]


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {found.name: found.default for found in parameters if found.kind is found.KEYWORD_ONLY}


@functools.cache
def _pools(
    contents: Callable[..., Iterable[Content]],
    about: Callable[[Content], Content],
    options: tuple[tuple[str, int], ...],
) -> dict[str, list[Content]]:
    """The contents of each split; the lists are cached and shared, so they must not be changed."""
    pools: dict[str, list[Content]] = {}
    for content in contents(**dict(options)):
        pools.setdefault(split_of(about(content)), []).append(content)
    return pools


def _in_turns(pool: Sequence[Content], size: int, rng: random.Random) -> Iterator[Content]:
    """Contents in random order; when all were drawn, all again in another order."""
    while size > 0:
        yield from draw(pool, min(size, len(pool)), rng)
        size -= len(pool)
