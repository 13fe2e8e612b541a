"""The penalty of repeated n-grams: counted by hand, and TRL's on words instead of token ids."""

import math
from random import Random

import pytest

from evals.rewards.repetition import repeated_ngrams


def penalty(text: str, **options) -> float:
    return repeated_ngrams(["?"], [text], **options)[0]


@pytest.mark.parametrize(("text", "options", "expected"), [
    ("a b c d e", {}, 0),
    ("a b c a b c", {}, -0.25),  # abc bca cab abc: three of four
    ("a  b\nc a b c", {}, -0.25),
    ("a a a a a a", {}, -0.75),
    ("a a a a a a", {"max_penalty": -2}, -1.5),
    ("a a b", {"n": 1}, -1 / 3),
    ("a b a b", {"n": 2}, -1 / 3),
    ("a b", {}, 0),
    ("", {"n": 1}, 0),
])  # fmt: skip
def test_by_hand(text, options, expected) -> None:
    assert penalty(text, **options) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_trl_on_the_same_words_as_ids(n) -> None:
    theirs = pytest.importorskip("trl.rewards").get_repetition_penalty_reward(n, -0.7)
    rng = Random(n)
    ids = [[int(rng.random() * 4) for _ in range(length)] for length in (0, 1, 3, 20, 60)]
    texts = [" ".join(map(str, one)) for one in ids]
    assert repeated_ngrams(texts, texts, n=n, max_penalty=-0.7) == pytest.approx(theirs(ids))


@pytest.mark.parametrize(("options", "said"), [
    ({"n": 0}, "n=0: must be at least 1"),
    ({"max_penalty": 0.1}, "max_penalty=0.1: must be a finite number <= 0"),
    ({"max_penalty": -math.inf}, "max_penalty=-inf: must be a finite number <= 0"),
    ({"max_penalty": math.nan}, "max_penalty=nan: must be a finite number <= 0"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(options, said) -> None:
    with pytest.raises(ValueError, match=said):
        penalty("a", **options)
