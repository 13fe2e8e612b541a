"""Problems of mathematics that are answered in a box, judged by math-verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.rewards.math_answer import correct, states_answer

# The prompt of training too: conf/dataset/math_problems.yaml.
PROMPT = "{problem}\nPut your final answer within \\boxed{{}}.\n"


def prompt(doc: Mapping[str, Any]) -> str:
    """What the model continues."""
    return PROMPT.format_map(doc)


def answer(doc: Mapping[str, Any]) -> str:
    """The reference; a set that keeps numbers as floats has 142.0 for 142."""
    text = str(doc["answer"])
    return text.removesuffix(".0") if isinstance(doc["answer"], float) else text


def judge(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """acc: the answer is right; so is none whose reference cannot be read. answered: some answer is stated."""
    (score,) = correct([prompt(doc)], [results[0]], [answer(doc)])
    return {"acc": score or 0.0, "answered": float(states_answer(results[0]))}
