"""The command: what runs, what is skipped, what fails, and what is printed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.plugins.completion_plugin import CompletionPlugin

from tests.command import METHOD, TINY, UNTRAINED, Ended, forget_sources, retable, write_plugin

SCRIPT = Path(sys.executable).with_name("retable")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory: the test's own."""
    monkeypatch.chdir(tmp_path)
    forget_sources()
    yield tmp_path
    forget_sources()


@pytest.fixture
def table(here: Path) -> list[str]:
    """What names the made-up experiment: rows plain (seed 0), sft and flow (seeds 1, 2)."""
    return [f"plugins={write_plugin(here / 'plugin')}", "experiment=tried/table", "tracker=none"]


def results(outputs: str = "outputs") -> dict[str, dict]:
    """Every result below a folder, by the start of the run's name."""
    found = {path.parent.name: json.loads(path.read_text()) for path in Path(outputs).rglob("result.json")}
    return {name.rpartition("-")[0]: result for name, result in sorted(found.items())}


def lines(ended: Ended, start: str) -> list[str]:
    return [line for line in ended.err.splitlines() if line.startswith(start)]


# One run -----------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_record_and_is_skipped_when_done() -> None:
    first = retable(*TINY)
    assert first.code == 0, first.err
    (folder,) = Path("outputs/runs").glob("[!.]*")
    assert {"config.yaml", "environment.json", "metrics.jsonl", "result.json", "run.log", "model"} <= set(
        os.listdir(folder)
    )
    assert f"Result: {folder}/result.json" in first.out and "train/loss" in first.out
    written = (folder / "result.json").stat().st_mtime_ns
    again = retable(*TINY)
    assert again.code == 0 and (folder / "result.json").stat().st_mtime_ns == written
    assert again.err.splitlines() == [f"skipped: {folder.name} is done ({folder}/result.json)"]
    assert "train/loss" in again.out


def test_a_done_run_is_skipped_without_importing_torch() -> None:
    retable(*UNTRAINED)
    code = "import sys; from runners.main import main; main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, *UNTRAINED], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "is done" in done.stderr, done.stderr


def test_rerun_keeps_the_former_folder() -> None:
    retable(*UNTRAINED)
    assert retable(*UNTRAINED, "rerun=stale").err.startswith("skipped")
    assert retable(*UNTRAINED, "rerun=all").code == 0
    assert sorted("before" in path.parent.name for path in Path("outputs").rglob("result.json")) == [False, True]


def test_a_stale_run_is_shown_skipped_and_done_again_on_demand(here: Path) -> None:
    plugin = write_plugin(here / "plugin", "aging")
    words = [*TINY, f"plugins={plugin}", "method=private/aging"]
    assert retable(*words).code == 0
    (plugin / "aging.py").write_text(METHOD.replace("self.config.scale *", "2 * self.config.scale *"))
    forget_sources()
    before = results()
    skipped = retable(*words)
    assert skipped.code == 0 and results() == before
    assert "is stale" in skipped.err and "rerun=stale" in skipped.err
    assert "stale" in retable("-m", *words, "seed=1,2").err
    (loss,) = [result["method_metrics"]["train/loss"] for name, result in before.items()]
    del sys.modules["aging"]  # a new process would read it anew
    assert retable(*words, "rerun=stale").code == 0
    kept = [path for path in Path("outputs/runs").iterdir() if ".before-" in path.name]
    assert len(kept) == 1
    assert json.loads((kept[0] / "result.json").read_text())["method_metrics"]["train/loss"] == loss
    new = results()["private_aging-mini_random-s1"]["method_metrics"]["train/loss"]
    assert new == pytest.approx(2 * loss, rel=0.05)


# Sweeps ------------------------------------------------------------------------------------------------------


def test_a_table_is_rows_times_seeds_and_runs_once(table: list[str]) -> None:
    first = retable("-m", *table)
    assert first.code == 0, first.err
    assert list(results()) == [
        "flow-mini_random-s1",
        "flow-mini_random-s2",
        "plain-mini_random-s0",
        "sft-mini_random-s1",
        "sft-mini_random-s2",
    ]
    assert "5 of 5 cells to run" in first.err
    assert "A table of three rows" in first.out and "FLOW ends lower" in first.out
    folder = Path("outputs/tried/table/table-mini")
    assert {path.suffix for path in folder.iterdir()} >= {".md", ".csv", ".tex", ".html"}
    again = retable("-m", *table)
    assert again.code == 0 and len(lines(again, "skipped: ")) == 5 and "A table of three rows" in again.out
    assert "is done" in retable(*table, "row=flow", "seed=2").err


def test_a_sweep_of_ones_own_multiplies_and_has_a_table() -> None:
    swept = retable("-m", *TINY, "training.steps=1", "optimizer.lr=1e-3,1e-2", "dataset.size=8,9")
    assert swept.code == 0, swept.err
    assert len(list(Path("outputs/runs").glob("*/result.json"))) == 4
    assert "training loss" in swept.out
    rows = [line for line in swept.out.splitlines() if "optimizer.lr=" in line]
    assert len(rows) == 4 and "dataset.size=8 optimizer.lr=0.001" in rows[0]


def test_a_sweep_without_anything_measured_is_no_failure() -> None:
    swept = retable("-m", *UNTRAINED)
    assert swept.code == 0 and len(results()) == 1
    assert "no table" in swept.err


def test_all_cells_are_checked_before_the_first_starts(table: list[str]) -> None:
    path = Path("plugin/conf/experiment/tried/table.yaml")
    path.write_text(path.read_text().replace("[method=finetune/flow]", "[method=finetune/flow, method.temperature=-1]"))
    ended = retable("-m", *table, "row=plain,flow")
    assert ended.code == 1 and ended.error == (
        "method.temperature=-1: should be greater than 0 or should be 'median' (2 cells)"
    )
    assert not list(Path("outputs").rglob("*"))


def test_a_table_that_does_not_fit_together_is_told_before_the_first_cell_starts(table: list[str]) -> None:
    path = Path("plugin/conf/experiment/tried/table.yaml")
    path.write_text(path.read_text().replace("beats: sft, column: loss", "beats: sft, column: los"))
    ended = retable("-m", *table)
    assert ended.code == 1 and ended.error.startswith("experiment=tried/table: claims[0].column must be a column")
    assert not list(Path("outputs").rglob("*"))


def test_every_problem_is_told_once() -> None:
    ended = retable("-m", *UNTRAINED, "method=untrained,finetune/flwo", "optimizer.lr=-1", "seed=1,2")
    assert ended.code == 1 and len(ended.err.splitlines()) == 1
    assert ended.error.count("optimizer.lr=-1: must be a number greater than 0 (2 cells)") == 1
    assert ended.error.count("method=finetune/flwo: no such choice") == 1


def test_a_failing_cell_stops_no_other_and_is_listed_at_the_end(here: Path) -> None:
    failing = METHOD.replace(
        '"""The scaled loss."""', 'if self.config.scale == 7:\n            raise RuntimeError("it broke\\nbadly")'
    )
    plugin = write_plugin(here / "plugin", "fragile", failing)
    words = [*TINY, f"plugins={plugin}", "method=private/fragile", "method.scale=7,1"]
    ended = retable("-m", *words)
    assert ended.code == 1
    assert len(results()) == 1
    tail = ended.err[ended.err.index("retable: ") :].splitlines()
    assert tail[0] == "retable: 1 of 2 cells failed:" and len(tail) == 2
    assert "RuntimeError: it broke (log: outputs/runs/private_fragile-mini_random-s1" in tail[1]
    log = Path(tail[1].rpartition("log: ")[2].rstrip(")"))
    assert "Traceback" in log.read_text() and "fragile.py" in log.read_text()
    assert json.loads((log.parent / "failure.json").read_text())["error"] == "RuntimeError: it broke"
    assert not (log.parent / "result.json").exists()
    assert "method.scale=7" in ended.out and "failed" in ended.out  # the table is shown all the same
    # Typed again, only what failed runs.
    assert "1 of 2 cells to run" in retable("-m", *words).err


def test_when_every_cell_fails_they_are_listed() -> None:
    Path("data.jsonl").write_text('{"question": "x", "answer": "y"}\n')
    words = [word for word in TINY if not word.startswith("dataset")]
    ended = retable("-m", *words, "dataset=file", "dataset.path=data.jsonl", "seed=1,2")
    assert ended.code == 1 and "2 of 2 cells failed:" in ended.err
    listed = ended.err[ended.err.index("2 of 2 cells failed:") :]
    assert listed.count("the data set has no column 'prompt'") == 2


def test_children_of_one_parent_train_it_once() -> None:
    parent = ",".join(f'"{word}"' for word in TINY if not word.startswith("tracker"))
    words = ["model=hf", f"model.from_run=[{parent}]", "evaluation=none", "tracker=none", "method=untrained"]
    ended = retable("-m", *words, "seed=1,2")
    assert ended.code == 0, ended.err
    assert len(results()) == 3 and len(lines(ended, "run finetune_sft-mini_random-s1")) == 1
    child = results()["untrained-hf-s2"]
    assert child["parent"].startswith("finetune_sft-mini_random-s1-")


# Other jobs --------------------------------------------------------------------------------------------------


def test_list_shows_every_name() -> None:
    ended = retable("job=list")
    assert ended.code == 0
    for name in ("flow/language", "finetune/sft", "gemma_2_2b", "metamath_qa", "mini_world", "zero3"):
        assert name in ended.out
    assert retable("-m", "job=list").out == ended.out


def test_table_of_what_has_not_run(table: list[str]) -> None:
    ended = retable(*table, "job=table", "row=plain")
    assert ended.code == 0 and "missing" in ended.out and not results()


def test_table_of_no_experiment_and_no_run() -> None:
    ended = retable(*UNTRAINED, "job=table")
    assert ended.code == 1 and ended.error.startswith("job=table: no run of runs is done")


# Plugins and decoys ------------------------------------------------------------------------------------------


def test_a_private_method_is_found_checked_and_run(here: Path) -> None:
    plugin = write_plugin(here / "elsewhere", "private_one")
    words = [*TINY, f"plugins={plugin}", "method=private/private_one"]
    assert "private/private_one" in retable("job=list", f"plugins={plugin}").out
    assert retable(*words, "method.scale=-1").error == "method.scale=-1: should be greater than 0"
    assert retable(*words, "+method.scael=1").error == "method.scael=1: unknown key (nearest: scale)"
    assert retable(*words, "method.scale=2").code == 0
    (result,) = results().values()
    assert result["method"] == "private/private_one"
    unknown = retable(*TINY, "method=private/private_one")
    assert unknown.code == 1 and "no such choice" in unknown.error


def test_folders_of_the_same_names_in_the_working_directory_do_not_win(here: Path) -> None:
    for package in ("conf", "evals", "methods", "runners"):
        (here / package).mkdir()
        (here / package / "__init__.py").write_text("raise RuntimeError('the decoy was imported')\n")
    (here / "conf" / "config.yaml").write_text("decoy: true\n")
    # Composes, reads the method's signature, and looks for a result.
    done = subprocess.run([SCRIPT, *UNTRAINED, "job=table"], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "retable: job=table: no run of runs is done and measured"


# Tab completion ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("method=fine", {"method=finetune/flow", "method=finetune/sft"}),
        ("experiment=flow/l", {"experiment=flow/language", "experiment=flow/language_llama"}),
        ("-m meth", {"method="}),
        ("exp", {"experiment="}),
        ("training.st", {"training.steps="}),
        ("method=finetune/flow method.te", {"method.temperature="}),
        ("tracker=", {"tracker=none", "tracker=wandb"}),
    ],
)
def test_tab_completion(typed: str, offered: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompletionPlugin, "_query_config_groups", CompletionPlugin._query_config_groups)
    monkeypatch.setenv("COMP_LINE", f"retable {typed}")
    assert offered <= set(retable("-sc", "query=bash").out.split())


def test_tab_completion_knows_plugins(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = write_plugin(here / "plugin")
    monkeypatch.setattr(CompletionPlugin, "_query_config_groups", CompletionPlugin._query_config_groups)
    monkeypatch.setenv("COMP_LINE", f"retable plugins={plugin} method=pri")
    assert retable("-sc", "query=bash").out.split() == ["method=private/mine"]


def test_a_sweep_of_rows_takes_keys_that_only_its_rows_have(tmp_path: Path) -> None:
    """Hydra knows the default method's keys alone before the rows are there."""
    words = ["experiment=bandits/standard", "scale=mini", "tracker=none", f"outputs={tmp_path}"]
    ended = retable("-m", *words, "row=ucb,thompson", "seed=1", "dataset.horizon=300", "dataset.repetitions=2")
    assert ended.code == 0, ended.err
    assert len(list(tmp_path.glob("bandits/standard/*/result.json"))) == 2
    wrong = retable("-m", *words, "row=ucb,thompson", "seed=1", "method.width=3.0")
    assert wrong.code == 1 and "method.width=3.0" in wrong.err and "Traceback" not in wrong.err
