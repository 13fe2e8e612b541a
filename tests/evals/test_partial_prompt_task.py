"""The first part of a question, as a task: what a model sees, and what its continuation is worth."""

import importlib.util

import pytest

from evals.problem_world import rows
from evals.task_index import OWN_TASKS

spec = importlib.util.spec_from_file_location("partial_prompt_task", OWN_TASKS / "partial_prompt" / "partial_prompt.py")
assert spec is not None and spec.loader is not None
task = importlib.util.module_from_spec(spec)
spec.loader.exec_module(task)


@pytest.mark.parametrize(
    ("cut", "head", "tail"), [("80", "01234567", "89"), ("60", "012345", "6789"), ("40", "0123", "456789")]
)
@pytest.mark.parametrize("column", ["problem", "question"])
def test_a_question_is_cut(column: str, cut: str, head: str, tail: str) -> None:
    from datasets import Dataset

    (doc,) = getattr(task, f"first_{cut}")(Dataset.from_list([{column: "0123456789", "answer": "1"}]))
    assert (doc["head"], doc["tail"]) == (head, tail)


def test_one_continuation_is_judged_twice() -> None:
    doc = {"head": "What is the sum of", "tail": " 1 and 2?", "answer": "3"}
    known = task.judge(doc, [" 1 and 2? It is \\boxed{3}."])
    assert known == {"exact_match": 1.0, "rouge_l": 1.0, "acc": 1.0}
    guessed = task.judge(doc, [" 1 and 5? It is \\boxed{6}."])
    assert guessed["exact_match"] == guessed["acc"] == 0.0 and guessed["rouge_l"] == pytest.approx(2 / 3)


def test_additions_are_those_of_the_world() -> None:
    asked = {"skill": "addition_demonstrations", "split": "test", "count": 5, "seed": 0}
    options = {"right": 1.0, "worked": 0.0}
    whole, part = (task.additions(**asked, options=options, fraction=cut)["items"] for cut in (None, 0.6))
    expected = rows("addition_demonstrations", "test", 5, 0, **options)
    assert [doc["head"] for doc in whole] == [row["prompt"] for row in expected]
    assert all(len(doc["head"]) == 3 and doc["head"] + doc["tail"] == doc["prompt"] for doc in part)
    assert "tail" not in whole.column_names


def test_additions_are_judged_by_their_mark() -> None:
    part = {"head": "47+", "tail": "38=", "answer": "#85"}
    assert task.judge_addition(part, ["38=15,08,#85"]) == {"exact_match": 1.0, "acc": 1.0}
    assert task.judge_addition(part, ["11=#58"]) == {"exact_match": 0.0, "acc": 0.0}
    assert task.judge_addition({"head": "47+38=", "answer": "85"}, ["#85"]) == {"acc": 1.0}
