"""`job=clean`: what goes and, above all, what stays."""

from pathlib import Path

import pytest

from runners import lock
from runners.compose import RunSpec
from runners.record import Recorder
from runners.sweep import check_all
from tests.command import UNTRAINED, retable, write_plugin
from tests.runs import write_checkpoint, write_done

CHILD = ["model=hf", 'model.from_run=["model=mini_random"]', "method=untrained", "evaluation=none", "tracker=none"]


def fill(spec: RunSpec, *, done: bool = True) -> Path:
    """A run's folder with all that can lie in one: 1 MB in each of two checkpoints, the weights and a leftover."""
    folder = write_done(spec) if done else spec.folder
    if not done:
        Recorder(spec).open({})
    write_checkpoint(folder, 100, size=10**6, **{"train/loss": 1.0})
    write_checkpoint(folder, 200, size=10**6, **{"train/loss": 2.0})
    for name in ("model", "checkpoints/writing-step-000300", "model.writing"):
        (folder / name).mkdir()
        (folder / name / "weights").write_bytes(b"x" * 10**6)
    former = folder.with_name(f"{folder.name}.before-20260101-000000")
    former.mkdir()
    (former / "result.json").write_text("{}")
    return folder


@pytest.fixture
def folder(composer: Path) -> Path:
    ((_, (spec,)),) = check_all(list(UNTRAINED))
    return fill(spec)


def left_in(folder: Path) -> set[str]:
    names = {path.name for path in folder.iterdir()} & {"checkpoints", "model", "model.writing"}
    names |= {path.name for path in (folder / "checkpoints").glob("*")}
    return names | {"before" for _ in folder.parent.glob(f"{folder.name}.before-*")}


@pytest.mark.parametrize(
    ("keep", "left", "freed"),
    [
        ("last", {"model", "before"}, 5.0 - 1.0),
        ("none", set(), 5.0),
        ("best", {"model", "before", "checkpoints", "step-000100"}, 3.0),
        ("all", {"model", "before", "checkpoints", "step-000100", "step-000200"}, 2.0),
    ],
)
def test_keep_says_what_stays(folder: Path, keep: str, left: set[str], freed: float) -> None:
    ended = retable(*UNTRAINED, "job=clean", f"keep={keep}")
    assert ended.code == 0, ended.err
    assert left_in(folder) == left
    assert (folder / "result.json").is_file()
    assert ended.out.splitlines()[-1] == f"{freed:.1f} MB freed in 1 run of 1"
    assert folder.name in ended.out
    again = retable(*UNTRAINED, "job=clean", f"keep={keep}")
    assert again.out == "0.0 MB freed in 0 runs of 1\n"


def test_the_best_is_the_metric_the_command_names(folder: Path) -> None:
    assert retable(*UNTRAINED, "job=clean", "keep=best", "best_is=higher").code == 0
    assert "step-000200" in left_in(folder) and "step-000100" not in left_in(folder)


def test_without_the_metric_every_checkpoint_stays(folder: Path) -> None:
    ended = retable(*UNTRAINED, "job=clean", "keep=best", "best_metric=eval/acc")
    assert "checkpoints kept: none has the metric eval/acc" in ended.out
    assert {"step-000100", "step-000200"} <= left_in(folder)


@pytest.mark.parametrize("keep", ["none", "last"])
def test_a_run_that_is_not_done_keeps_everything(composer: Path, keep: str) -> None:
    ((_, (spec,)),) = check_all(list(UNTRAINED))
    folder = fill(spec, done=False)
    before = left_in(folder)
    ended = retable(*UNTRAINED, "job=clean", f"keep={keep}")
    assert ended.code == 0 and left_in(folder) == before
    assert "kept, as it is not done" in ended.out and "0.0 MB freed in 0 runs of 1" in ended.out


def test_a_run_at_work_keeps_everything(folder: Path) -> None:
    before = left_in(folder)
    with lock.held(folder, patience=0):
        ended = retable(*UNTRAINED, "job=clean", "keep=none")
    assert ended.code == 0 and left_in(folder) == before
    assert f"{folder.name}: kept: {folder.name} is worked on by process" in ended.out


def test_weights_that_only_a_done_child_started_from_go(composer: Path) -> None:
    ((_, (child,)),) = check_all(CHILD)
    assert child.parent is not None
    fill(child)
    parent = fill(child.parent)
    ended = retable(*child.parent.overrides, "job=clean", "keep=none")
    assert ended.code == 0 and "model" not in left_in(parent)


def test_weights_that_another_cell_of_the_command_starts_from_stay(composer: Path) -> None:
    plugin = write_plugin(composer / "plugin")
    table = plugin / "conf/experiment/tried/table.yaml"
    start = table.read_text().index("      - model=mini_random")
    end = table.read_text().index("      - training.steps=1")
    child = """      - model=hf\n      - 'model.from_run=["experiment=tried/table","row=sft"]'\n"""
    text = table.read_text()[:start] + child + table.read_text()[end:]
    table.with_name("child.yaml").write_text(text.replace("tried/table\n", "tried/child\n", 1))
    words = [f"plugins={plugin}", "experiment=tried/table,tried/child", "row=sft", "seed=1", "tracker=none"]
    (_, (parent,)), (_, (child_spec,)) = check_all(words)
    assert child_spec.parent is not None and child_spec.parent.folder == parent.folder
    fill(parent)
    fill(child_spec)
    ended = retable("-m", *words, "job=clean", "keep=none")
    assert ended.code == 0 and left_in(parent.folder) == {"model"} and left_in(child_spec.folder) == set()
    assert f"{parent.name}: final weights kept: {child_spec.name} starts from them" in ended.out


def test_weights_that_an_unfinished_child_needs_stay(composer: Path) -> None:
    ((_, (child,)),) = check_all(CHILD)
    assert child.parent is not None
    Recorder(child).open({})
    parent = fill(child.parent)
    ended = retable(*child.parent.overrides, "job=clean", "keep=none")
    assert ended.code == 0 and left_in(parent) == {"model"}
    assert f"final weights kept: {child.name} starts from them" in ended.out


def test_weights_that_an_unfinished_merging_run_needs_stay(composer: Path) -> None:
    """Those of its run, and those that its run started from."""
    tuned = ["model=hf", "model.from_run=['model=mini_random']", "evaluation=none"]
    words = ["method=merging/wise_ft", f"model.from_run=[{','.join(map(repr, tuned))}]", "tracker=none"]
    ((_, (merged,)),) = check_all(words)
    Recorder(merged).open({})
    for needed in merged.needed:
        folder = fill(needed)
        ended = retable(*needed.overrides, "job=clean", "keep=none")
        assert ended.code == 0 and left_in(folder) == {"model"}
        assert f"final weights kept: {merged.name} starts from them" in ended.out
    assert len(merged.needed) == 2


def test_weights_that_an_unfinished_run_knows_by_another_name_stay(composer: Path) -> None:
    ((_, (child,)),) = check_all(CHILD)
    assert child.parent is not None
    Recorder(child).open({})
    words = [*child.parent.overrides, f"plugins={write_plugin(composer / 'plugin')}"]
    table = composer / "plugin/conf/experiment/tried/table.yaml"
    table.write_text(
        "# @package experiment\nname: tried/table\nrows: {own: {overrides: [model=mini_random]}}\n"
        "scales: {mini: {setting: ours, seeds: [1]}}\ncolumns: {}\n"
    )
    ((_, (same,)),) = check_all([*words, "experiment=tried/table", "row=own"])
    assert same.identity == child.parent.identity and same.name != child.parent.name
    parent = fill(same)
    ended = retable(*words, "experiment=tried/table", "row=own", "job=clean", "keep=none")
    assert ended.code == 0 and left_in(parent) == {"model"}
    assert f"final weights kept: {child.name} starts from them" in ended.out


def test_only_the_runs_that_the_command_means_are_cleaned(composer: Path) -> None:
    ((_, specs),) = check_all([*UNTRAINED, "seed=1,2,3"])
    for spec in specs:
        fill(spec)
    assert retable("-m", *UNTRAINED, "seed=1,3", "job=clean").code == 0
    assert ["checkpoints" in left_in(spec.folder) for spec in specs] == [False, True, False]


def test_what_has_not_run_is_nothing_to_clean(composer: Path) -> None:
    ended = retable("-m", *UNTRAINED, "seed=1,2", "job=clean", "keep=none")
    assert (ended.code, ended.out) == (0, "0.0 MB freed in 0 runs of 2\n")
    assert not list(Path().rglob("*"))
