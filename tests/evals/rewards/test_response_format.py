"""Forms of responses; `think` is the same as TRL's where that is installed."""

import itertools

import pytest

from evals.rewards import response_format
from evals.rewards.response_format import boxed, has_thinking, matches, think, think_answer


@pytest.mark.parametrize(("response", "expected"), [
    ("<think>a</think>b", 1),
    ("<think>\na\n</think>\n\nb\n", 1),
    ("<think></think>", 1),
    ("<think>a</think>b</think>", 1),
    (" <think>a</think>b", 0),
    ("b<think>a</think>", 0),
    ("<think>a<think>b</think>", 0),
    ("<think>a</think><think>b</think>", 0),
    ("<think>a", 0),
    ("</think><think>", 0),
    ("", 0),
])  # fmt: skip
def test_think(response, expected) -> None:
    assert think(["?"], [response]) == [expected]


def test_think_is_that_of_trl() -> None:
    theirs = pytest.importorskip("trl.rewards").think_format_reward
    pieces = ["<think>", "</think>", "a", "\n"]
    texts = ["".join(drawn) for length in range(6) for drawn in itertools.product(pieces, repeat=length)]
    assert think(texts, texts) == theirs([[{"content": text}] for text in texts])


@pytest.mark.parametrize(("response", "expected"), [
    ("<think>a</think><answer>b</answer>", 1),
    ("<think>a</think>\n <answer>\nb</answer>\n", 1),
    ("<think>a</think>c<answer>b</answer>", 0),
    ("<think>a</think><answer>b</answer>c", 0),
    ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
    ("<think>a</think><answer>b", 0),
    ("<think>a</think>b", 0),
    ("<answer>b</answer>", 0),
    ("<think>a</think><think>a</think><answer>b</answer>", 0),
    ("<think><answer>a</answer></think>", 0),
])  # fmt: skip
def test_think_and_answer(response, expected) -> None:
    assert think_answer(["?"], [response]) == [expected]


def test_boxed() -> None:
    assert boxed("????", [r"\boxed{4}", r"\boxed{ }", r"\boxed{4", "4"]) == [1, 0, 0, 0]


def test_any_pattern() -> None:
    assert matches("??", ["<think>a\n</think>b", " <think></think>"]) == [1, 0]
    assert matches("???", ["a=1\nb", "1=a", ""], pattern=r"=\d+.b$") == [1, 0, 0]
    with pytest.raises(ValueError, match=r"pattern=\(: must be a regular expression"):
        matches("?", [""], pattern="(")


def test_thinking_anywhere() -> None:
    texts = ["x<think>a</think>", "<think><think></think>", "</think><think>", "<think>", ""]
    assert list(map(has_thinking, texts)) == [True, True, False, False, False]


@pytest.mark.timeout(20)
def test_long_hostile_text() -> None:
    text = "<think>" + "</think><answer>" * 10**5
    for reward in (think, think_answer, boxed):
        assert reward(["?"], [text]) == [float(reward is think)]
    assert not response_format.has_thinking("<think>" * 10**5)
