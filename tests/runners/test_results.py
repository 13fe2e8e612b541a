"""Results as a frame."""

from pathlib import Path

import pandas
import pytest

from runners import results
from runners.errors import UserError
from runners.record import set_aside
from runners.sweep import check_all
from tests.command import UNTRAINED, write_plugin
from tests.runs import write_done

METRICS = {"copy": {"acc,none": 0.5, "acc_stderr,none": 0.1}}


@pytest.fixture
def filled(composer: Path) -> Path:
    """Two runs of no experiment in `outputs`, three of an experiment in `cluster`."""
    ((_, specs),) = check_all([*UNTRAINED, "seed=1,2"])
    for spec in specs:
        write_done(spec, loss=spec.seed / 2, metrics=METRICS)
    plugin = write_plugin(composer / "plugin")
    ((_, specs),) = check_all(
        [f"plugins={plugin}", "experiment=tried/table", "row=plain,sft", "tracker=none", "outputs=cluster"]
    )
    for spec in specs:
        write_done(spec)
    return composer


def test_a_row_for_each_run(filled: Path) -> None:
    frame = results.load()
    assert list(frame.columns[: len(results.COLUMNS)]) == list(results.COLUMNS)
    assert list(frame["seed"]) == [1, 2] and set(frame["experiment"]) == {"runs"}
    assert list(frame["train/loss"]) == [0.5, 1.0]
    assert list(frame["copy/acc,none"]) == [0.5, 0.5] and "copy/acc_stderr,none" in frame
    assert list(frame["config.model.architecture.hidden_size"]) == [32, 32]
    assert frame["config.optimizer.betas"][0] == [0.9, 0.999]
    assert not [name for name in frame.columns if name.startswith("config.experiment")]
    folder = Path(frame["folder"][0])
    assert (folder / "result.json").is_file() and frame["name"][0] == folder.name
    assert str(frame["finished"].dtype).endswith("UTC]") and list(frame["seconds"]) == [2.0, 2.0]
    assert list(frame["method"]) == ["untrained"] * 2 and frame["identity"].nunique() == 2


def test_several_folders_and_filters(filled: Path) -> None:
    assert len(results.load(["outputs", "cluster"])) == 5
    own = results.load(["outputs", Path("cluster")], experiment="tried/table")
    assert sorted(own["row"]) == ["plain", "sft", "sft"] and "copy/acc,none" not in own
    assert len(results.load(["outputs", "cluster"], scale="full")) == 0
    assert len(results.load("cluster", "tried/table", "mini")) == 3


def test_former_results_are_left_out(filled: Path) -> None:
    set_aside(Path(results.load()["folder"][0]))
    assert list(results.load()["seed"]) == [2]


def test_an_empty_folder_gives_an_empty_frame(tmp_path: Path) -> None:
    frame = results.load(tmp_path)
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 0
    assert tuple(frame.columns) == results.COLUMNS


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="outputs=nowhere: no such folder"):
        results.load("nowhere")


def test_what_the_docstring_shows_works(filled: Path) -> None:
    runs = results.load(["outputs", "cluster"])
    pivot = runs.pivot_table("train/loss", index="config.optimizer.lr", columns="row")
    assert set(pivot.columns) == {"plain", "sft"}
