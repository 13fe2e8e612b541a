"""Rewards that are random, wrong or the model's own opinion: the controls of RL with verifiable rewards.

They are those of "Reasoning or Memorization?" (arXiv 2507.10532), which asks on what data such rewards can seem to
help. A random reward has an expected advantage of 0 for every response; the inverted one, after any normalisation by
group, gives the advantages of the correct one with the other sign. `majority_vote` is the reward of TTRL (arXiv
2504.16084).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from random import Random

from evals.rewards import checker as checkers


def random(prompts: Sequence[str], responses: Sequence[str], seed: int, *, probability: float = 0.5) -> list[float]:
    """1 with a probability, else 0, whatever the response. A response's draw depends on the seed and on its position.

    Raises:
        ValueError: a probability outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability}: must be from 0 to 1")
    return [float(drawn < probability) for drawn in uniform(prompts, responses, seed)]


def uniform(prompts: Sequence[str], responses: Sequence[str], seed: int) -> list[float]:
    """Uniform on [0, 1), whatever the response, by the same draws as `random`."""
    # Only random() has a sequence that Python promises never to change.
    rng = Random(f"spurious reward: {seed}")
    return [rng.random() for _ in responses]


def inverted(
    prompts: Sequence[str], responses: Sequence[str], answers: Sequence[str], *, checker: str = "math"
) -> list[float | None]:
    """1 - correct; None where the checker says None.

    Args:
        prompts, responses, answers: as in `math_answer.correct`.
        checker: math, exact, graded or mark (`evals/rewards/checker.py`).

    Raises:
        ValueError: there is no such checker.
    """
    scores = checkers.scores(checker, prompts, responses, answers)
    return [None if score is None else 1.0 - score for score in scores]


def majority_vote(
    prompts: Sequence[str], responses: Sequence[str], groups: Sequence[int], *, checker: str = "math"
) -> list[float]:
    """1 for a response with the answer that most of its group give, else 0. No reference is needed.

    Of answers with equally many votes the one that was given first wins. A response without an answer has no vote and
    gets 0; so do all of a group in which nobody votes.

    Args:
        prompts: not looked at.
        responses: text.
        groups: the number of the group of each response.
        checker: math, exact or mark: when two answers are the same.

    Raises:
        ValueError: there is no such checker, or it does not say when two answers are the same.
    """
    scores = [0.0] * len(responses)
    for winners in _majorities(responses, groups, checker).values():
        for position in winners:
            scores[position] = 1.0
    return scores


def majority_incorrect(
    prompts: Sequence[str],
    responses: Sequence[str],
    answers: Sequence[str],
    groups: Sequence[int],
    *,
    checker: str = "math",
) -> list[float | None]:
    """`majority_vote` where the majority is wrong: a wrong label is rewarded.

    None, for the whole group, where the answer of the majority is right, where nobody votes, and where the reference
    cannot be read: such a prompt takes no part.

    Args and errors: those of `majority_vote`, and `answers`, the references.
    """
    majorities = _majorities(responses, groups, checker)
    first = [winners[0] for winners in majorities.values() if winners]
    judged = checkers.scores(
        checker,
        [prompts[position] for position in first],
        [responses[position] for position in first],
        [answers[position] for position in first],
    )
    wrong = {groups[position] for position, score in zip(first, judged, strict=True) if score == 0}
    votes = majority_vote(prompts, responses, groups, checker=checker)
    return [vote if group in wrong else None for vote, group in zip(votes, groups, strict=True)]


def _majorities(responses: Sequence[str], groups: Sequence[int], checker: str) -> dict[int, list[int]]:
    """The positions of the responses with the answer of the majority, for every group."""
    camps: defaultdict[int, list[list[int]]] = defaultdict(list)
    for position, (response, group) in enumerate(zip(responses, groups, strict=True)):
        known = camps[group]
        if not checkers.states_answer(checker, response):
            continue
        camp = next((camp for camp in known if checkers.agree(checker, responses[camp[0]], response)), None)
        if camp is None:
            known.append([position])
        else:
            camp.append(position)
    return {group: max(known, key=len, default=[]) for group, known in camps.items()}  # max: the first of the largest
