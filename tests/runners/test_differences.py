"""Configurations side by side."""

from runners.differences import Change, changes, dotted, shown


def test_nested_data_is_dotted() -> None:
    data = {"a": {"b": 1, "c": {}}, "tasks": [{"name": "x"}, {"name": "y", "limit": 3}], "betas": (0.9, 0.99), "d": []}
    assert dotted(data) == {
        "a.b": 1, "a.c": {}, "tasks.0.name": "x", "tasks.1.name": "y", "tasks.1.limit": 3, "betas": [0.9, 0.99], "d": []
    }  # fmt: skip


def test_changed_added_and_removed_keys() -> None:
    old = {"same": 1, "lr": 0.1, "gone": True, "list": [1, 2]}
    new = {"same": 1, "lr": 0.2, "list": [1, 3], "new": {"key": None}}
    assert changes(old, new) == [
        Change("lr", "0.1", "0.2"),
        Change("list", "[1, 2]", "[1, 3]"),
        Change("new.key", "(absent)", "null"),
        Change("gone", "true", "(absent)"),
    ]
    assert changes(old, old) == []


def test_null_and_absent_are_not_the_same() -> None:
    assert changes({}, {"a": None}) == [Change("a", "(absent)", "null")]


def test_one_and_true_are_not_the_same() -> None:
    assert [str(change) for change in changes({"a": 1}, {"a": True})] == ["a 1 -> true"]


def test_values_are_one_short_line() -> None:
    assert shown("a\n b") == "a b" and shown(False) == "false" and shown("") == "''"
    assert len(shown("x" * 100)) == 60 and shown("x" * 100).endswith("...")
