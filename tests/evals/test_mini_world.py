"""The mini world: known answers, splits that share no content, and draws that repeat everywhere."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from evals import mini_world
from evals.mini_world import (
    GENERAL_SKILLS,
    SKILLS,
    SPLITS,
    TARGET_SKILLS,
    Item,
    items,
    load,
    pretraining_items,
)

STRING_PROMPT = re.compile(r"(\w{4}) (\d{5}):")


def digits_of(item: Item) -> str:
    match = STRING_PROMPT.fullmatch(item.prompt)
    assert match is not None, item.prompt
    return match[2]


def string_item(skill: str, digits: str) -> Item:
    return mini_world._SOURCES[skill].item(skill, (digits,))


@pytest.mark.parametrize(
    ("skill", "digits", "prompt", "answer"),
    [
        ("copy", "48213", "copy 48213:", "48213"),
        ("reverse", "48213", "flip 48213:", "31284"),
        ("reverse", "00120", "flip 00120:", "02100"),
        ("increment", "48219", "next 48219:", "59320"),
        ("sort", "48213", "sort 48213:", "12348"),
        ("sort", "90909", "sort 90909:", "00999"),
        ("rotate", "48213", "roll 48213:", "82134"),
        ("complement", "48219", "nine 48219:", "51780"),
        ("relabelled_copy", "48213", "copy 48213:", "48213"),
        ("relabelled_copy", "07951", "copy 07951:", "07951"),
        ("relabelled_copy", "38213", "copy 38213:", "83768"),
        ("relabelled_copy", "95000", "copy 95000:", "40555"),
    ],
)
def test_string_skill_known_answers(skill: str, digits: str, prompt: str, answer: str) -> None:
    item = string_item(skill, digits)
    assert (item.prompt, item.answer) == (prompt, answer)


def test_relabelled_copy_is_easy_exactly_where_copy_still_holds() -> None:
    for item in items("relabelled_copy", "validation", 500, seed=0):
        digits = digits_of(item)
        assert item.part == ("easy" if digits[0] in "02468" else "hard")
        assert (item.answer == string_item("copy", digits).answer) == (item.part == "easy")
        assert item.prompt == string_item("copy", digits).prompt


@pytest.mark.parametrize(
    ("content", "story", "answer", "part"),
    [
        (("buy", 12, 7), "has 12 pens and buys 7 more. How many now?\n", "12+7=19\n#### 19", "one_step"),
        (("lose", 9, 4), "had 9 pens and lost 4. How many are left?\n", "9-4=5\n#### 5", "one_step"),
        (("bags", 6, 7), "has 6 bags of 7 nuts. How many nuts?\n", "6*7=42\n#### 42", "one_step"),
        (
            ("buy_give", 9, 20, 12),
            "has 9 cards, buys 20 and gives away 12. How many now?\n",
            "9+20=29\n29-12=17\n#### 17",
            "two_step",
        ),
        (
            ("bags_eat", 3, 4, 5),
            "has 3 bags of 4 nuts and eats 5. How many are left?\n",
            "3*4=12\n12-5=7\n#### 7",
            "two_step",
        ),
    ],
)
def test_word_problem_known_answers(content: tuple, story: str, answer: str, part: str) -> None:
    item = mini_world._SOURCES["word_problems"].item("word_problems", content)
    name, rest = item.prompt.split(" ", 1)
    assert name in mini_world.NAMES
    assert (rest, item.answer, item.part) == (story, answer, part)


def test_every_word_problem_is_worked_out_correctly() -> None:
    drawn = [item for split in SPLITS for item in items("word_problems", split, 400, seed=1)]
    for item in drawn:
        *steps, last = item.answer.split("\n")
        numbers = [int(number) for number in re.findall(r"\d+", item.prompt)]
        assert len(steps) == len(numbers) - 1 == (1 if item.part == "one_step" else 2)
        result = numbers[0]
        for step, number in zip(steps, numbers[1:], strict=True):
            match = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", step)
            assert match is not None, step
            left, operator, right, printed = int(match[1]), match[2], int(match[3]), int(match[4])
            assert (left, right) == (result, number)
            result = {"+": left + right, "-": left - right, "*": left * right}[operator]
            assert printed == result
        assert last == f"#### {result}" and result > 0
    assert len({item.prompt.split(" ")[0] for item in drawn}) == len(mini_world.NAMES)


def contents_of(skill: str, split: str) -> set[tuple]:
    return {content for part in SKILLS[skill].parts for content in mini_world._pool(skill, split, part)}


def test_every_string_is_in_one_split_and_in_the_same_one_for_all_skills() -> None:
    general = {split: contents_of("copy", split) for split in SPLITS}
    assert sum(len(contents) for contents in general.values()) == len(set().union(*general.values())) == 10**5
    assert 0.895 < len(general["train"]) / 10**5 < 0.905
    assert 0.045 < len(general["validation"]) / 10**5 < 0.055
    for skill in ("sort", "relabelled_copy"):
        assert {split: contents_of(skill, split) for split in SPLITS} == general


def test_every_word_problem_is_in_one_split() -> None:
    by_split = [contents_of("word_problems", split) for split in SPLITS]
    every = set().union(*by_split)
    assert sum(len(contents) for contents in by_split) == len(every)
    assert every == set(mini_world._word_problem_contents())
    assert 0.88 < len(by_split[0]) / len(every) < 0.92
    assert min(len(contents) for contents in by_split) >= 1000


def test_drawn_items_stay_in_their_split_for_any_seed_and_count() -> None:
    train = {digits_of(item) for item in pretraining_items(5000, seed=3)}
    train |= {digits_of(item) for item in items("relabelled_copy", "train", 3000, seed=4)}
    for split in ("validation", "test"):
        for skill in (*GENERAL_SKILLS, "relabelled_copy"):
            assert not train & {digits_of(item) for item in items(skill, split, 1500, seed=5)}
    train_prompts = {item.prompt.split(" ", 1)[1] for item in items("word_problems", "train", 4000, seed=0)}
    test_prompts = {item.prompt.split(" ", 1)[1] for item in items("word_problems", "test", 400, seed=0)}
    assert not train_prompts & test_prompts


def test_split_is_the_published_hash() -> None:
    # Worked out here again, so that a change of the hash (which would move every item) does not pass unseen.
    for digits in ("00000", "48213", "99999"):
        percentile = int(hashlib.sha256(digits.encode()).hexdigest()[:16], 16) % 100
        expected = "train" if percentile < 90 else "validation" if percentile < 95 else "test"
        assert (digits,) in mini_world._pool("sort", expected, "all")


@pytest.mark.parametrize("skill", list(SKILLS))
def test_items_are_distinct_repeatable_and_prefixes_of_longer_draws(skill: str) -> None:
    drawn = items(skill, "test", 400, seed=7)
    assert len({item.prompt for item in drawn}) == 400
    assert drawn == items(skill, "test", 400, seed=7)
    assert drawn[:33] == items(skill, "test", 33, seed=7)
    assert drawn != items(skill, "test", 400, seed=8)
    assert {item.skill for item in drawn} == {skill}


def test_all_items_of_a_split_can_be_drawn() -> None:
    capacity = len(mini_world._pool("sort", "test", "all"))
    assert len({item.prompt for item in items("sort", "test", capacity, seed=0)}) == capacity


def test_parts_take_their_shares_and_can_be_asked_for() -> None:
    for skill, shares in (
        ("relabelled_copy", {"easy": 41, "hard": 60}),
        ("word_problems", {"one_step": 51, "two_step": 50}),
    ):
        assert Counter(item.part for item in items(skill, "train", 101, seed=0)) == shares
        only = items(skill, "train", 40, seed=0, part=list(shares)[1])
        assert {item.part for item in only} == {list(shares)[1]}
        mixed = [item for item in items(skill, "train", 100, seed=0) if item.part == list(shares)[1]]
        assert only == mixed[:40]


def test_the_median_item_of_relabelled_copy_is_hard_in_every_subset() -> None:
    """So that the median of its two-valued losses does not jump when a few items are left out."""
    drawn = items("relabelled_copy", "train", 2000, seed=3)
    for begin in range(0, 2000, 97):
        hard = sum(item.part == "hard" for item in drawn[begin : begin + 64])
        assert hard > 32


def test_draws_are_the_same_in_every_process_and_version() -> None:
    program = (
        "from evals.mini_world import *; import hashlib;"
        "drawn = [items(s, 'train', 50, 1) for s in SKILLS] + [pretraining_items(50, 1)];"
        "print(hashlib.sha256(repr(drawn).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.strip() == GOLDEN_DIGEST


def test_pretraining_mixes_the_general_skills_evenly() -> None:
    drawn = pretraining_items(6000, seed=0)
    counts = Counter(item.skill for item in drawn)
    assert set(counts) == set(GENERAL_SKILLS)
    assert all(850 < count < 1150 for count in counts.values())  # 1000 expected, standard deviation 29
    assert drawn[:100] == pretraining_items(100, seed=0) != pretraining_items(100, seed=1)


def test_prompts_are_ascii_of_one_length_and_answers_follow_them_directly() -> None:
    for skill in (*GENERAL_SKILLS, "relabelled_copy"):
        for item in items(skill, "validation", 50, seed=0):
            assert (item.prompt + item.answer).isascii()
            assert (len(item.prompt), len(item.answer)) == (11, 5)


def test_skills_are_described_and_sorted_by_kind() -> None:
    assert GENERAL_SKILLS == ("copy", "reverse", "increment", "sort", "rotate", "complement")
    assert TARGET_SKILLS == ("relabelled_copy", "word_problems")
    assert all(skill.summary and "\n" not in skill.summary for skill in SKILLS.values())


def test_load_gives_lm_eval_a_dataset_per_split() -> None:
    loaded = load(skill="relabelled_copy", split="test", count=6, seed=0, part="hard", pretrained="ignored")
    assert list(loaded) == ["test"]
    assert loaded["test"].column_names == ["prompt", "answer", "part"]
    expected = items("relabelled_copy", "test", 6, seed=0, part="hard")
    assert loaded["test"]["prompt"] == [item.prompt for item in expected]
    assert loaded["test"]["answer"] == [item.answer for item in expected]
    assert set(loaded["test"]["part"]) == {"hard"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sotr", "test", 1, 0), r"skill must be one of copy, .*got 'sotr' \(did you mean sort"),
        (("sort", "valid", 1, 0), r"split must be one of .*got 'valid' \(did you mean validation"),
        (("sort", "test", 0, 0), r"count must be >= 1, got 0"),
        (("sort", "test", -3, 0), r"count must be >= 1, got -3"),
        (("sort", "test", 100_000, 0), r"count must be <= \d+ \(all items of sort/test.*got 100000"),
        (
            ("relabelled_copy", "test", 4000, 0, "hard"),
            r"count must be <= \d+ \(all items of .*/test/hard.*4000",
        ),
        (
            ("relabelled_copy", "test", 1, 0, "heard"),
            r"part must be one of easy, hard, got 'heard' \(did you mean hard",
        ),
        (("sort", "test", 1, 0, "hard"), r"part must be one of all, got 'hard'"),
    ],
)
def test_bad_arguments_name_key_rule_and_value(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        items(*arguments)


def test_bad_pretraining_count() -> None:
    with pytest.raises(ValueError, match=r"count must be >= 1, got 0"):
        pretraining_items(0, seed=0)


def test_importing_the_module_imports_neither_torch_nor_datasets() -> None:
    program = "import sys, evals.mini_world; print({'torch', 'datasets', 'numpy'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"


# sha256 of the items drawn in test_draws_are_the_same_in_every_process_and_version. The mini world is frozen:
# results measured on it are comparable only while this stays the same.
GOLDEN_DIGEST = "8e424fba554bc29d7e7a1379020f70316690122604d3f60b52dcf22c3d02918c"
