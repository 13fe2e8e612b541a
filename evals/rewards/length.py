"""Rewards with the length of the response in them, in generated tokens.

soft_overlong                        DAPO's punishment of what comes near the limit (arXiv 2503.14476)
correctness, format_only,            the three rewards of "Surrogate Signals from Format and Length"
    format_length                    (arXiv 2505.19439), the last two without any reference
linear_penalty                       correct * (1 - weight * length), to which decoupled rewards (DRPO, arXiv
                                     2510.04474) are compared
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evals.rewards import checker as checkers
from evals.rewards.response_format import has_thinking

# DAPO ------------------------------------------------------------------------------------------------------


def soft_overlong(
    prompts: Sequence[str],
    responses: Sequence[str],
    tokens: Sequence[int],
    *,
    most: int = 20480,
    cache: int = 4096,
) -> list[float]:
    """0 up to `most - cache` tokens, then linearly down to -1 at `most`, -1 beyond; added to another reward.

    Args:
        prompts, responses: not looked at.
        tokens: generated tokens of each response.
        most: L_max.
        cache: C, how many tokens before it the punishment begins.

    Raises:
        ValueError: a cache that is not between 1 and `most`.
    """
    if not 1 <= cache <= most:
        raise ValueError(f"cache={cache}: must be from 1 to most={most}")
    return [max(-1.0, min(0.0, (most - cache - length) / cache)) for length in tokens]


# Format and length -----------------------------------------------------------------------------------------


def curve(x: float, peak: float = 0.5) -> float:
    """1 - (1 - x/p)^2 up to the peak p, 1 - 2 ((x - p)/(1 - p))^2 beyond: 0 at 0, 1 at p, -1 at 1.

    Args:
        x: response tokens / L_max.
        peak: p.

    Raises:
        ValueError: x outside [0, 1] or p outside (0, 1).
    """
    if not 0 <= x <= 1:
        raise ValueError(f"x={x}: must be from 0 to 1")
    if not 0 < peak < 1:
        raise ValueError(f"peak={peak}: must be above 0 and below 1")
    return 1 - (1 - x / peak) ** 2 if x <= peak else 1 - 2 * ((x - peak) / (1 - peak)) ** 2


def correctness(
    prompts: Sequence[str],
    responses: Sequence[str],
    answers: Sequence[str],
    *,
    think: bool = True,
    checker: str = "math",
) -> list[float | None]:
    """The baseline with references: F1/2 + 1[correct], F1 = 1 if <think>...</think> occurs.

    Args:
        prompts, responses, answers: as in `math_answer.correct`; None where that is None.
        think: with F1. False, for prompts that do not ask for it: the second term alone (ours).
        checker: math, exact or mark (`evals/rewards/checker.py`).

    Raises:
        ValueError: there is no such checker.
    """
    scores = checkers.scores(checker, prompts, responses, answers)
    return [
        None if score is None else score + (0.5 if think and has_thinking(response) else 0.0)
        for score, response in zip(scores, responses, strict=True)
    ]


def format_only(
    prompts: Sequence[str], responses: Sequence[str], *, think: bool = True, checker: str = "math"
) -> list[float]:
    """(F1 + F2)/2, F2 = 1 if an answer can be extracted and parsed; without `think`, F2 alone (ours).

    Raises:
        ValueError: `checker` (math, exact, mark) does not say what an answer is.
    """
    return [_format(response, checkers.states_answer(checker, response), think) for response in responses]


def format_length(
    prompts: Sequence[str],
    responses: Sequence[str],
    tokens: Sequence[int],
    *,
    most_tokens: int = 3072,
    peak: float = 0.5,
    think: bool = True,
    checker: str = "math",
) -> list[float]:
    """`format_only` + len(x) if an answer can be extracted and parsed, else min(0, len(x)), by `curve`.

    Args:
        prompts: not looked at.
        responses: text.
        tokens: generated tokens of each; those beyond `most_tokens` count as `most_tokens` (ours).
        most_tokens: L_max.
        peak: p, the length with the highest reward as a share of L_max.
        think: with F1.
        checker: math, exact or mark (`evals/rewards/checker.py`): what an answer is.

    Raises:
        ValueError: `most_tokens` below 1, a peak that is not between 0 and 1, a checker of another kind.
    """
    lengths = _shares(tokens, most_tokens)
    curves = [curve(x, peak) for x in lengths]
    return [
        _format(response, True, think) + term if checkers.states_answer(checker, response) else min(0.0, term)
        for response, term in zip(responses, curves, strict=True)
    ]


def _format(response: str, has_answer: bool, think: bool) -> float:
    return (has_thinking(response) + has_answer) / 2 if think else float(has_answer)


# Linear ----------------------------------------------------------------------------------------------------


def linear_penalty(
    prompts: Sequence[str],
    responses: Sequence[str],
    answers: Sequence[str],
    tokens: Sequence[int],
    *,
    weight: float = 0.5,
    most_tokens: int = 8192,
    checker: str = "math",
) -> list[float | None]:
    """correct * (1 - weight * l), with l = tokens / `most_tokens`, at most 1.

    Args:
        prompts, responses, answers: as in `math_answer.correct`; None where that is None.
        tokens: generated tokens of each response.
        weight: 0 is correctness alone. Its default is a guess; that of `most_tokens` is the limit in DRPO's code.
        most_tokens: what length is a share of.
        checker: math, exact, graded or mark (`evals/rewards/checker.py`).

    Raises:
        ValueError: a weight that is negative or not finite, `most_tokens` below 1, no such checker.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight={weight}: must be a finite number >= 0")
    lengths = _shares(tokens, most_tokens)
    scores = checkers.scores(checker, prompts, responses, answers)
    return [
        None if score is None else score * (1 - weight * length) for score, length in zip(scores, lengths, strict=True)
    ]


def _shares(tokens: Sequence[int], most_tokens: int) -> list[float]:
    if most_tokens < 1:
        raise ValueError(f"most_tokens={most_tokens}: must be at least 1")
    return [min(1.0, length / most_tokens) for length in tokens]
