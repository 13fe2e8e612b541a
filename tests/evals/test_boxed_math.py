"""Problems with an answer in a box: what the task asks and how it judges."""

import importlib.util

import pytest

from evals.task_index import OWN_TASKS

spec = importlib.util.spec_from_file_location("boxed_math", OWN_TASKS / "boxed_math" / "boxed_math.py")
assert spec is not None and spec.loader is not None
boxed_math = importlib.util.module_from_spec(spec)
spec.loader.exec_module(boxed_math)


def test_the_prompt_asks_for_a_box() -> None:
    assert boxed_math.prompt({"problem": "1+1?"}) == "1+1?\nPut your final answer within \\boxed{}.\n"


@pytest.mark.parametrize(
    ("answer", "expected"), [(142.0, "142"), ("142.0", "142.0"), (7, "7"), ("\\frac12", "\\frac12")]
)
def test_references_of_all_sets(answer: object, expected: str) -> None:
    assert boxed_math.answer({"answer": answer}) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("so \\boxed{142}", {"acc": 1.0, "answered": 1.0}),
        ("so \\boxed{141}", {"acc": 0.0, "answered": 1.0}),
        ("so 142", {"acc": 0.0, "answered": 0.0}),
    ],
)
def test_what_is_right_and_what_is_answered(response: str, expected: dict[str, float]) -> None:
    assert boxed_math.judge({"problem": "?", "answer": 142.0}, [response]) == expected
