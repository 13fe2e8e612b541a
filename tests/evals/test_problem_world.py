"""Generated problems: answers that are checked, demonstrations with their shares, splits without overlap."""

import hashlib
import itertools
import re
import subprocess
import sys
from collections import Counter

import pytest

from evals import mini_world, preference_world, problem_world
from evals.problem_world import (
    SKILLS,
    addition_reward,
    distinct_right,
    first_wrong_step,
    multi_step_reward,
    rows,
    stated,
    states_answer,
    steps_right,
    sums_reward,
    terms,
)

MANY = 3000
REWARDS = {"addition": addition_reward, "sums": sums_reward, "multi_step": multi_step_reward}


def within(count: int, share: float, total: int = MANY) -> bool:
    """Whether a count fits a share, within four standard errors."""
    return abs(count - share * total) <= 4 * (share * (1 - share) * total) ** 0.5


def true_answer(prompt: str) -> int:
    """The answer by an independent way."""
    if prompt.startswith("sum "):
        return int(prompt[4:-1])
    if prompt.endswith("="):
        return sum(int(number) for number in prompt[:-1].split("+"))
    value = int(prompt[0])
    for sign, number in re.findall(r"([+*-])(\d)", prompt):
        value = {"+": value.__add__, "-": value.__sub__, "*": value.__mul__}[sign](int(number)) % 7
    return value


# Rewards -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("#85", 1.0),
        ("15,8,#85", 1.0),
        ("15,15,15,8,#85", 1.0),
        ("nonsense#85", 1.0),
        ("#84#85", 1.0),
        ("#85#84", 0.0),
        ("85", 0.0),
        ("15,8,85", 0.0),
        ("#085", 0.0),
        ("#85 ", 0.0),
        ("#85.", 0.0),
        ("#", 0.0),
        ("", 0.0),
        ("#٨٥", 0.0),
        ("#-85", 0.0),
    ],
)
def test_addition_counts_what_follows_the_last_mark(response: str, expected: float) -> None:
    assert addition_reward(["47+38="], [response], ["85"]) == [expected]
    assert multi_step_reward(["any"], [response], ["15,8,#85"]) == [expected], "the same of an annotated answer"


@pytest.mark.parametrize(
    ("response", "found"), [("#0", "0"), ("a#12", "12"), ("#00", None), ("12", None), ("#1x", None)]
)
def test_the_answer_that_a_response_states(response: str, found: str | None) -> None:
    assert stated(response) == found
    assert states_answer(["any"], [response]) == [float(found is not None)]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("5+7", 1.0),
        ("0+12", 1.0),
        ("12+0", 1.0),
        ("6+6", 1.0),
        ("5+8", 0.0),
        ("05+7", 0.0),
        ("5+7+0", 0.0),
        ("+12", 0.0),
        ("12", 0.0),
        ("", 0.0),
        ("-1+13", 0.0),
        ("13+-1", 0.0),
        ("5 + 7", 0.0),
        ("5+7\n", 0.0),
        ("５+7", 0.0),
    ],
)
def test_any_two_numbers_with_the_sum_are_right(response: str, expected: float) -> None:
    assert sums_reward(["sum 12:"], [response], ["12"]) == [expected]


def test_there_are_n_plus_one_right_responses() -> None:
    written = [f"{first}+{second}" for first, second in itertools.product(range(14), repeat=2)]
    assert distinct_right(written * 2, "12") == 13
    assert distinct_right(["5+7", "5+7", "7+5", "5+8", ""], "12") == 2
    assert distinct_right([], "12") == 0
    assert terms("5+7") == (5, 7) and terms("5+") is None


@pytest.mark.parametrize("answer", ["", "x", "#", "012", "1#x"])
@pytest.mark.parametrize("reward", [addition_reward, multi_step_reward, sums_reward])
def test_an_answer_that_is_none(reward, answer: str) -> None:
    with pytest.raises(ValueError) as error:
        reward(["p"], ["1+1"], [answer])
    assert str(error.value) == f"answer={answer}: must be a number, or end in one after #"
    with pytest.raises(ValueError):
        reward(["p"], [], ["1"])  # one of each


# Steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "right", "first_wrong"),
    [
        ("a=1,b=4,c=5,#5", [True, True, True], -1),
        ("a=1,b=4,c=5,#6", [True, True, True], -1),  # the last value is no step
        ("a=1,b=3,c=4,#4", [True, False, False], 1),
        ("a=1,b=3,c=5,#5", [True, False, True], 1),
        ("a=2,b=4,c=5,#5", [False, True, True], 0),
        ("a=1,b=4,#4", [True, True], -1),
        ("a=1,b=4,c=5", [True, True, True], -1),
        ("a=1,c=4,b=5,#5", [True, False, False], 1),
        ("a=1,b=4,c=5,d=5,#5", [True, True, True, False], 3),
        ("a=1,,c=5,#5", [True, False, True], 1),
        ("#5", [], -1),
        ("", [], -1),
        ("abc", [False], 0),
    ],
)
def test_steps_are_checked_one_by_one(response: str, right: list[bool], first_wrong: int) -> None:
    # 3+5 = 1, 1*4 = 4, 4-6 = 5 modulo 7
    assert steps_right("3+5*4-6:", response) == right
    assert first_wrong_step("3+5*4-6:", response) == first_wrong


@pytest.mark.parametrize(
    "prompt", ["", ":", "3:", "7+5:", "3+5", "3+7:", "3+0:", "3*1:", "3/2:", "3+5*:", "3+5+5+5+5+5:", "47+38=", "3+5::"]
)
def test_steps_of_a_prompt_of_another_world(prompt: str) -> None:
    with pytest.raises(ValueError) as error:
        steps_right(prompt, "a=1")
    assert str(error.value) == f"prompt={prompt}: must be of the skill multi_step, as 3+5*4-6:"


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_annotated_chains_are_right_at_each_step(steps: int) -> None:
    drawn = rows("multi_step", "validation", 5, 0, steps=steps)
    for row in drawn:
        assert steps_right(row["prompt"], row["answer"]) == [True] * steps
        assert stated(row["answer"]) == str(true_answer(row["prompt"]))


def test_thoughts_stand_in_plain_lines() -> None:
    """Somewhere in a right answer, totals in brackets, which lead to it in their share."""
    drawn = rows("addition_thoughts", "train", MANY, 0)
    places: set[int] = set()
    for row in drawn:
        left, _, other = row["prompt"].removesuffix("=").partition("+")
        before, opened, rest = row["answer"].partition("[")
        thought, _, after = rest.partition("]")
        assert before + after == str(int(left) + int(other))
        if opened:
            units, tens = (int(total) for total in thought.removesuffix(",").split(","))
            assert (10 * tens + units % 10 == int(before + after)) == row["right"] and len(thought) == 6
            places.add(len(before))
        else:
            assert row["right"]
    assert places == {0, 1, 2, 3}
    share = sum("[" in row["answer"] for row in drawn) / MANY
    wrong = sum(not row["right"] for row in drawn) / MANY
    assert share == pytest.approx(0.7, abs=0.04) and wrong == pytest.approx(0.21, abs=0.04)
    assert all(row["right"] for row in rows("addition_thoughts", "train", 500, 0, right=1))
    assert not any("[" in row["answer"] for row in rows("addition_thoughts", "train", 500, 0, thoughts=0))


def test_the_first_wrong_step_of_demonstrations() -> None:
    drawn = rows("multi_step_demonstrations", "train", MANY, 0)
    for row in drawn:
        assert first_wrong_step(row["prompt"], row["answer"]) == row["first_wrong"]
        assert row["right"] == (row["first_wrong"] == -1)
        found = steps_right(row["prompt"], row["answer"])
        assert found == [True] * 3 if row["right"] else not any(found[row["first_wrong"] :]), "wrong to the end"
        assert stated(row["answer"]) == row["answer"].split("=")[-1].split(",")[0]
    places = Counter(row["first_wrong"] for row in drawn)
    assert within(places[-1], 0.4) and all(within(places[step], 0.2) for step in range(3)), places


# Demonstrations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_pairs_part_at_one_step(steps: int) -> None:
    found = rows("multi_step_pairs", "train", 60, 3, steps=steps)
    for row in found:
        prompt, place = row["prompt"], row["first_wrong"]
        assert first_wrong_step(prompt, row["chosen"]) == -1 and first_wrong_step(prompt, row["rejected"]) == place
        assert len(row["chosen"]) == len(row["rejected"])
    assert {row["first_wrong"] for row in found} == set(range(steps))
    cut = rows("multi_step_pairs", "train", 60, 3, steps=steps, cut=1.0)
    for whole, row in zip(found, cut, strict=True):
        assert whole["prompt"] == row["prompt"] and whole["first_wrong"] == row["first_wrong"]
        for side in ("chosen", "rejected"):
            assert whole[side].startswith(row[side]) and row[side].count(",") == row["first_wrong"] + 1
        assert row["chosen"][:-2] == row["rejected"][:-2] and row["chosen"] != row["rejected"]  # one digit


@pytest.mark.parametrize("skill", REWARDS)
@pytest.mark.parametrize("share", [None, 0.0, 0.8, 1.0])
def test_demonstrations_are_right_in_their_share(skill: str, share: float | None) -> None:
    options = {} if share is None else {"right": share}
    drawn = rows(f"{skill}_demonstrations", "train", MANY, 0, **options)
    answers = [str(true_answer(row["prompt"])) for row in drawn]
    found = REWARDS[skill]([row["prompt"] for row in drawn], [row["answer"] for row in drawn], answers)
    assert found == [float(row["right"]) for row in drawn]
    count = sum(found)
    assert within(count, 0.4 if share is None else share)


@pytest.mark.parametrize("skill", REWARDS)
def test_problems_have_the_answer_that_is_rewarded(skill: str) -> None:
    drawn = rows(skill, "train", 200, 0)
    for row in drawn:
        assert set(row) == {"prompt", "answer"}
        assert (stated(row["answer"]) or row["answer"]) == str(true_answer(row["prompt"]))


@pytest.mark.parametrize("digits", [1, 2])
def test_working_leads_to_the_answer(digits: int) -> None:
    for row in rows("addition_demonstrations", "train", 500, 0, worked=1, repeats=0, digits=digits):
        left, right = row["prompt"][:-1].split("+")
        *totals, last = row["answer"].split(",")
        assert len(totals) == digits
        carry = wrong = 0
        for column, total in enumerate(totals):
            wrong += int(total) != int(left[-1 - column]) + int(right[-1 - column]) + carry
            carry = int(total) // 10
        assert all(re.fullmatch("[01][0-9]", total) for total in totals)
        result = totals[-1] + "".join(total[-1] for total in reversed(totals[:-1]))
        assert last == f"#{int(result)}"
        assert wrong == (not row["right"]), "one total, and the next go on from it"


def test_work_may_be_written_again() -> None:
    once, again = (rows("addition_demonstrations", "train", 500, 0, worked=1, repeats=most) for most in (0, 2))
    for plain, row in zip(once, again, strict=True):
        assert row["prompt"] == plain["prompt"] and row["right"] == plain["right"]
        work, _, last = plain["answer"].rpartition(",")
        assert re.fullmatch(rf"({work},){{1,3}}{last}", row["answer"])


def test_length_is_free() -> None:
    drawn = rows("addition_demonstrations", "train", MANY, 0)
    lines = Counter(row["answer"].count(",") for row in drawn)
    assert within(lines[0], 0.5) and set(lines) == {0, 2, 4}, lines
    assert within(lines[2], 0.5 / 2)
    plain = rows("addition_demonstrations", "train", 300, 0, repeats=0, worked=1)
    assert {row["answer"].count(",") for row in plain} == {2}


def test_a_share_is_without_the_mark_and_differs_in_nothing_else() -> None:
    with_mark = rows("addition_demonstrations", "train", MANY, 0)
    half = rows("addition_demonstrations", "train", MANY, 0, marked=0.5)
    assert all(row["answer"].count("#") == 1 for row in with_mark)
    assert within(sum("#" in row["answer"] for row in half), 0.5)
    assert [row["answer"].replace("#", "") for row in with_mark] == [row["answer"].replace("#", "") for row in half]


def test_right_ones_do_not_depend_on_the_share_of_right_ones() -> None:
    few, more = (rows("sums_demonstrations", "train", 500, 0, right=share) for share in (0.2, 0.7))
    assert all(one["answer"] == other["answer"] for one, other in zip(few, more, strict=True) if one["right"])
    assert all(
        one["answer"].split("+")[0] == other["answer"].split("+")[0] for one, other in zip(few, more, strict=True)
    )


def test_sums_are_demonstrated_in_all_their_ways() -> None:
    drawn = rows("sums_demonstrations", "train", 2000, 0, most=99, right=1)
    first = Counter(int(row["answer"].split("+")[0]) * 4 // (true_answer(row["prompt"]) + 1) for row in drawn)
    assert set(first) == {0, 1, 2, 3} and min(first.values()) > 350, "each quarter of 0 to n"


def test_wrong_responses_have_the_form_of_right_ones() -> None:
    forms = {"addition": r"(\d+,)*#\d+", "sums": r"\d+\+\d+", "multi_step": r"a=\d,b=\d,c=\d,#\d"}
    for skill, form in forms.items():
        drawn = rows(f"{skill}_demonstrations", "train", 500, 0, right=0)
        assert all(re.fullmatch(form, row["answer"]) for row in drawn)
        assert max(len(row["prompt"] + row["answer"]) for row in drawn) <= 32


# Splits and repetition ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", REWARDS)
def test_splits_share_no_problem_and_demonstrations_are_of_training_problems(skill: str) -> None:
    sizes = {"train": 400, "validation": 30, "test": 30}
    prompts = {split: {row["prompt"] for row in rows(skill, split, size, 3)} for split, size in sizes.items()}
    assert {split: len(found) for split, found in prompts.items()} == sizes
    shown = {row["prompt"] for row in rows(f"{skill}_demonstrations", "train", 9000, 4)}
    for held_out in ("validation", "test"):
        assert not prompts[held_out] & (prompts["train"] | shown)
    assert not prompts["validation"] & prompts["test"]


def test_a_sum_with_its_terms_turned_round_is_the_same_problem() -> None:
    problems = {
        split: {row["prompt"] for row in rows("addition", split, size, 0)}
        for split, size in (("train", 7000), ("test", 300))
    }
    turned = {"+".join(reversed(prompt[:-1].split("+"))) + "=" for prompt in problems["test"]}
    assert not turned & problems["train"]
    assert len(turned & problems["test"]) > 100


@pytest.mark.parametrize("skill", SKILLS)
def test_draws_repeat_and_fewer_are_the_first(skill: str) -> None:
    drawn = rows(skill, "train", 50, 1)
    assert rows(skill, "train", 50, 1) == drawn
    assert rows(skill, "train", 20, 1) == drawn[:20]
    assert rows(skill, "train", 50, 2) != drawn


def test_draws_are_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from evals import problem_world as w\n"
        "drawn = [w.rows(skill, 'train', 30, 5) for skill in w.SKILLS]\n"
        "print(hashlib.sha256(repr(drawn).encode()).hexdigest())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = [rows(skill, "train", 30, 5) for skill in SKILLS]
    assert told == hashlib.sha256(repr(here).encode()).hexdigest()
    as_it_was = {"prompt": "30+43=", "answer": "03,08,#83", "right": False}
    assert rows("addition_demonstrations", "train", 4, 0)[3] == as_it_was, "when this was written"


@pytest.mark.parametrize(
    ("skill", "options", "message"),
    [
        ("addition", {"digits": 4}, "digits=4: must be a whole number from 1 to 3"),
        ("addition", {"marked": 0.5}, "marked=0.5: addition has no such option; it has digits"),
        (
            "addition_demonstrations",
            {"rigth": 0.5},
            "rigth=0.5: addition_demonstrations has no such option (nearest: right)",
        ),
        ("addition_demonstrations", {"repeats": -1}, "repeats=-1: must be a whole number from 0 to 9"),
        ("sums", {"most": 12}, "most=12: must be a whole number from 99 to 9999"),
        ("multi_step", {"steps": 5}, "steps=5: must be a whole number from 1 to 4"),
        ("multi_step_demonstrations", {"right": 2}, "right=2: must be a number between 0 and 1"),
    ],
)
def test_options_out_of_range(skill: str, options: dict, message: str) -> None:
    for refuse in (lambda: problem_world.check_options(skill, options), lambda: rows(skill, "train", 5, 0, **options)):
        with pytest.raises(ValueError) as error:
            refuse()
        assert str(error.value).startswith(message)


def test_names_are_no_other_worlds() -> None:
    assert set(SKILLS).isdisjoint(mini_world.SKILLS) and set(SKILLS).isdisjoint(preference_world.SKILLS)
