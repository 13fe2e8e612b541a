"""A penalty of repetition: the share of n-grams that were there before (arXiv 2502.03373, appendix C.2; TRL)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def repeated_ngrams(
    prompts: Sequence[str], responses: Sequence[str], *, n: int = 3, max_penalty: float = -1.0
) -> list[float]:
    """(1 - unique n-grams / n-grams) * max_penalty, 0 for a response without n-grams; added to another reward.

    The n-grams are of words, which white space separates. TRL takes token ids, which a reward does not see here: the
    numbers are others, and text of a language without spaces has no n-grams.

    Args:
        prompts: not looked at.
        responses: text.
        n: words of an n-gram.
        max_penalty: what endless repetition comes to, at most 0. Both defaults are TRL's.

    Raises:
        ValueError: n below 1, a penalty above 0 or not finite.
    """
    if n < 1:
        raise ValueError(f"n={n}: must be at least 1")
    if not -math.inf < max_penalty <= 0:
        raise ValueError(f"max_penalty={max_penalty}: must be a finite number <= 0")
    return [max_penalty * _repeated(response.split(), n) for response in responses]


def _repeated(words: Sequence[str], n: int) -> float:
    ngrams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
