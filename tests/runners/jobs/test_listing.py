"""`job=list`: every name, with a line on what it is."""

from pathlib import Path

import pytest

from runners.expand import choices, config_roots, groups
from runners.jobs.listing import GROUPS, describe, show

ROOTS = config_roots([])


def test_every_group_is_listed() -> None:
    assert set(GROUPS) == groups(ROOTS)


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_has_a_line(group: str) -> None:
    names = choices(group, ROOTS)
    assert names
    for name in names:
        line = describe(group, name, ROOTS)
        assert len(line) > 5 and "\n" not in line, f"{group}={name} has no line that says what it is"


def test_the_listing_has_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    show([])
    printed = capsys.readouterr().out
    for group in GROUPS:
        assert f"{group}=" in printed
        for name in choices(group, ROOTS):
            assert name in printed


def test_papers_are_cited() -> None:
    assert "arXiv 2502.02797" in describe("method", "finetune/flow", ROOTS)
    assert "2502.02797" in describe("experiment", "flow/language", ROOTS)


def test_plugins_are_listed(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show([f"plugins={plugin}"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "private/mine Mine: SFT, scaled." in printed
    assert "tried/table A table of three rows" in printed and "rows: plain, sft, flow" in printed
