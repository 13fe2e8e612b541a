"""The first part of a question, which a model goes on with: does it know the rest? (arXiv 2507.10532)

A question is cut at a share of its characters (`evals/partial_prompt.py`). One greedy continuation is judged twice: cut
to the length of the missing part it is compared with that, and the answer that it ends in with that of the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evals import partial_prompt, problem_world
from evals.rewards.math_answer import correct
from evals.worlds import WORLDS

if TYPE_CHECKING:
    import datasets


# Benchmarks --------------------------------------------------------------------------------------------------


def first_80(docs: datasets.Dataset) -> datasets.Dataset:
    """Each question as its first 80% and the rest."""
    return _cut(docs, 0.8)


def first_60(docs: datasets.Dataset) -> datasets.Dataset:
    """Each question as its first 60% and the rest."""
    return _cut(docs, 0.6)


def first_40(docs: datasets.Dataset) -> datasets.Dataset:
    """Each question as its first 40% and the rest."""
    return _cut(docs, 0.4)


def _cut(docs: datasets.Dataset, fraction: float) -> datasets.Dataset:
    question = "problem" if "problem" in docs.column_names else "question"
    return docs.map(lambda doc: _parts(doc[question], fraction))


def _parts(question: str, fraction: float) -> dict[str, str]:
    head, tail = partial_prompt.cut(question, fraction)
    return {"head": head, "tail": tail}


def judge(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """exact_match, rouge_l: of the completion. acc: the answer it ends in is right."""
    (score,) = correct([""], [results[0]], [str(doc["answer"])])
    return {**_completion(doc, results[0]), "acc": score or 0.0}


def _completion(doc: Mapping[str, Any], continuation: str) -> dict[str, float]:
    return {
        "exact_match": float(partial_prompt.exact_match(continuation, doc["tail"])),
        "rouge_l": partial_prompt.rouge_l(continuation, doc["tail"]),
    }


# Generated additions -----------------------------------------------------------------------------------------


def additions(
    skill: str,
    split: str,
    count: int,
    seed: int,
    options: Mapping[str, float] | None = None,
    fraction: float | None = None,
    **ignored: Any,
) -> dict[str, datasets.Dataset]:
    """Problems of a skill of `evals/problem_world.py`, under one name whatever their split. No fraction: whole ones."""
    from datasets import Dataset

    rows = WORLDS[skill].rows(skill, split, count, seed, **(options or {}))
    parts = [{"head": row["prompt"]} if fraction is None else _parts(row["prompt"], fraction) for row in rows]
    return {"items": Dataset.from_list([{**row, **part} for row, part in zip(rows, parts, strict=True)])}


def judge_addition(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Of a part: exact_match and acc. Of a whole problem acc alone."""
    (score,) = problem_world.addition_reward([""], [results[0]], [doc["answer"]])
    completed = {"exact_match": _completion(doc, results[0])["exact_match"]} if "tail" in doc else {}
    return {**completed, "acc": score}
