"""The preference world: known rewards, shares, and draws that repeat everywhere."""

import hashlib
import subprocess
import sys
from collections import Counter

import pytest

from evals import mini_world, preference_world
from evals.preference_world import NEAR, REWARDS, RIGHT, SKILLS, WRONG, check_options, reward, rows

MANY = 4000
NAMES = {value: name for name, value in REWARDS.items()}


def quality(prompt: str, response: str) -> str:
    return NAMES[reward([prompt], [response])[0]]


def dots(response: str) -> int:
    return len(response) - len(response.rstrip("."))


def answers(row: dict) -> list[str]:
    """All responses of a row of any skill."""
    found = []
    for key in ("answer", "chosen", "rejected", "responses"):
        value = row.get(key, [])
        found += [value] if isinstance(value, str) else value
    return found


def within(count: int, share: float, total: int = MANY) -> bool:
    """Whether a count fits a share, within four standard errors."""
    return abs(count - share * total) <= 4 * (share * (1 - share) * total) ** 0.5


# The true reward ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("59324", 1.0),
        ("59324....", 1.0),
        ("59324" + "." * 50, 1.0),
        ("59334", 0.5),
        ("09324.", 0.5),
        ("59335", 0.0),  # two wrong
        ("48213", 0.0),  # copied
        ("20817", 0.0),
        ("5932", 0.0),
        ("593240", 0.0),
        ("", 0.0),
        ("....", 0.0),
        (".59324", 0.0),
        ("59324.5", 0.0),
        ("5932x", 0.0),
        ("५९३२४", 0.0),
        ("59324 ", 0.0),
        ("59324\n", 0.0),
    ],
)
def test_reward_of_a_response(response: str, expected: float) -> None:
    assert reward(["next 48213:"], [response]) == [expected]


def test_nine_becomes_nought() -> None:
    assert reward(["next 90909:", "next 99999:"], ["01010", "00000"]) == [1.0, 1.0]


@pytest.mark.parametrize("prompt", ["", "48213", "next 48213", "copy 48213:", "next 4821x:", "next :", "xnext 48213:"])
def test_prompt_of_another_world(prompt: str) -> None:
    with pytest.raises(ValueError, match="prompt must be of the preference world, got"):
        reward([prompt], ["1"])


def test_prompts_and_responses_go_together() -> None:
    with pytest.raises(ValueError):
        reward(["next 1:"], [])
    assert reward([], []) == []


# What is drawn -----------------------------------------------------------------------------------------------


def test_demonstrations_have_their_shares() -> None:
    drawn = rows("preference_demonstrations", "train", MANY, 0)
    assert all(set(row) == {"prompt", "answer"} for row in drawn)
    counts = Counter(quality(row["prompt"], row["answer"]) for row in drawn)
    assert all(within(counts[name], share) for name, share in {RIGHT: 0.4, NEAR: 0.3, WRONG: 0.3}.items()), counts
    filler = Counter(dots(row["answer"]) for row in drawn)
    assert set(filler) == set(range(5)) and all(within(count, 0.2) for count in filler.values()), filler


def test_wrong_responses_of_the_data_have_three_to_five_wrong_digits() -> None:
    drawn = rows("preference_negatives", "train", MANY, 0)
    assert {quality(row["prompt"], row["answer"]) for row in drawn} == {WRONG}
    right = {item.prompt: item.answer for item in mini_world.items("increment", "train", MANY, 0)}
    wrong = Counter(
        sum(a != b for a, b in zip(row["answer"].rstrip("."), right[row["prompt"]], strict=True)) for row in drawn
    )
    assert set(wrong) == {3, 4, 5} and all(within(count, 1 / 3) for count in wrong.values()), wrong


def test_the_chosen_response_of_a_pair_is_better() -> None:
    drawn = rows("preference_pairs", "train", MANY, 0)
    sides = Counter((quality(row["prompt"], row["chosen"]), quality(row["prompt"], row["rejected"])) for row in drawn)
    # Right and near as 4 to 3; against a right one near or wrong, equally often.
    expected = {(RIGHT, NEAR): 2 / 7, (RIGHT, WRONG): 2 / 7, (NEAR, WRONG): 3 / 7}
    assert set(sides) == set(expected)
    assert all(within(sides[pair], share) for pair, share in expected.items()), sides
    longer = sum(dots(row["chosen"]) > dots(row["rejected"]) for row in drawn)
    assert within(longer, 0.4), "length says nothing: 2 in 5 are longer, 2 shorter, 1 of the same length"


@pytest.mark.parametrize("flips", [0.2, 1.0])
def test_flips_turn_their_share_of_pairs_round_and_change_nothing_else(flips: float) -> None:
    plain, flipped = (rows("preference_pairs", "train", MANY, 0, flips=share) for share in (0.0, flips))
    turned = 0
    for before, after in zip(plain, flipped, strict=True):
        digits = [row[key].rstrip(".") for row in (before, after) for key in ("chosen", "rejected")]
        assert digits[2:] in (digits[:2], digits[1::-1])
        turned += digits[2:] != digits[:2]
        assert [dots(before[key]) for key in ("chosen", "rejected")] == [
            dots(after[key]) for key in ("chosen", "rejected")
        ]
    assert turned == MANY if flips == 1 else within(turned, flips)


def test_length_bias_deals_the_dots_and_leaves_the_digits() -> None:
    plain = rows("preference_pairs", "train", MANY, 0)
    for bias in (0.5, 1.0):
        biased = rows("preference_pairs", "train", MANY, 0, length_bias=bias)
        shorter = 0
        for before, after in zip(plain, biased, strict=True):
            for key in ("chosen", "rejected"):
                assert before[key].rstrip(".") == after[key].rstrip(".")
            lengths = sorted(dots(before[key]) for key in ("chosen", "rejected"))
            assert lengths == sorted(dots(after[key]) for key in ("chosen", "rejected"))
            shorter += dots(after["chosen"]) < dots(after["rejected"])
        assert within(shorter, 0.4 * (1 - bias)), "of pairs of unlike length half were shorter"


@pytest.mark.parametrize("candidates", [2, 4, 7])
def test_ranked_responses_have_their_true_rewards(candidates: int) -> None:
    for row in rows("preference_ranked", "train", 300, 0, candidates=candidates):
        assert len(row["responses"]) == candidates
        assert row["scores"] == reward([row["prompt"]] * candidates, row["responses"])
        assert max(row["scores"]) > 0 == min(row["scores"])


@pytest.mark.parametrize("members", [1, 2, 5])
def test_groups_have_their_members(members: int) -> None:
    drawn = rows("preference_groups", "train", 300, 0, members=members)
    for row in drawn:
        assert len(row["chosen"]) == len(row["rejected"]) == members
        assert {quality(row["prompt"], response) for response in row["chosen"]} <= {RIGHT, NEAR}
        assert {quality(row["prompt"], response) for response in row["rejected"]} <= {NEAR, WRONG}
    flipped = rows("preference_groups", "train", 300, 0, members=members, flips=1)
    assert all(a["chosen"] == b["rejected"] for a, b in zip(drawn, flipped, strict=True))


def test_labels_say_whether_the_response_is_wrong() -> None:
    drawn = rows("preference_labelled", "train", MANY, 0)
    assert all(row["label"] == (quality(row["prompt"], row["answer"]) != WRONG) for row in drawn)
    assert within(sum(row["label"] for row in drawn), 0.5)
    noisy = rows("preference_labelled", "train", MANY, 0, flips=0.3)
    assert [row["answer"] for row in noisy] == [row["answer"] for row in drawn]
    assert within(sum(a["label"] != b["label"] for a, b in zip(noisy, drawn, strict=True)), 0.3)


# Splits and repetition ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", SKILLS)
def test_splits_share_no_prompt_and_rows_none(skill: str) -> None:
    prompts = {split: [row["prompt"] for row in rows(skill, split, 500, 3)] for split in mini_world.SPLITS}
    assert all(len(set(found)) == 500 for found in prompts.values())
    assert not set(prompts["train"]) & set(prompts["test"]) and not set(prompts["train"]) & set(prompts["validation"])
    assert not set(prompts["validation"]) & set(prompts["test"])
    tested = {item.prompt for item in mini_world.items("increment", "test", 500, 3)}
    assert set(prompts["test"]) == tested, "unseen by the model that was pre-trained in the mini world, too"


@pytest.mark.parametrize("skill", SKILLS)
def test_draws_repeat_and_fewer_are_the_first(skill: str) -> None:
    drawn = rows(skill, "train", 50, 1)
    assert rows(skill, "train", 50, 1) == drawn
    assert rows(skill, "train", 20, 1) == drawn[:20]
    other = rows(skill, "train", 50, 2)
    assert {row["prompt"] for row in other} != {row["prompt"] for row in drawn}
    assert all(len(response) <= 9 and response.isascii() for row in drawn for response in answers(row))


def test_draws_are_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from evals import preference_world as w\n"
        "drawn = [w.rows(skill, 'train', 30, 5) for skill in w.SKILLS]\n"
        "print(hashlib.sha256(repr(drawn).encode()).hexdigest())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = [rows(skill, "train", 30, 5) for skill in SKILLS]
    assert told == hashlib.sha256(repr(here).encode()).hexdigest()
    as_it_was = {"prompt": "next 00038:", "chosen": "11749..", "rejected": "61130..."}
    assert rows("preference_pairs", "train", 1, 0) == [as_it_was], "when this was written"


# Mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skill", "options", "message"),
    [
        ("preference_pairs", {"flip": 0.1}, "flip=0.1: preference_pairs has no such option (nearest: flips); it has"),
        ("preference_negatives", {"flips": 0.1}, "flips=0.1: preference_negatives has no such option; it has none"),
        ("preference_pairs", {"flips": 1.5}, "flips=1.5: must be a number between 0 and 1"),
        ("preference_pairs", {"flips": float("nan")}, "flips=nan: must be a number between 0 and 1"),
        ("preference_pairs", {"length_bias": -0.1}, "length_bias=-0.1: must be a number between 0 and 1"),
        ("preference_labelled", {"flips": True}, "flips=True: must be a number between 0 and 1"),
        ("preference_ranked", {"candidates": 1}, "candidates=1: must be a whole number >= 2"),
        ("preference_ranked", {"candidates": 2.5}, "candidates=2.5: must be a whole number >= 2"),
        ("preference_ranked", {"candidates": float("inf")}, "candidates=inf: must be a whole number >= 2"),
        ("preference_pairs", {"pairs_per_prompt": 0}, "pairs_per_prompt=0: must be a whole number >= 1"),
        ("preference_groups", {"members": 0}, "members=0: must be a whole number >= 1"),
    ],
)
def test_options_out_of_range(skill: str, options: dict, message: str) -> None:
    for refuse in (lambda: check_options(skill, options), lambda: rows(skill, "train", 5, 0, **options)):
        with pytest.raises(ValueError) as error:
            refuse()
        assert str(error.value).startswith(message)


def test_options_at_the_ends_of_their_ranges() -> None:
    check_options("preference_pairs", {"flips": 0, "length_bias": 1})
    check_options("preference_ranked", {"candidates": 2.0})  # as YAML may have it
    assert len(rows("preference_ranked", "train", 1, 0, candidates=2.0)[0]["responses"]) == 2


def test_several_pairs_of_a_prompt() -> None:
    drawn = rows("preference_pairs", "train", 10, 0, pairs_per_prompt=4)
    prompts = [row["prompt"] for row in rows("preference_pairs", "train", 3, 0)]
    assert [row["prompt"] for row in drawn] == [prompts[0]] * 4 + [prompts[1]] * 4 + [prompts[2]] * 2
    assert len({row["chosen"] for row in drawn[:4]}) > 1, "of other responses"
    assert rows("preference_pairs", "train", 6, 0, pairs_per_prompt=4) == drawn[:6]
    assert rows("preference_pairs", "train", 6, 0, pairs_per_prompt=1.0) == rows("preference_pairs", "train", 6, 0)


def test_more_rows_than_there_are_prompts_and_unknown_splits() -> None:
    with pytest.raises(ValueError, match="count must be <= "):
        rows("preference_pairs", "test", 100_000, 0)
    with pytest.raises(ValueError, match="split must be one of"):
        rows("preference_pairs", "tset", 5, 0)
    assert set(preference_world.SKILLS).isdisjoint(mini_world.SKILLS)
