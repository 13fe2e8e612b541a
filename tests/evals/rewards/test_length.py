"""Rewards with the length in them: known answers, what they do not depend on, bad input."""

import math

import pytest

from evals.rewards.length import correctness, curve, format_length, format_only, linear_penalty, soft_overlong

BOTH = r"<think>a</think> \boxed{4}"
ONLY_THINKING = "<think>a</think> four"
ONLY_ANSWER = r"\boxed{4}"
NEITHER = "four"
RESPONSES = [BOTH, ONLY_THINKING, ONLY_ANSWER, NEITHER]
PROMPTS = ["2 + 2?"] * 4


# Soft overlong punishment ------------------------------------------------------------------------------------


def test_soft_overlong_at_the_papers_limits() -> None:
    tokens = [0, 1, 16384, 18432, 20480, 20481, 10**6]
    assert soft_overlong([""] * 7, [""] * 7, tokens) == [0, 0, 0, -0.5, -1, -1, -1]


def test_soft_overlong_with_other_limits() -> None:
    assert soft_overlong("????", "????", [3, 4, 6, 8], most=8, cache=4) == [0, 0, -0.5, -1]
    assert soft_overlong("??", "??", [4, 5], most=5, cache=1) == [0, -1]


def test_soft_overlong_is_that_of_trl() -> None:
    theirs = pytest.importorskip("trl.rewards").get_soft_overlong_punishment(100, 20)
    tokens = list(range(0, 130))
    assert soft_overlong(tokens, tokens, tokens, most=100, cache=20) == theirs([[0] * n for n in tokens])


# The curve ---------------------------------------------------------------------------------------------------


def test_the_curve() -> None:
    assert [curve(x) for x in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.75, 1, 0.5, -1]
    assert [curve(x, 0.25) for x in (0, 0.125, 0.25, 0.625, 1)] == [0, 0.75, 1, 0.5, -1]


@pytest.mark.parametrize("peak", [0.2, 0.5, 0.9])
def test_the_curve_has_slope_zero_on_both_sides_of_its_peak(peak) -> None:
    step = 1e-6
    assert (curve(peak, peak) - curve(peak - step, peak)) / step == pytest.approx(0, abs=1e-3)
    assert (curve(peak + step, peak) - curve(peak, peak)) / step == pytest.approx(0, abs=1e-3)


# Format and length -------------------------------------------------------------------------------------------


def test_the_baseline_with_references() -> None:
    assert correctness(PROMPTS, RESPONSES, ["4"] * 4) == [1.5, 0.5, 1, 0]
    assert correctness(PROMPTS, RESPONSES, ["5"] * 4) == [0.5, 0.5, 0, 0]
    assert correctness(PROMPTS, RESPONSES, ["4"] * 4, think=False) == [1, 0, 1, 0]
    assert correctness(PROMPTS, RESPONSES, ["4", "", "", ""]) == [1.5, None, None, None]
    assert correctness("??", ["4", "5"], ["4", "4"], checker="exact") == [1, 0]


def test_format_only() -> None:
    assert format_only(PROMPTS, RESPONSES) == [1, 0.5, 0.5, 0]
    assert format_only(PROMPTS, RESPONSES, think=False) == [1, 0, 1, 0]


@pytest.mark.parametrize(("response", "tokens", "expected"), [
    (BOTH, 1536, 2),
    (BOTH, 768, 1.75),
    (BOTH, 3072, 0),
    (ONLY_ANSWER, 1536, 1.5),
    (NEITHER, 768, 0),
    (NEITHER, 3072, -1),
    (ONLY_THINKING, 3072, -1),
    (ONLY_THINKING, 1536, 0),
    (NEITHER, 5000, -1),
])  # fmt: skip
def test_format_and_length(response, tokens, expected) -> None:
    assert format_length(["?"], [response], [tokens]) == [expected]


def test_format_and_length_with_other_limits() -> None:
    assert format_length("??", [ONLY_ANSWER, NEITHER], [2, 8], most_tokens=8, peak=0.25, think=False) == [2, -1]


# Linear ------------------------------------------------------------------------------------------------------


def test_linear_penalty() -> None:
    tokens = [4096, 4096, 0, 10**6]
    answers = ["4", "4", "4", ""]
    assert linear_penalty(PROMPTS, RESPONSES, answers, tokens) == [0.75, 0, 1, None]
    assert linear_penalty("???", ["4"] * 3, ["4"] * 3, [2, 4, 9], weight=1, most_tokens=8, checker="exact") == [
        0.75,
        0.5,
        0,
    ]
    assert linear_penalty("?", ["4"], ["4"], [8], weight=0, most_tokens=8, checker="exact") == [1]
    assert linear_penalty("?", ["#### 10.5"], ["10"], [4], most_tokens=8, checker="graded") == [
        pytest.approx(0.725 * 0.75)
    ]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: soft_overlong("?", "?", [1], most=4, cache=5), "cache=5: must be from 1 to most=4"),
        (lambda: soft_overlong("?", "?", [1], cache=0), "cache=0: must be from 1"),
        (lambda: curve(1.1), "x=1.1: must be from 0 to 1"),
        (lambda: curve(math.nan), "x=nan: must be from 0 to 1"),
        (lambda: format_length("?", "?", [1], peak=1.0), "peak=1.0: must be above 0 and below 1"),
        (lambda: format_length("?", "?", [1], most_tokens=0), "most_tokens=0: must be at least 1"),
        (lambda: linear_penalty("?", "?", "?", [1], weight=-1), "weight=-1: must be a finite number >= 0"),
        (lambda: linear_penalty("?", "?", "?", [1], weight=math.nan), "weight=nan: must be a finite number"),
        (
            lambda: linear_penalty("?", "?", "?", [1], checker="code"),
            "checker=code: must be one of math, exact, graded",
        ),
        (lambda: correctness("?", "?", "?", checker=""), "checker=: must be one of math, exact, graded"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said) -> None:
    with pytest.raises(ValueError, match=said):
        call()
