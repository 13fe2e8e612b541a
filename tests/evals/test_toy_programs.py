"""The toy language: what its programs compute, its errors, its unit tests and what they say."""

import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from evals import mini_world, preference_world, problem_world, toy_programs
from evals.rewards.graded import Graded
from evals.toy_programs import MODULUS, SKILLS, ProgramError, reward, rows, values

MANY = 3000
DIGITS = "0123456789A"
# f(x) = 3x+3: f(2) = 9 is shown, f(3) = 12 = 1.
ANSWER = json.dumps({"tests": {"3": "1", "4": "4", "5": "7", "6": "A"}, "held_out": {"7": "2", "8": "5"}})


def within(count: int, share: float, total: int = MANY) -> bool:
    """Whether a count fits a share, within four standard errors."""
    return abs(count - share * total) <= 4 * (share * (1 - share) * total) ** 0.5


def agreeing(points: list[tuple[str, str]]) -> list[str]:
    """By brute force, the functions ax+b (a from 1 to A) that go through all points, as programs."""
    found = []
    for a, b in itertools.product(range(1, MODULUS), range(MODULUS)):
        if all((a * DIGITS.index(x) + b) % MODULUS == DIGITS.index(value) for x, value in points):
            found.append(f"{DIGITS[a]}x+{DIGITS[b]}")
    return found


def same(program: str, *others: str) -> bool:
    """Whether a program computes what one of others does."""
    return any(values(program) == values(other) for other in others)


def shown(prompt: str) -> tuple[str, str]:
    """The point of a prompt or a dialogue."""
    found = re.match(r"f\((.)\)=(.);", prompt)
    assert found
    return found[1], found[2]


# The language ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "formula"),
    [
        ("3x+7", lambda x: 3 * x + 7),
        ("x*3+7", lambda x: 3 * x + 7),
        ("x+x+x+7", lambda x: 3 * x + 7),
        ("7+3xx", lambda x: 7 + 3 * x * x),
        ("7+3x", lambda x: 3 * x + 7),
        ("Ax+A", lambda x: 10 * x + 10),
        ("x", lambda x: x),
        ("7~A", lambda x: 3 * x + 7),
        ("A~7", lambda x: 10 - 3 * x),
        ("5~5", lambda x: 5),
        ("2*7~A-x", lambda x: 2 * (3 * x + 7) - x),
        ("7~Ax+1", lambda x: (3 * x + 7) * x + 1),
        ("5", lambda x: 5),
        ("x-7", lambda x: x - 7),
        ("1-x-x", lambda x: 1 - 2 * x),
        ("2-3*x+4", lambda x: 2 - 3 * x + 4),
        ("xx", lambda x: x * x),
        ("xxx+2xx", lambda x: x**3 + 2 * x**2),
        ("2*3*4x", lambda x: 24 * x),
    ],
)
def test_what_a_program_computes(program: str, formula) -> None:
    assert values(program) == [formula(x) % 11 for x in range(11)]


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("", "syntax"),
        ("3x+", "syntax"),
        ("+3x", "syntax"),
        ("-x", "syntax"),
        ("3x++7", "syntax"),
        ("3x-*7", "syntax"),
        ("33", "syntax"),
        ("7~", "syntax"),
        ("~A", "syntax"),
        ("7~A~3", "syntax"),
        ("7~x", "syntax"),
        ("7~-A", "syntax"),
        ("37~A", "syntax"),
        ("x3", "syntax"),
        ("3**x", "syntax"),
        ("*", "syntax"),
        ("3y+7", "bad digit"),
        ("Bx+7", "bad digit"),
        ("ax+7", "bad digit"),
        ("3X+7", "bad digit"),
        ("３x+7", "bad digit"),
        ("3x/7", "bad operator"),
        ("3x+7;", "bad operator"),
        ("3x + 7", "bad operator"),
        ("3x+7\n", "bad operator"),
        ("(x)", "bad operator"),
        ("__impo", "bad operator"),
        ("x+x+x+x+x", "too long"),
        ("y" * 9, "too long"),
    ],
)
def test_errors_of_programs(program: str, error: str) -> None:
    with pytest.raises(ProgramError) as told:
        values(program)
    assert str(told.value) == error
    assert reward(["p"], [program], [ANSWER]) == [Graded(0.0, f"!{error};")]
    assert reward(["p"], [program], [ANSWER], held_out=True) == [Graded(0.0)]


def test_eight_signs_are_not_too_long() -> None:
    assert values("x+x+x+xx") == [(3 * x + x * x) % 11 for x in range(11)]


# Unit tests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "graded"),
    [
        ("3x+3", Graded(1.0)),
        ("x*3+3", Graded(1.0)),
        ("1x+7", Graded(0.0, "!3:1/A;")),
        ("1", Graded(0.25, "!4:4/1;")),
        ("2x+8", Graded(0.25, "!3:1/3;")),
        ("x-2", Graded(0.25, "!4:4/2;")),
        ("3x+3+0xx", Graded(1.0)),
    ],
)
def test_scores_and_feedback(program: str, graded: Graded) -> None:
    assert reward(["p"], [program], [ANSWER]) == [graded]


def test_points_that_feedback_never_shows() -> None:
    found = reward(["p"] * 3, ["3x+3", "2", "1x+7"], [ANSWER] * 3, held_out=True)
    assert found == [Graded(1.0), Graded(0.5), Graded(0.0)]


@pytest.mark.parametrize(
    "answer", ["", "3x+3", "[]", "{}", '{"tests": 3}', '{"tests": {"3": "B"}}', '{"tests": {"3": 1}}', "null"]
)
def test_an_answer_that_is_none(answer: str) -> None:
    with pytest.raises(ValueError) as error:
        reward(["p"], ["x"], [answer])
    assert str(error.value) == f"answer={answer}: must be JSON with tests, from x to f(x) in digits 0 to A"


def test_an_answer_without_tests() -> None:
    with pytest.raises(ValueError, match="tests must not be empty"):
        reward(["p"], ["x"], ['{"tests": {}}'])
    with pytest.raises(ValueError, match="must be JSON with held_out"):
        reward(["p"], ["x"], ['{"tests": {"1": "1"}}'], held_out=True)
    with pytest.raises(ValueError):
        reward(["p"], [], [ANSWER])


# Problems ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("few", [1, 2, 5, 11])
def test_one_point_leaves_ten_programs_and_one_failure_leaves_one(few: int) -> None:
    for row in rows("programs", "train", 60, 0, shown=few):
        answer = json.loads(row["answer"])
        assert len(answer["tests"]) == 4 and len(answer["held_out"]) == 6
        points = [shown(row["prompt"]), *answer["tests"].items(), *answer["held_out"].items()]
        assert sorted(x for x, _ in points) == list(DIGITS)
        assert DIGITS.index(points[0][0]) < few
        (right,) = agreeing(points)
        guesses = agreeing(points[:1])
        assert len(guesses) == 10 and right in guesses
        for guess, graded in zip(guesses, reward([""] * 10, guesses, [row["answer"]] * 10), strict=True):
            if guess == right:
                assert graded == Graded(1.0)
                continue
            assert graded.score == 0
            told = re.fullmatch("!(.):(.)/(.);", graded.feedback)
            assert told and values(guess)[DIGITS.index(told[1])] == DIGITS.index(told[3])
            assert (told[1], told[2]) == points[1], "the first test"
            assert agreeing([points[0], points[1]]) == [right]


def test_the_first_test_is_of_the_other_end_of_the_line() -> None:
    for row in rows("programs", "train", 100, 0):
        ends = dict([shown(row["prompt"]), next(iter(json.loads(row["answer"])["tests"].items()))])
        assert reward([""], [f"{ends['0']}~{ends['1']}"], [row["answer"]]) == [Graded(1.0)]


def test_a_failure_of_any_attempt_leaves_one_program() -> None:
    for row in rows("programs", "validation", 10, 0):
        right = agreeing(list(json.loads(row["answer"])["tests"].items()))
        for a, b in itertools.product(DIGITS, repeat=2):
            (graded,) = reward([""], [f"{a}x+{b}"], [row["answer"]])
            told = re.fullmatch("!(.):(.)/.;", graded.feedback)
            assert (told is None) == (graded.score == 1)
            if told:
                assert agreeing([shown(row["prompt"]), (told[1], told[2])]) == right


# Demonstrations ----------------------------------------------------------------------------------------------

_DIALOGUE = re.compile(r"f\(.\)=.;((?:[^!]+![^;]+;)*)")


def attempts(row: dict) -> list[tuple[str, str]]:
    """The attempts of a dialogue, each with its feedback."""
    found = _DIALOGUE.fullmatch(row["prompt"])
    assert found, row
    return re.findall(r"([^!]+)(![^;]+;)", found[1])


def test_first_attempts_agree_with_the_point_and_are_right_by_luck() -> None:
    drawn = rows("programs_demonstrations", "train", MANY, 0, dialogues=0, careless=0)
    assert all(same(row["answer"], *agreeing([shown(row["prompt"])])) and not attempts(row) for row in drawn)
    assert all(re.fullmatch("[0-9A]~[0-9A]", row["answer"]) for row in drawn)
    assert within(sum(row["right"] for row in drawn), 0.1)


def test_dialogues_have_their_shares() -> None:
    drawn = rows("programs_demonstrations", "train", MANY, 0)
    rounds = Counter(len(attempts(row)) for row in drawn)
    assert within(rounds[0], 0.5) and within(rounds[1], 0.25) and within(rounds[2], 0.25) and set(rounds) == {0, 1, 2}
    assert max(len(row["prompt"] + row["answer"]) for row in drawn) <= 96
    later = [row for row in drawn if attempts(row)]
    # Half for sure; of the others nine in ten are careful, of which one in ten is right, and a few more by luck.
    assert within(sum(row["right"] for row in later), 0.5 + 0.5 * (0.9 / 10 + 0.05 / 110), len(later))


@pytest.mark.parametrize("lines", [0.0, 1.0])
def test_feedback_of_dialogues_is_what_the_tests_say(lines: float) -> None:
    options = {"dialogues": 1, "corrected": 1, "careless": 0.5, "failures": 3, "lines": lines, "shown": 11}
    drawn = rows("programs_demonstrations", "train", 600, 0, **options)
    errors = Counter()
    for row in drawn:
        assert row["right"], "all are corrected"
        (right,) = agreeing([(x, DIGITS[value]) for x, value in zip(DIGITS, values(row["answer"]), strict=True)])
        assert right in agreeing([shown(row["prompt"])])
        assert ("~" in row["answer"]) == (lines == 1)
        x = DIGITS.index(shown(row["prompt"])[0])
        tests = {DIGITS[at % 11]: DIGITS[values(right)[at % 11]] for at in range(x + 1, x + 5)}
        for attempt, feedback in attempts(row):
            (graded,) = reward([""], [attempt], [json.dumps({"tests": tests})])
            assert graded.score < 1 and graded.feedback == feedback
            errors[feedback if feedback[2] != ":" else "test"] += 1
    assert set(errors) == {"test", "!syntax;", "!bad digit;", "!bad operator;", "!too long;"}


def test_corrections_in_no_share_are_luck() -> None:
    drawn = rows("programs_demonstrations", "train", MANY, 0, dialogues=1, corrected=0, careless=0)
    assert within(sum(row["right"] for row in drawn), 0.1)
    assert {row["prompt"].count("!") for row in drawn} == {1, 2}
    assert all(same(row["answer"], *agreeing([shown(row["prompt"])])) for row in drawn[:300])


# Splits and repetition ---------------------------------------------------------------------------------------


def test_splits_share_no_function_with_its_point() -> None:
    def problems(split: str, size: int) -> set[tuple[str, str]]:
        found = {(row["prompt"], row["answer"]) for row in rows("programs", split, size, 3, shown=11)}
        assert len(found) == size
        return found

    train, validation, test = problems("train", 1000), problems("validation", 50), problems("test", 45)
    assert not train & test and not train & validation and not validation & test
    asked = {(prompt, agreeing(list(json.loads(answer)["tests"].items()))[0]) for prompt, answer in test}
    options = {"dialogues": 1, "corrected": 1, "shown": 11, "lines": 0}
    drawn = rows("programs_demonstrations", "train", 4000, 0, **options)
    assert not asked & {(row["prompt"][:7], row["answer"]) for row in drawn}, "no correction gives a test away"


@pytest.mark.parametrize("skill", SKILLS)
def test_draws_repeat_and_fewer_are_the_first(skill: str) -> None:
    drawn = rows(skill, "train", 50, 1)
    assert rows(skill, "train", 50, 1) == drawn
    assert rows(skill, "train", 20, 1) == drawn[:20]
    assert rows(skill, "train", 50, 2) != drawn


def test_draws_are_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from evals import toy_programs as w\n"
        "drawn = [w.rows(skill, 'train', 30, 5) for skill in w.SKILLS]\n"
        "print(hashlib.sha256(repr(drawn).encode()).hexdigest())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = [rows(skill, "train", 30, 5) for skill in SKILLS]
    assert told == hashlib.sha256(repr(here).encode()).hexdigest()
    as_it_was = {"prompt": "f(1)=1;5~1!0:6/5;A~1!0:6/A;", "answer": "6~1", "right": True}
    assert rows("programs_demonstrations", "train", 5, 0)[4] == as_it_was, "when this was written"


@pytest.mark.parametrize(
    ("skill", "options", "message"),
    [
        ("programs", {"careless": 0.1}, "careless=0.1: programs has no such option; it has shown"),
        (
            "programs_demonstrations",
            {"correct": 0.1},
            "correct=0.1: programs_demonstrations has no such option (nearest",
        ),
        ("programs_demonstrations", {"corrected": 1.5}, "corrected=1.5: must be a number between 0 and 1"),
        ("programs", {"shown": 12}, "shown=12: must be a whole number from 1 to 11"),
        ("programs_demonstrations", {"failures": 0}, "failures=0: must be a whole number from 1 to 4"),
    ],
)
def test_options_out_of_range(skill: str, options: dict, message: str) -> None:
    for refuse in (lambda: toy_programs.check_options(skill, options), lambda: rows(skill, "train", 5, 0, **options)):
        with pytest.raises(ValueError) as error:
            refuse()
        assert str(error.value).startswith(message)


def test_shown_points_may_be_few() -> None:
    for skill in SKILLS:
        drawn = rows(skill, "train", 300, 0, shown=4)
        assert {shown(row["prompt"])[0] for row in drawn} == set("0123")


def test_more_problems_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"size=2000: must be <= 199, as programs has no more problems in train"):
        rows("programs", "train", 2000, 0)
    for other in (mini_world, preference_world, problem_world):
        assert set(SKILLS).isdisjoint(other.SKILLS)
