"""The checker of generated problems, beside those that the rewards' own tests use."""

import pytest

from evals.rewards import checker
from evals.rewards.length import correctness, format_length, format_only
from evals.rewards.spurious import inverted, majority_incorrect, majority_vote

RESPONSES = ["15,08,#85", "#85", "#84", "85", "#085"]


def test_the_number_after_the_mark_is_the_answer() -> None:
    assert checker.scores("mark", ["?"] * 5, RESPONSES, ["85", "15,08,#85", "85", "85", "85"]) == [1, 1, 0, 0, 0]
    assert [checker.states_answer("mark", response) for response in RESPONSES] == [True, True, True, False, False]
    assert checker.agree("mark", RESPONSES[0], RESPONSES[1])
    assert not checker.agree("mark", RESPONSES[0], RESPONSES[2])
    assert not checker.agree("mark", RESPONSES[3], RESPONSES[3])  # no answer agrees with nothing


def test_rewards_take_it() -> None:
    prompts, answers = ["?"] * 5, ["85"] * 5
    assert correctness(prompts, RESPONSES, answers, think=False, checker="mark") == [1, 1, 0, 0, 0]
    assert format_only(prompts, RESPONSES, think=False, checker="mark") == [1, 1, 1, 0, 0]
    # len(x) of 16 and 4 of 32 tokens: 1 and 1 - (1 - 1/4)^2
    assert format_length(prompts, RESPONSES, [16, 4, 32, 16, 32], most_tokens=32, think=False, checker="mark") == [
        2,
        1.4375,
        0,
        0,
        -1,
    ]
    assert inverted(prompts, RESPONSES, answers, checker="mark") == [0, 0, 1, 1, 1]
    assert majority_vote(prompts, RESPONSES, [0] * 5, checker="mark") == [1, 1, 0, 0, 0]
    assert majority_incorrect(prompts, RESPONSES, ["84"] * 5, [0] * 5, checker="mark") == [1, 1, 0, 0, 0]
    assert majority_incorrect(prompts, RESPONSES, answers, [0] * 5, checker="mark") == [None] * 5


def test_what_has_no_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="checker=graded: must be math, exact or mark"):
        format_only(["?"], ["#85"], checker="graded")
