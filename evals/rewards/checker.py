"""The judge of right and wrong that other rewards build on, chosen by their option `checker`:

math    `math_answer.correct`, equality of mathematics
exact   `exact_match.exact`, equality of text
graded  `evals.random_calculation.graded`, from 0 to 1 by how close a number is
mark    `evals.problem_world.addition_reward`, the number after the last `#` of generated problems
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from evals import problem_world, random_calculation
from evals.rewards import exact_match, math_answer

_SCORES: Mapping[str, Callable[..., Sequence[float | None]]] = {
    "math": math_answer.correct,
    "exact": exact_match.exact,
    "graded": random_calculation.graded,
    "mark": problem_world.addition_reward,
}


def scores(
    checker: str, prompts: Sequence[str], responses: Sequence[str], answers: Sequence[str]
) -> list[float | None]:
    """The score of each response by a checker.

    Raises:
        ValueError: there is no such checker.
    """
    if checker not in _SCORES:
        raise ValueError(f"checker={checker}: must be one of {', '.join(_SCORES)}")
    return list(_SCORES[checker](prompts, responses, answers))


def states_answer(checker: str, response: str) -> bool:
    """Whether a response has an answer that can be compared with others."""
    compares = _compares(checker)
    if compares == "mark":
        return problem_world.stated(response) is not None
    return math_answer.states_answer(response) if compares == "math" else bool(response.strip())


def agree(checker: str, first: str, second: str) -> bool:
    """Whether two responses give the same answer."""
    compares = _compares(checker)
    if compares == "math":
        return math_answer.agree(first, second)
    if compares == "mark":
        return problem_world.stated(first) == problem_world.stated(second) is not None
    return exact_match.normalised(first) == exact_match.normalised(second)


def _compares(checker: str) -> str:
    if checker not in ("math", "exact", "mark"):
        raise ValueError(f"checker={checker}: must be math, exact or mark, which say whether two responses agree")
    return checker
