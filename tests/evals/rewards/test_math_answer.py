"""Answers of mathematics: where they stand, what is equal, references of GSM8K, text that would hold a training up."""

import json
import math
import os
import threading
from pathlib import Path

import pytest

from evals.rewards import math_answer
from evals.rewards.math_answer import agree, binary, correct, last_boxed, stated, states_answer


def box(text: str) -> str:
    return rf"So it is \boxed{{{text}}}."


def score(response: str, reference: str) -> float | None:
    return correct([""], [response], [reference])[0]


# Where the answer stands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "inside"), [
    (r"\boxed{42}", "42"),
    (r"\boxed{1} and \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{4} then \boxed{5", "4"),
    (r"{ \boxed {7}", "7"),
    (r"} \boxed{7}", "7"),
    (r"\boxed{\boxed{3}}", "3"),
    (r"a \\ \boxed{2 \\ 3}", r"2 \\ 3"),
    (r"\boxed{", None),
    ("42", None),
])  # fmt: skip
def test_the_last_box_that_is_closed(text, inside) -> None:
    assert last_boxed(text) == inside


@pytest.mark.parametrize(("text", "answer"), [
    (r"#### 7 but \boxed{8}", "8"),
    ("<answer> 8 </answer> #### 7", "8"),
    ("<answer>1</answer><answer>2</answer>", "2"),
    ("</answer>#### 7", "7"),
    ("#### 5\nno\n#### 6\nmore", "6"),
    ("The answer is 6. More.\n", "6. More."),
    ("ANSWER:\n\n 7", "7"),
    ("the final answer is: 3", "3"),
    ("#### ", ""),
    ("my answers are 4", None),
    ("42", None),
])  # fmt: skip
def test_the_answer_of_a_text(text, answer) -> None:
    assert stated(text) == answer


# Right and wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("response", "reference"), [
    (box("42"), "16 - 3 = <<16-3=13>>13\n#### 42"),
    ("#### 1,234", "1234"),
    (box("1,234"), "#### 1,234"),
    ("The answer is $1,234 dollars.", "1234"),
    ("The answer is **-$5**.", "-5"),
    ("The answer is 5 apples, since 3 + 2 = 5 and 9 > 5.", "5"),
    (r"The final answer is: $\boxed{7}$.", "7"),
    (r"answer is \(3\).", "3"),
    (r"<think>no</think> <answer> $\frac{1}{2}$ </answer>", "0.5"),
    (box("18.00"), "18"),
    (box("0.5"), r"\frac12"),
    (box(r"\frac{2}{4}"), r"$\frac{1}{2}$"),
    (box("0.3333333"), "0.333333333"),
    (box("2x+2"), "2(x+1)"),
    (box(r"\{1, 2\}"), r"\{2, 1\}"),
    (box(r"(3, \frac{\pi}{2})"), r"\left( 3, \frac{\pi}{2} \right)"),
    (box(r"\text{Evelyn}"), r"\text{Evelyn}"),
    (box("B"), "B"),
    (box("x=5"), "5"),
    (box(r"50\%"), "50"),
    (box("0.5"), r"50\%"),
    ("#### 50%", r"50\%"),
    (box("2^{2024}"), "2^{2024}"),
    (box("5^{2^3}"), "390625"),
    (box("3"), r"Hence $x = 3$, so \boxed{3}."),
])  # fmt: skip
def test_right(response, reference) -> None:
    assert score(response, reference) == 1


@pytest.mark.parametrize(("response", "reference"), [
    ("42", "42"),  # states no answer
    ("", "42"),
    (box(""), "42"),
    ("####", "42"),
    (r"\boxed{42", "42"),  # cut off
    (box("43"), "42"),
    (box("42") + box("43"), "42"),
    (box("A"), "B"),
    (box("(1, 2)"), "(2, 1)"),
    (box("0.33"), "1/3"),
    (box("x+1"), "x+2"),
    (box("2^{2024}+1"), "2^{2024}"),
    (box("???"), "42"),
    (box("42"), "???"),
])  # fmt: skip
def test_wrong(response, reference) -> None:
    assert score(response, reference) == 0


@pytest.mark.parametrize("reference", ["", "  ", "####", r"\boxed{}", "7" * 501, "no number here\n#### \n"])
def test_a_reference_that_cannot_be_read(reference) -> None:
    assert score(box("42"), reference) is None
    assert score("", reference) is None


def test_in_order_and_on_another_scale() -> None:
    prompts, responses, answers = ["?"] * 3, [box("1"), box("2"), box("3")], ["1", "1", ""]
    assert correct(prompts, responses, answers) == [1, 0, None]
    assert binary(prompts, responses, answers) == [1, 0, None]
    assert binary(prompts, responses, answers, wrong=-1) == [1, -1, None]
    assert binary(prompts, responses, answers, right=2, wrong=0.5) == [2, 0.5, None]


@pytest.mark.parametrize(("options", "said"), [
    ({"right": math.inf}, "right=inf: must be finite"),
    ({"wrong": math.nan}, "wrong=nan: must be finite"),
    ({"right": 0.0}, "right=0.0: must be above wrong=0.0"),
])  # fmt: skip
def test_scales_that_make_no_sense(options, said) -> None:
    with pytest.raises(ValueError, match=said):
        binary(["?"], [box("1")], ["1"], **options)


def test_answers_of_two_responses() -> None:
    assert agree(box("0.5"), r"#### 1/2")
    assert not agree(box("1"), box("2"))
    assert not agree("nothing", "nothing")
    assert states_answer(box("x + 1")) and states_answer("#### 5")
    assert not any(map(states_answer, ["", "5", box("???"), box(""), "#### none"]))


def test_in_boxes_as_trl_decides() -> None:
    theirs = pytest.importorskip("trl.rewards").accuracy_reward
    insides = ["1/2", "0.5", r"\frac{1}{2}", "2x+2", "2(x+1)", "3,4", "4,3", r"\sqrt{8}", r"2\sqrt{2}", "1,000", "1000"]
    pairs = [(box(mine), rf"\boxed{{{gold}}}") for mine in insides for gold in insides]
    responses, answers = zip(*pairs, strict=True)
    expected = theirs([[{"content": response}] for response in responses], solution=list(answers))
    assert correct(responses, responses, answers) == expected


@pytest.mark.skipif("RETABLE_DATA" not in os.environ, reason="RETABLE_DATA does not say where the real data is")
def test_solutions_of_gsm8k() -> None:
    path = Path(os.environ["RETABLE_DATA"]) / "gsm8k" / "test.jsonl"
    solutions = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    finals = [solution.split("####")[1].strip() for solution in solutions]
    more = [str(int(final.replace(",", "")) + 1) for final in finals]
    assert len(solutions) == 1319
    assert set(correct(solutions, solutions, solutions)) == {1}
    assert set(correct(solutions, [box(final) for final in finals], solutions)) == {1}
    assert set(correct(solutions, [f"The answer is ${final}." for final in finals], solutions)) == {1}
    assert set(correct(solutions, [box(other) for other in more], solutions)) == {0}


# Hostile text ------------------------------------------------------------------------------------------------


@pytest.fixture
def one_second(monkeypatch):
    """A fresh process, and the shortest limit that the kernel knows."""
    monkeypatch.setattr(math_answer, "CPU_SECONDS", 1)
    monkeypatch.setattr(math_answer, "_verifier", math_answer._Verifier())
    yield math_answer._verifier
    math_answer._verifier.stop()


DEEP = 10**5


@pytest.mark.timeout(60)
@pytest.mark.parametrize("inside", [
    "9^{9^{9^{9^9}}}", "9^{9^9}", "10^{100000000}", "2^{-99999999}", "99999999!", "(1+x)^{1000000}",
    "(" * DEEP + "1" + ")" * DEEP, "(" * 100 + "1" + ")" * 100, "{" * 13 + "1" + "}" * 13, "7" * DEEP,
    r"\boxed{" * DEEP,
])  # fmt: skip
def test_what_is_not_even_tried(inside) -> None:
    """In the shared process, which lives on: nothing of this makes it end."""
    assert score(box("1"), "1") == 1
    before = math_answer._verifier._process
    assert score(box(inside), "1") == 0
    assert score(f"#### {inside}", "1") == 0
    assert score("(" * DEEP, "1") == 0
    assert score(box("2"), "2") == 1
    assert math_answer._verifier._process is before


def test_what_is_too_large_is_compared_as_text() -> None:
    assert score(box("9^{9^{9^9}}"), "9^{9^{9^9}}") == 1
    assert score(box("9^{9^{9^9}}"), "9^{9^{9^8}}") == 0


@pytest.mark.timeout(120)
def test_what_takes_too_long_is_wrong_and_the_next_comparison_goes_on(one_second) -> None:
    assert score(box("1"), "1") == 1
    before = one_second._process
    assert score(box(r"\sum_{k=1}^{10000000} k^{1/3}"), "1") == 0
    assert before.poll() is not None  # the kernel ended it
    assert score(box("3"), "3") == 1
    assert one_second._process is not before
    # A reference of that kind is no reference, and what was decided is not tried again.
    assert score(box(r"\sum_{k=1}^{10000000} k^{1/3}"), "1") == 0
    assert one_second._process.poll() is None


def test_in_another_thread() -> None:
    """Signals would not work there."""
    found = []
    thread = threading.Thread(target=lambda: found.append(score(box("1/2"), "0.5")))
    thread.start()
    thread.join()
    assert found == [1]


def test_a_process_that_was_killed_is_started_again(one_second) -> None:
    assert score(box("1"), "1") == 1
    one_second._process.kill()
    one_second._process.wait()
    assert score(box("2"), "2") == 1


def test_a_forked_process_has_one_of_its_own() -> None:
    assert score(box("1"), "1") == 1
    child = os.fork()
    if child == 0:
        os._exit(0 if score(box("17/2"), "8.5") == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert score(box("19/2"), "9.5") == 1


def test_without_math_verify(one_second, monkeypatch) -> None:
    monkeypatch.setattr(math_answer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="math-verify is not installed"):
        score(box("1"), "1")
