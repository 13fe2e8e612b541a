"""Rewards that do not say what is right: draws, the inverted reward, majorities, ties and dropped prompts."""

import statistics

import pytest

from evals.rewards import spurious
from evals.rewards.math_answer import correct
from evals.rewards.spurious import inverted, majority_incorrect, majority_vote, uniform


def boxes(*answers: str) -> list[str]:
    return [rf"\boxed{{{answer}}}" if answer else "no idea" for answer in answers]


# Chance ------------------------------------------------------------------------------------------------------


def test_draws_repeat_and_depend_on_seed_and_position_alone() -> None:
    texts = [str(n) for n in range(4000)]
    drawn = spurious.random(texts, texts, 7)
    assert drawn == spurious.random(texts, [""] * 4000, 7)
    assert drawn[:10] == spurious.random(texts[:10], texts[:10], 7)
    assert drawn != spurious.random(texts, texts, 8)
    assert set(drawn) == {0, 1}
    assert sum(drawn) == pytest.approx(2000, abs=4 * 4000**0.5 / 2)
    assert sum(spurious.random(texts, texts, 7, probability=0.1)) == pytest.approx(400, abs=4 * (4000 * 0.09) ** 0.5)
    assert set(spurious.random(texts, texts, 7, probability=0)) == {0}
    assert set(spurious.random(texts, texts, 7, probability=1)) == {1}


def test_the_draws_of_a_seed() -> None:
    """On every machine and under every hash seed."""
    assert uniform("???", "???", 0) == pytest.approx([0.69031202, 0.15263372, 0.71299102], abs=5e-9)
    assert spurious.random("???", "???", 0) == [float(drawn < 0.5) for drawn in uniform("???", "???", 0)]


def test_uniform_draws() -> None:
    drawn = uniform([""] * 4000, [""] * 4000, 1)
    assert all(0 <= one < 1 for one in drawn)
    assert statistics.fmean(drawn) == pytest.approx(0.5, abs=4 / (12 * 4000) ** 0.5)


# Inverted ----------------------------------------------------------------------------------------------------


def test_inverted_gives_the_opposite_advantages() -> None:
    responses, answers = boxes("1", "2", "", "1"), ["1"] * 4
    right, wrong = correct(responses, responses, answers), inverted(responses, responses, answers)
    assert wrong == [0, 1, 1, 0]

    def advantages(rewards):
        mean, deviation = statistics.fmean(rewards), statistics.stdev(rewards)
        return [(reward - mean) / (deviation + 1e-4) for reward in rewards]

    assert advantages(wrong) == pytest.approx([-advantage for advantage in advantages(right)])


def test_inverted_by_other_checkers() -> None:
    assert inverted("??", ["a", "b"], ["a", ""], checker="exact") == [0, None]
    assert inverted("?", boxes("10.5"), ["10"], checker="graded") == [pytest.approx(0.275)]


# Majorities --------------------------------------------------------------------------------------------------


def test_majorities_by_group() -> None:
    responses = boxes("1/2", "3", "0.5", "3", r"\frac{2}{4}", "4", "")
    groups = [0, 1, 0, 1, 0, 1, 0]
    assert majority_vote(responses, responses, groups) == [1, 1, 1, 1, 1, 0, 0]
    # As text 1/2, 0.5 and 2/4 are three answers of one vote each: the first is taken.
    assert majority_vote(responses, responses, groups, checker="exact") == [1, 1, 0, 1, 0, 0, 0]


def test_of_equal_votes_the_answer_given_first_wins() -> None:
    assert majority_vote("????", boxes("1", "2", "2", "1"), [5] * 4) == [1, 0, 0, 1]
    assert majority_vote("????", boxes("2", "1", "1", "2"), [5] * 4) == [1, 0, 0, 1]
    assert majority_vote("????", boxes("", "2", "1", ""), [5] * 4) == [0, 1, 0, 0]


def test_nobody_votes() -> None:
    assert majority_vote("??", boxes("", ""), [0, 0]) == [0, 0]
    assert majority_vote("??", [" ", ""], [0, 0], checker="exact") == [0, 0]
    assert majority_incorrect("??", boxes("", ""), ["1", "1"], [0, 0]) == [None, None]
    assert majority_vote([], [], []) == []


def test_a_wrong_majority_is_rewarded_and_a_right_one_dropped() -> None:
    responses = boxes("2", "9", "2", "1", "9", "2", "1", "2")
    answers = ["1", "9", "1", "1", "9", "1", "", ""]
    groups = [0, 1, 0, 0, 1, 0, 2, 2]
    expected = [1, None, 1, 0, None, 1, None, None]  # group 1 is right, the reference of group 2 cannot be read
    assert majority_incorrect(responses, responses, answers, groups) == expected
    words = ["a", "a", "b"]
    assert majority_incorrect("???", words, ["b"] * 3, [0] * 3, checker="exact") == [1, 1, 0]
    assert majority_incorrect("???", words, ["a"] * 3, [0] * 3, checker="exact") == [None] * 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: spurious.random("?", "?", 0, probability=1.5), "probability=1.5: must be from 0 to 1"),
        (lambda: spurious.random("?", "?", 0, probability=float("nan")), "probability=nan: must be from 0 to 1"),
        (lambda: inverted("?", "?", "?", checker="maths"), "checker=maths: must be one of math, exact, graded"),
        (lambda: majority_vote("?", "?", [0], checker="graded"), "checker=graded: must be math, exact or mark"),
        (lambda: majority_incorrect("?", "?", "?", [0], checker="no"), "checker=no: must be math, exact or mark"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said) -> None:
    with pytest.raises(ValueError, match=said):
        call()
