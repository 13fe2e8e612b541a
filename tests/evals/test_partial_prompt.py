"""The probes of contamination: cuts, exact match and ROUGE-L of tails, answers."""

import math

import pytest

from evals.partial_prompt import FRACTIONS, answer_accuracy, completion, cut, exact_match, rouge_l
from evals.random_calculation import rows

QUESTION = "How many eggs are left when three of twelve are eaten?"


@pytest.mark.parametrize(("question", "fraction", "parts"), [
    ("0123456789", 0.8, ("01234567", "89")),
    ("0123456789", 0.6, ("012345", "6789")),
    ("01234", 0.4, ("01", "234")),
    ("012", 0.4, ("0", "12")),
    ("ab cd", 0.4, ("ab", " cd")),
])  # fmt: skip
def test_cuts(question, fraction, parts) -> None:
    assert cut(question, fraction) == parts


def test_a_fraction_is_what_is_written() -> None:
    assert len(cut("x" * 100, 0.29)[0]) == 29  # 0.29 * 100 is 28.999999999999996


@pytest.mark.parametrize(("continuation", "tail", "same"), [
    ("four eggs", "four eggs", True),
    ("four eggs and on", "four eggs", True),
    (" four\n eggs and", "four  eggs ", True),
    ("four egg", "four eggs", False),
    ("Four eggs", "four eggs", False),
    ("", "four", False),
])  # fmt: skip
def test_exact_match(continuation, tail, same) -> None:
    assert exact_match(continuation, tail) is same


def longest_common(one: list[str], other: list[str]) -> int:
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return longest_common(one[:-1], other[:-1]) + 1
    return max(longest_common(one[:-1], other), longest_common(one, other[:-1]))


@pytest.mark.parametrize(("continuation", "tail"), [
    ("a b c d", "a b c d"),
    ("b a c d", "a b c d"),
    ("a x c", "a b c d e"),
    ("x y", "a b"),
    ("", "a b"),
])  # fmt: skip
def test_rouge_l_is_f1_of_the_longest_common_subsequence(continuation, tail) -> None:
    mine, gold = continuation.split(), tail.split()
    common = longest_common(mine, gold)
    expected = 2 * common / (len(mine) + len(gold))  # 2PR/(P+R) with P = common/mine, R = common/gold
    assert rouge_l(continuation, tail) == pytest.approx(expected)


def test_rouge_l_sees_no_more_than_the_length_of_the_tail() -> None:
    assert rouge_l("a b c d e f g", "a b c") == 1
    assert rouge_l("A, B! c", "a b c d") == pytest.approx(6 / 7)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_model_that_knows_the_set_and_one_that_does_not(fraction) -> None:
    questions = [row["prompt"] for row in rows(5, 20)]
    tails = [cut(question, fraction)[1] for question in questions]
    assert completion(questions, [tail + " and more" for tail in tails], fraction) == (1, 1)
    others = [cut(row["prompt"], fraction)[1] for row in rows(5, 20, seed=1)]
    fresh = completion(questions, others, fraction)
    assert fresh.exact_match == 0 and 0 < fresh.rouge_l < 1


def test_means_over_questions() -> None:
    tail = cut(QUESTION, 0.6)[1]
    assert completion([QUESTION] * 4, [tail, "", tail, "zzz"], 0.6) == (0.5, 0.5)


def test_answers() -> None:
    given = [r"... \boxed{9}", "nothing", "#### 9.0", r"\boxed{9}"]
    assert answer_accuracy(given, ["so\n#### 9", "9", "9", ""]) == pytest.approx(2 / 3)
    assert math.isnan(answer_accuracy(given[:1], [""]))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: cut(QUESTION, 1.0), "fraction=1.0: must be above 0 and below 1"),
        (lambda: cut(QUESTION, math.nan), "fraction=nan: must be above 0 and below 1"),
        (lambda: cut("a", 0.8), "question='a': must be longer to be cut at 0.8"),
        (lambda: cut("abcd      ", 0.4), "must be longer"),
        (lambda: completion([], [], 0.8), "questions=0: must be at least one"),
        (lambda: completion([QUESTION], [], 0.8), "questions=1: must be .* as many as the other texts, 0"),
        (lambda: answer_accuracy(["a"], ["1", "2"]), "continuations=1: must be .* as many as the other texts, 2"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said) -> None:
    with pytest.raises(ValueError, match=said):
        call()
