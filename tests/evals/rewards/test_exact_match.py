"""Equality of text: white space, what follows a marker, first lines."""

import pytest

from evals.rewards.exact_match import exact


def score(response: str, reference: str, **options) -> float | None:
    return exact([""], [response], [reference], **options)[0]


@pytest.mark.parametrize(("response", "reference", "options", "expected"), [
    ("19", "19", {}, 1),
    ("  I   TURN\nLEFT ", "I TURN LEFT", {}, 1),
    ("19.0", "19", {}, 0),
    ("a b", "ab", {}, 0),
    ("A", "a", {}, 0),
    ("", "19", {}, 0),
    ("19", " \n", {}, None),
    ("12+7=19", "19", {"after": "="}, 1),
    ("12+7=19", "3+16=19", {"after": "="}, 1),
    ("1=1, 12+7=19", "19", {"after": "="}, 1),
    ("19", "19", {"after": "="}, 0),  # without the marker
    ("12+7=", "19", {"after": "="}, 0),
    ("so\n#### 42 ", "long\n#### 42", {"after": "#### "}, 1),
    ("x", "19=", {"after": "="}, None),
    ("\n 19\n8+8=16", "19", {"first_line": True}, 1),
    ("\n 19\n8+8=16", "19", {}, 0),
    ("#### 42\nmore", "42", {"after": "#### ", "first_line": True}, 1),
    ("", "42", {"first_line": True}, 0),
])  # fmt: skip
def test_equality(response, reference, options, expected) -> None:
    assert score(response, reference, **options) == expected


def test_in_order() -> None:
    assert exact(["a", "b", "c"], ["1", "2", "3"], ["1", "1", ""]) == [1, 0, None]


def test_an_empty_marker() -> None:
    with pytest.raises(ValueError, match="after='': must be some text or null"):
        score("1", "1", after="")
