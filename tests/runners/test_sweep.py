"""Which cells are left to run, and what is said of the others; results in further folders."""

import logging
from pathlib import Path

import pytest

from runners import compose, record
from runners.compose import run_spec
from runners.errors import UserError
from runners.sweep import check_all, left_to_run
from tests.command import UNTRAINED, retable
from tests.runs import write_done

WORDS = [*UNTRAINED]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="runners")
    return caplog


def age(folder: Path) -> None:
    """Make a result that of another source."""
    path = folder / "result.json"
    found = record.read_result(folder)
    assert found is not None
    record.write_json(path, {**found, "source": "of before"})


def test_few_done_cells_get_a_line_each(composer: Path, lines: pytest.LogCaptureFixture) -> None:
    ((_, specs),) = checked = check_all([*WORDS, "seed=range(1,8)"])
    for spec in specs[:5]:
        write_done(spec)
    assert left_to_run(checked) == specs[5:]
    assert [line for line in lines.messages if "skipped" in line] == [
        f"skipped: {spec.name} is done ({spec.folder}/result.json)" for spec in specs[:5]
    ]


def test_many_done_cells_get_one_line(composer: Path, lines: pytest.LogCaptureFixture) -> None:
    ((_, specs),) = checked = check_all([*WORDS, "seed=range(1,8)"])
    for spec in specs[:6]:
        write_done(spec)
    assert left_to_run(checked) == specs[6:]
    assert lines.messages == ["skipped: 6 of 7 cells are done"]


def test_every_stale_cell_is_named_in_one_line(composer: Path, lines: pytest.LogCaptureFixture) -> None:
    words = [*WORDS, "seed=range(1,9)", "training.batch_size=8,16"]
    ((_, specs),) = checked = check_all(words)
    for spec in specs:
        write_done(spec)
    for spec in specs[::3]:
        age(spec.folder)
    assert left_to_run(checked) == []
    (line,) = [line for line in lines.messages if "stale" in line]
    assert line == (
        "skipped: 6 of 16 cells are stale (the source of its method, evaluation or engine has changed): "
        "training.batch_size=8 seeds 1, 4, 7; training.batch_size=16 seeds 2, 5, 8; rerun=stale runs them again"
    )
    lines.clear()
    assert left_to_run(check_all([*words, "rerun=stale"])) != []
    assert not [line for line in lines.messages if "stale" in line]


def test_rerun_chooses_what_runs_again(composer: Path) -> None:
    ((_, specs),) = check_all([*WORDS, "seed=1,2,3"])
    write_done(specs[0])
    write_done(specs[1])
    age(specs[1].folder)
    for again, seeds in {"missing": [3], "stale": [2, 3], "all": [1, 2, 3]}.items():
        assert [spec.seed for spec in left_to_run(check_all([*WORDS, "seed=1,2,3", f"rerun={again}"]))] == seeds


# Cells that differ only in their seed -----------------------------------------------------------------------


@pytest.mark.parametrize("words", [["experiment=flow/language", "row=flow"], ["dataset.size=9"], ["model=mini_random"]])
def test_a_seed_set_afterwards_is_the_same_run(composer: Path, words: list[str]) -> None:
    for seed in (3, 4):  # the second uses what was composed for the first
        quick = run_spec([*words, f"seed={seed}"])
        whole = run_spec([*words, f"seed={seed}"], composed=compose._compose(tuple(quick.overrides)))
        assert quick.config == whole.config and quick.identity == whole.identity
        assert quick.seed == quick.config["dataset"]["seed"] == seed


def test_a_run_without_a_seed_has_the_default_one(composer: Path) -> None:
    for seed in (7, 0):
        assert run_spec([*WORDS, f"seed={seed}"]).seed == seed
        assert run_spec(list(WORDS)).seed == 1


def test_cells_share_the_parent_that_was_checked_once(composer: Path) -> None:
    ((_, specs),) = check_all(["experiment=flow/language", "row=pretrained,sft,flow"])
    assert len({id(spec.parent) for spec in specs}) == 1 and specs[0].parent is not None
    alone = run_spec(specs[-1].overrides)
    assert alone.identity == specs[-1].identity and alone.parent == specs[-1].parent


@pytest.mark.parametrize("words", [["~seed"], ["seed=null"], ["seed=1.5"], ["+seed=3"]])
def test_a_seed_that_is_none_is_refused_all_the_same(composer: Path, words: list[str]) -> None:
    with pytest.raises(UserError):
        run_spec([*WORDS, *words])


# Several output folders --------------------------------------------------------------------------------------


def test_half_the_seeds_here_and_half_elsewhere_are_one_table(composer: Path) -> None:
    for outputs, seeds in {"outputs": "1,2", "cluster": "3,4"}.items():
        ((_, specs),) = check_all([*WORDS, f"outputs={outputs}", f"seed={seeds}"])
        for spec in specs:
            write_done(spec, loss=float(spec.seed))
    ended = retable("-m", *WORDS, "seed=1,2,3,4", "runs_from=[cluster]")
    assert ended.code == 0, ended.err
    assert "cells to run" not in ended.err and ended.err.count("is done") == 4
    assert "2.5" in ended.out and "(4)" in ended.out  # the mean of 1, 2, 3, 4
    assert len(list(Path("outputs/runs").glob("*/result.json"))) == 2
    table = retable("-m", *WORDS, "seed=1,2,3,4", "runs_from=[cluster]", "job=table")
    assert table.out == ended.out
    without = retable("-m", *WORDS, "seed=1,2,3,4", "job=table")
    assert "(2 of 4)" in without.out


def test_a_stale_run_elsewhere_is_stale_here(composer: Path) -> None:
    ((_, (there,)),) = check_all([*WORDS, "outputs=cluster", "seed=1"])
    age(write_done(there))
    ((_, (here,)),) = check_all([*WORDS, "seed=1", "runs_from=[cluster]"])
    assert (record.status(here).state, record.status(here).folder) == ("stale", there.folder)
    write_done(here)  # a done one wins, wherever it is
    assert record.status(here).state == "done"


@pytest.mark.parametrize("words", [(), ("-m",), ("-m", "job=table"), ("-m", "job=status")])
def test_a_further_folder_that_is_not_there_is_named(composer: Path, words: tuple[str, ...]) -> None:
    ended = retable(*words, *WORDS, "runs_from=[cluster]")
    assert ended.code == 1 and ended.err == "retable: runs_from=cluster: no such folder\n"


def test_parents_are_found_in_further_folders_too(composer: Path) -> None:
    child = ["model=hf", 'model.from_run=["model=mini_random"]', "method=untrained", "tracker=none"]
    ((_, (there,)),) = check_all([*child, "outputs=cluster"])
    assert there.parent is not None
    write_done(there.parent)
    ((_, (here,)),) = check_all([*child, "runs_from=[cluster]"])
    assert here.parent is not None
    assert (record.status(here.parent).state, record.status(here.parent).folder) == ("done", there.parent.folder)


def test_a_folder_that_is_not_there_is_a_mistake(composer: Path) -> None:
    with pytest.raises(UserError, match="runs_from=nowhere: no such folder"):
        check_all([*WORDS, "runs_from=[nowhere]"])
