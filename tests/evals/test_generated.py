"""What generated problem sets share: splits, draws, options."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from evals.generated import Content, Row, Skill, below, split_of

CONTENTS = 400


def _contents(*, count: int = CONTENTS) -> Iterator[Content]:
    return ((number,) for number in range(count))


def _row(content: Content, rng: random.Random, *, share: float = 0.5) -> Row:
    return {"prompt": str(content[0]), "answer": rng.random() < share}


ONCE = Skill(_contents, _row, bounds={"count": (1, 500)})
AGAIN = Skill(_contents, _row, again=True, bounds={"count": (1, 500)})


def _prompts(skill: Skill, split: str, size: int, **options: float) -> list[str]:
    return [row["prompt"] for row in skill.rows("toy", split, size, 0, options)]


def test_splits_have_their_shares() -> None:
    counts = Counter(split_of((number, "a")) for number in range(4000))
    assert abs(counts["train"] - 3600) < 80 and abs(counts["validation"] - 200) < 60 and abs(counts["test"] - 200) < 60


def test_splits_as_they_were() -> None:
    held_out = [left for left in range(10, 100) if split_of(("add", left, 99)) == "validation"]
    assert held_out == [10, 24, 50, 89], "when this was written"


def test_what_decides_the_split_is_asked_of_the_skill() -> None:
    tens = Skill(_contents, _row, about=lambda content: (content[0] // 10,))
    train = set(_prompts(tens, "train", 300))
    assert train <= {str(n) for n in range(CONTENTS) if split_of((n // 10,)) == "train"}
    assert len(train) == 300


def test_below_takes_every_value() -> None:
    rng = random.Random("a")
    assert {below(3, rng) for _ in range(100)} == {0, 1, 2}


def test_contents_come_again_only_when_all_had_their_turn() -> None:
    train = [str(number) for number in range(CONTENTS) if split_of((number,)) == "train"]
    drawn = _prompts(AGAIN, "train", 2 * len(train) + 5)
    assert sorted(drawn[: len(train)]) == sorted(drawn[len(train) : 2 * len(train)]) == sorted(train)
    assert drawn[: len(train)] != drawn[len(train) : 2 * len(train)]
    with pytest.raises(
        ValueError, match=f"size={len(train) + 1}: must be <= {len(train)}, as toy has no more problems"
    ):
        _prompts(ONCE, "train", len(train) + 1)
    assert sorted(_prompts(ONCE, "train", len(train))) == sorted(train)


def test_a_share_changes_neither_the_problems_nor_other_draws() -> None:
    assert _prompts(AGAIN, "train", 50, share=0.1) == _prompts(AGAIN, "train", 50, share=0.9)


def test_an_option_of_the_contents_bounds_them() -> None:
    assert max(int(prompt) for prompt in _prompts(AGAIN, "train", 100, count=20)) < 20


def test_a_split_without_problems() -> None:
    empty = next(split for split in ("test", "validation") if split_of((0,)) != split)
    with pytest.raises(ValueError, match=f"size=1: must be <= 0, as toy has no more problems in {empty}"):
        _prompts(AGAIN, empty, 1, count=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shar": 0.1}, "shar=0.1: toy has no such option (nearest: share); it has count, share"),
        ({"zzz": 1}, "zzz=1: toy has no such option; it has count, share"),
        ({"share": 1.1}, "share=1.1: must be a number between 0 and 1"),
        ({"share": float("nan")}, "share=nan: must be a number between 0 and 1"),
        ({"share": True}, "share=True: must be a number between 0 and 1"),
        ({"count": 0}, "count=0: must be a whole number from 1 to 500"),
        ({"count": 2.5}, "count=2.5: must be a whole number from 1 to 500"),
        ({"count": float("inf")}, "count=inf: must be a whole number from 1 to 500"),
        ({"count": True}, "count=True: must be a whole number from 1 to 500"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    for refuse in (lambda: ONCE.check_options("toy", options), lambda: ONCE.rows("toy", "train", 1, 0, options)):
        with pytest.raises(ValueError) as error:
            refuse()
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("split", "size", "message"),
    [("tset", 1, "split=tset: must be one of train, validation, test"), ("train", 0, "size=0: must be >= 1")],
)
def test_other_mistakes(split: str, size: int, message: str) -> None:
    with pytest.raises(ValueError) as error:
        ONCE.rows("toy", split, size, 0, {})
    assert str(error.value) == message
