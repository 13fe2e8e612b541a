"""Every experiment composes at every scale; a preset makes other runs of it."""

import pytest

from runners.compose import run_spec
from runners.expand import choices, seeds_of
from runners.sweep import check_all
from tests.experiments.every import ALLOWED, EXPERIMENTS, ROOTS, ROWS, TABLES, slow_unless


@pytest.mark.parametrize(("name", "scale"), TABLES)
def test_every_row_composes_and_passes_the_check(composer: None, name: str, scale: str) -> None:
    """At its first seed; of a row's sweep the first value."""
    experiment = EXPERIMENTS[name]
    firsts = {experiment["rows"][row].get("group") or row: row for row in reversed(ROWS[name])}
    rows = [row for row in ROWS[name] if row in firsts.values()]
    seeds = {row: seeds_of(experiment, row, scale)[0] for row in rows}
    for seed in set(seeds.values()):
        of_seed = [row for row in rows if seeds[row] == seed]
        words = [f"experiment={name}", f"scale={scale}", f"row={','.join(of_seed)}", f"seed={seed}", ALLOWED]
        ((plan, specs),) = check_all(words)
        assert [(spec.row, spec.seed) for spec in specs] == [(row, seed) for row in of_seed]
        assert plan.scale == scale and {(spec.experiment, spec.scale) for spec in specs} == {(name, scale)}
        assert len({spec.identity for spec in specs}) == len(specs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), TABLES)
def test_every_cell_composes_and_passes_the_check(composer: None, name: str, scale: str) -> None:
    experiment = EXPERIMENTS[name]
    ((plan, specs),) = check_all([f"experiment={name}", f"scale={scale}", ALLOWED])
    assert [(spec.row, spec.seed) for spec in specs] == [
        (row, seed) for row in ROWS[name] for seed in seeds_of(experiment, row, scale)
    ]
    assert plan.scale == scale and {(spec.experiment, spec.scale) for spec in specs} == {(name, scale)}
    assert len({spec.folder for spec in specs}) == len(specs)


@pytest.mark.parametrize(("name", "scale"), [slow_unless(table[0] == "flow/language", *table) for table in TABLES])
@pytest.mark.parametrize("preset", choices("debug", ROOTS))
def test_a_preset_makes_other_runs_and_another_table_of_it(composer: None, name: str, scale: str, preset: str) -> None:
    words = [f"experiment={name}", f"scale={scale}", f"row={next(iter(EXPERIMENTS[name]['rows']))}", ALLOWED]
    ((plan, specs),) = check_all(words)
    ((debug_plan, debug_specs),) = check_all([*words, f"debug={preset}"])
    assert not {spec.folder for spec in specs} & {spec.folder for spec in debug_specs}
    assert debug_plan.variant not in ("", plan.variant)
    assert debug_plan.experiment["title"] == f"{EXPERIMENTS[name]['title']} (debug={preset})"
    assert all(entry["scale"] == "full, unchanged" for entry in debug_plan.experiment["published"])
    for spec in debug_specs:
        assert spec.choices["debug"] == preset and spec.config["tracker"]["name"] == "none"
        if spec.parent is not None:
            assert spec.parent.choices["debug"] == preset
            assert spec.parent.config["training"]["steps"] == spec.config["training"]["steps"]


def test_a_parent_is_a_debug_run_whatever_its_own_words_say(composer: None) -> None:
    words = ["model=hf", 'model.from_run=["experiment=mini/pretraining","training.steps=700","optimizer.lr=1e-4"]']
    (real, debug) = (run_spec([*words, *typed]).parent for typed in ([], ["debug=fast", "training.steps=5"]))
    assert real is not None and debug is not None and real.folder != debug.folder
    steps = [parent.config["training"]["steps"] for parent in (real, debug)]
    assert steps == [700, 2] and debug.config["optimizer"]["lr"] == 1e-4
