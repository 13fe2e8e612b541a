"""Two probes of whether a benchmark was in the training data (arXiv 2507.10532): a model sees the first part of a
question.

    completion   it continues, greedily, without a chat template; what it writes is cut to the length of the missing
                 part and compared with it: exact match and ROUGE-L
    answer       it goes on to a final answer, which is compared with that of the whole question, that it never saw

A model that knows the set completes questions that nobody can guess. Parts are of characters, which is a guess (words
would be the alternative), and all comparisons are of text with single spaces.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from evals.rewards.math_answer import correct

FRACTIONS = (0.8, 0.6, 0.4)


class Completion(NamedTuple):
    """Means over questions: the share of exact matches, the F-measure of ROUGE-L."""

    exact_match: float
    rouge_l: float


def cut(question: str, fraction: float) -> tuple[str, str]:
    """The first part of a question, floor(fraction * characters) of it, and the rest.

    Raises:
        ValueError: a fraction outside (0, 1), a question of which one part would be blank.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction}: must be above 0 and below 1")
    at = math.floor(len(question) * Fraction(str(fraction)))  # as written: 0.29 * 100 is below 29 as a float
    head, tail = question[:at], question[at:]
    if not head.strip() or not tail.strip():
        raise ValueError(f"question={question!r}: must be longer to be cut at {fraction}")
    return head, tail


def exact_match(continuation: str, tail: str) -> bool:
    """Whether a continuation, cut to the length of the tail, is the tail."""
    gold = _normalised(tail)
    return _normalised(continuation)[: len(gold)] == gold


def rouge_l(continuation: str, tail: str) -> float:
    """F-measure of ROUGE-L (Lin 2004) between the tail and the continuation cut to its length, from 0 to 1.

    Google's rouge_score without stemming: words are runs of the letters a to z and digits, in lower case.
    """
    # absl, which it imports, keeps the stderr of that moment and closes it when logging is configured anew.
    with contextlib.redirect_stderr(sys.__stderr__):
        from rouge_score.rouge_scorer import RougeScorer

    gold = _normalised(tail)
    scores = RougeScorer(["rougeL"]).score(gold, _normalised(continuation)[: len(gold)])
    return float(scores["rougeL"].fmeasure)


def completion(questions: Sequence[str], continuations: Sequence[str], fraction: float) -> Completion:
    """The first probe: what a model wrote after the first part of each question.

    Args:
        questions: whole.
        continuations: greedy, at least as long as the missing parts, of the head that `cut` gives.
        fraction: at which the questions were cut.

    Raises:
        ValueError: no question, not a continuation for each; those of `cut`.
    """
    _check(questions, continuations, "questions")
    tails = [cut(question, fraction)[1] for question in questions]
    pairs = list(zip(continuations, tails, strict=True))
    return Completion(
        sum(exact_match(*pair) for pair in pairs) / len(pairs), math.fsum(rouge_l(*pair) for pair in pairs) / len(pairs)
    )


def answer_accuracy(continuations: Sequence[str], answers: Sequence[str]) -> float:
    """The second probe: the share of continuations that end in the right answer (`math_answer.correct`).

    References that cannot be read are left out; NaN if none can.

    Raises:
        ValueError: no continuation, not an answer for each.
    """
    _check(continuations, answers, "continuations")
    scores = [score for score in correct(continuations, continuations, answers) if score is not None]
    return sum(scores) / len(scores) if scores else math.nan


def _check(some: Sequence[str], others: Sequence[str], name: str) -> None:
    if not some or len(some) != len(others):
        raise ValueError(f"{name}={len(some)}: must be at least one, and as many as the other texts, {len(others)}")


def _normalised(text: str) -> str:
    return " ".join(text.split())
