"""A resumed sweep is the same sweep: what the ledger of a table refuses, accepts and keeps."""

import json
from pathlib import Path

import pytest

from runners import sweep
from runners.errors import UserError
from runners.ledger import changed_lines, folder_of
from runners.sweep import Checked, check_all
from tests.command import UNTRAINED, forget_sources, retable, write_plugin
from tests.runs import write_done

YAML = Path("plugin/conf/experiment/tried/table.yaml")


@pytest.fixture
def words(composer: Path) -> list[str]:
    """What names the made-up experiment: rows plain (seed 0), sft and flow (seeds 1, 2)."""
    return [f"plugins={write_plugin(composer / 'plugin')}", "experiment=tried/table", "tracker=none"]


def begin(*words: str) -> Checked:
    """What the command does before its first cell starts."""
    checked = check_all(list(words))
    sweep.left_to_run(checked)
    return checked


def edit(old: str, new: str) -> None:
    text = YAML.read_text()
    assert old in text
    YAML.write_text(text.replace(old, new))
    forget_sources()


def run_all(checked: Checked, *rows: str) -> None:
    for plan, specs in checked:
        for cell, spec in zip(plan.cells, specs, strict=True):
            if not rows or cell.row in rows:
                write_done(spec)


def ledger(outputs: str = "outputs") -> dict:
    return json.loads(Path(f"{outputs}/tried/table/table-mini/cells.json").read_text())


def test_the_ledger_holds_every_cell_before_the_first_starts(words: list[str]) -> None:
    ((_, specs),) = begin(*words)
    written = ledger()
    assert {row: list(seeds) for row, seeds in written["cells"].items()} == {
        "plain": ["0"], "sft": ["1", "2"], "flow": ["1", "2"]
    }  # fmt: skip
    assert written["cells"]["sft"]["2"] == {"identity": specs[2].identity, "folder": specs[2].name}
    configuration = written["configurations"][specs[2].identity]
    assert configuration["optimizer"]["lr"] == 2e-3 and configuration["seed"] == 2
    assert "zero_stage" not in configuration["engine"]  # where it runs decides nothing


def test_the_same_command_is_the_same_sweep(words: list[str]) -> None:
    run_all(begin(*words))
    written = ledger()
    begin(*words)
    assert ledger() == written and not list(Path("outputs").rglob("cells.before-*"))


def test_changed_cells_are_refused_by_row_seeds_and_keys(words: list[str]) -> None:
    run_all(begin(*words))
    before = ledger()
    edit("optimizer.lr=2e-3", "optimizer.lr=3e-3, training.warmup_ratio=0.5")
    with pytest.raises(UserError) as error:
        begin(*words)
    told = str(error.value)
    assert told.startswith("changed=refuse: cells of tried/table have run with another configuration: ")
    assert "sft seeds 1, 2 (optimizer.lr 0.002 -> 0.003, training.warmup_ratio 0.03 -> 0.5)" in told
    assert "flow" not in told and "plain" not in told and "\n" not in told
    assert "changed=accept" in told and "outputs=" in told
    assert ledger() == before


def test_rows_of_the_same_change_are_told_together(words: list[str]) -> None:
    run_all(begin(*words))
    edit("training.steps=1", "training.steps=4")
    with pytest.raises(UserError, match=r"plain seed 0, sft seeds 1, 2, flow seeds 1, 2 \(training.steps 1 -> 4\)"):
        begin(*words)


def test_accepting_keeps_the_former_ledger_and_goes_on(words: list[str]) -> None:
    run_all(begin(*words))
    before = ledger()
    edit("optimizer.lr=2e-3", "optimizer.lr=3e-3")
    ((_, specs),) = begin(*words, "changed=accept")
    (kept,) = Path("outputs/tried/table/table-mini").glob("cells.before-*.json")
    assert json.loads(kept.read_text()) == before
    assert ledger()["cells"]["sft"]["1"]["identity"] == specs[1].identity
    assert ledger()["cells"]["flow"] == before["cells"]["flow"]
    assert set(ledger()["configurations"]) == {spec.identity for spec in specs}
    begin(*words)  # from now on, this is the sweep


def test_what_never_had_a_result_may_change(words: list[str]) -> None:
    run_all(begin(*words), "plain", "flow")
    edit("optimizer.lr=2e-3", "optimizer.lr=3e-3")
    ((_, specs),) = begin(*words)
    assert ledger()["cells"]["sft"]["1"]["identity"] == specs[1].identity


def test_more_seeds_and_rows_are_the_same_sweep(words: list[str]) -> None:
    run_all(begin(*words, "row=flow", "seed=1"))
    run_all(begin(*words, "row=sft,flow", "seed=7,8"))
    assert {row: sorted(seeds) for row, seeds in ledger()["cells"].items()} == {
        "flow": ["1", "7", "8"], "sft": ["7", "8"]
    }  # fmt: skip
    begin(*words)


def test_new_seeds_of_a_changed_row_are_refused(words: list[str]) -> None:
    run_all(begin(*words, "row=sft", "seed=1,2"))
    edit("optimizer.lr=2e-3", "optimizer.lr=3e-3")
    with pytest.raises(UserError, match=r"sft seed 1 \(optimizer.lr 0.002 -> 0.003\)"):
        begin(*words, "row=sft", "seed=3")
    begin(*words, "row=flow", "seed=3")  # another row of the same table
    begin(*words, "row=sft", "seed=3", "changed=accept")
    assert list(ledger()["cells"]["sft"]) == ["3"]
    begin(*words, "row=sft", "seed=4")


def test_another_folder_is_another_sweep(words: list[str]) -> None:
    run_all(begin(*words))
    edit("optimizer.lr=2e-3", "optimizer.lr=3e-3")
    begin(*words, "outputs=elsewhere")
    assert ledger("elsewhere")["cells"] != ledger()["cells"]


def test_results_in_a_further_folder_count(words: list[str]) -> None:
    run_all(begin(*words, "outputs=cluster"))
    begin(*words, "runs_from=[cluster]")
    edit("optimizer.lr=2e-3", "optimizer.lr=3e-3")
    with pytest.raises(UserError, match="sft seeds 1, 2"):
        begin(*words, "runs_from=[cluster]")


def test_a_changed_parent_is_told_by_its_keys(words: list[str]) -> None:
    lines = [line for line in YAML.read_text().splitlines(keepends=True) if "model.architecture" not in line]
    YAML.write_text("".join(lines))
    edit("- model=mini_random", """- model=hf\n      - 'model.from_run=["model=mini_random","training.steps=5"]'""")
    run_all(begin(*words, "row=sft", "seed=1"))
    edit("training.steps=5", "training.steps=6")
    with pytest.raises(UserError, match=r"sft seed 1 \(parent.training.steps 5 -> 6\)"):
        begin(*words, "row=sft", "seed=1")


def test_two_tables_are_refused_before_either_is_entered(words: list[str], composer: Path) -> None:
    other = YAML.with_name("another.yaml")
    other.write_text(YAML.read_text().replace("tried/table", "tried/another"))
    run_all(begin(*words))
    edit("optimizer.lr=2e-3", "optimizer.lr=3e-3")
    with pytest.raises(UserError, match="cells of tried/table"):
        begin(words[0], "experiment=tried/another,tried/table", "tracker=none")
    assert not Path("outputs/tried/another").exists()


def test_a_damaged_ledger_is_named(words: list[str]) -> None:
    begin(*words)
    Path("outputs/tried/table/table-mini/cells.json").write_text("[]")
    with pytest.raises(UserError, match=r"cells\.json: must be a ledger as it was written"):
        begin(*words)


def test_the_table_names_what_it_leaves_out(words: list[str]) -> None:
    run_all(begin(*words))
    ((plan, specs),) = check_all(words)
    assert changed_lines(plan, specs) == []
    edit("optimizer.lr=2e-3", "optimizer.lr=3e-3")
    ((plan, specs),) = check_all(words)
    assert changed_lines(plan, specs) == [
        "ran with another configuration, left out: sft seeds 1, 2 (optimizer.lr 0.002 -> 0.003)"
    ]
    assert folder_of(plan, specs[0]) == Path("outputs/tried/table/table-mini")


def test_the_command_refuses_and_the_table_warns(words: list[str]) -> None:
    run_all(begin(*words))
    edit("optimizer.lr=2e-3", "optimizer.lr=3e-3")
    refused = retable("-m", *words)
    assert refused.code == 1 and "sft seeds 1, 2 (optimizer.lr 0.002 -> 0.003)" in refused.error
    assert len(refused.err.splitlines()) == 1 and not refused.out
    table = retable(*words, "job=table")
    assert table.code == 0 and "left out: sft seeds 1, 2" in table.err and "missing" in table.out


def test_data_that_has_changed_is_told(composer: Path) -> None:
    data = Path("data.jsonl")
    data.write_text('{"prompt": "x", "answer": "y"}\n')
    words = [*UNTRAINED[:4], "tracker=none", "evaluation=none", "dataset=file", "dataset.path=data.jsonl", "seed=1,2"]
    run_all(begin(*words))
    data.write_text('{"prompt": "x", "answer": "z"}\n')
    with pytest.raises(UserError, match=r"seeds 1, 2 \(content\.dataset [0-9a-f]{16} -> [0-9a-f]{16}\)"):
        begin(*words)
