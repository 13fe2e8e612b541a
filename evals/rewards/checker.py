"""The judge of right and wrong that other rewards build on, chosen by their option `checker`:

math    `math_answer.correct`, equality of mathematics
exact   `exact_match.exact`, equality of text
graded  `evals.random_calculation.graded`, from 0 to 1 by how close a number is
"""

from __future__ import annotations

from collections.abc import Sequence

from evals import random_calculation
from evals.rewards import exact_match, math_answer

_SCORES = {"math": math_answer.correct, "exact": exact_match.exact, "graded": random_calculation.graded}


def scores(
    checker: str, prompts: Sequence[str], responses: Sequence[str], answers: Sequence[str]
) -> list[float | None]:
    """The score of each response by a checker.

    Raises:
        ValueError: there is no such checker.
    """
    if checker not in _SCORES:
        raise ValueError(f"checker={checker}: must be one of {', '.join(_SCORES)}")
    return _SCORES[checker](prompts, responses, answers)


def states_answer(checker: str, response: str) -> bool:
    """Whether a response has an answer that can be compared with others."""
    return math_answer.states_answer(response) if _compares(checker) == "math" else bool(response.strip())


def agree(checker: str, first: str, second: str) -> bool:
    """Whether two responses give the same answer."""
    if _compares(checker) == "math":
        return math_answer.agree(first, second)
    return exact_match.normalised(first) == exact_match.normalised(second)


def _compares(checker: str) -> str:
    if checker not in ("math", "exact"):
        raise ValueError(f"checker={checker}: must be math or exact, which say whether two responses agree")
    return checker
