"""Which runs a command means: rows x seeds, and what multiplies them."""

from pathlib import Path

import pytest

from runners.errors import UserError
from runners.expand import value_of
from runners.plan import Plan, main_columns, numbers, plans
from runners.sweep import check_all
from runners.tables.experiment import Experiment
from tests.command import EXPERIMENT, retable
from tests.runs import write_done


@pytest.fixture
def words(plugin: Path) -> list[str]:
    """What names the made-up experiment: rows plain (seed 0), sft and flow (seeds 1, 2)."""
    return [f"plugins={plugin}", "experiment=tried/table"]


def cells(plan: Plan) -> list[tuple[str, int]]:
    return [(cell.row, cell.seed) for cell in plan.cells]


def test_an_experiment_means_its_rows_times_its_seeds(words: list[str]) -> None:
    (plan,) = plans(words)
    assert cells(plan) == [("plain", 0), ("sft", 1), ("sft", 2), ("flow", 1), ("flow", 2)]
    assert plan.scale == "mini" and plan.variant == ""
    for cell in plan.cells:
        assert value_of(cell.overrides, "row") == cell.row
        assert value_of(cell.overrides, "seed") == str(cell.seed)


def test_scale_chooses_seeds_and_overrides(words: list[str]) -> None:
    (plan,) = plans([*words, "scale=full"])
    assert cells(plan) == [("plain", 0), *[(row, seed) for row in ("sft", "flow") for seed in (1, 2, 3)]]
    assert all("model=qwen3_0_6b" in cell.overrides for cell in plan.cells)


def test_row_and_seed_restrict(words: list[str]) -> None:
    (plan,) = plans([*words, "row=flow"])
    assert cells(plan) == [("flow", 1), ("flow", 2)]
    (plan,) = plans([*words, "row=flow,sft", "seed=7"])
    assert cells(plan) == [("flow", 7), ("sft", 7)]


def test_a_row_of_its_own_seeds_keeps_them(words: list[str]) -> None:
    (plan,) = plans([*words, "seed=5,6"])
    assert cells(plan) == [("plain", 0), ("sft", 5), ("flow", 5), ("sft", 6), ("flow", 6)]
    assert plan.experiment["scales"]["mini"]["seeds"] == [5, 6]


def test_another_sweep_gives_rows_of_its_own(words: list[str]) -> None:
    (plan,) = plans([*words, "row=sft", "optimizer.lr=1e-3,1e-2", "training.steps=1,2"])
    assert cells(plan) == [
        (f"sft optimizer.lr={rate} training.steps={steps}", seed)
        for rate in ("0.001", "0.01")
        for steps in (1, 2)
        for seed in (1, 2)
    ]
    assert plan.experiment["rows"]["sft optimizer.lr=0.001 training.steps=2"]["label"] == (
        "SFT (optimizer.lr=0.001 training.steps=2)"
    )
    assert plan.variant  # its table is kept apart from the experiment's
    # A fixed value is typed by the user too, so it wins over the row's.
    assert all(value_of(cell.overrides, "optimizer.lr") != "2e-3" for cell in plan.cells)


def test_a_fixed_override_names_another_table_and_where_it_runs_does_not(words: list[str]) -> None:
    (plain,) = plans(words)
    (changed,) = plans([*words, "training.steps=9"])
    (elsewhere,) = plans([*words, "outputs=elsewhere", "tracker=none", "rerun=stale", "keep=none"])
    assert plain.variant == elsewhere.variant == "" and changed.variant


def test_several_experiments_are_several_tables(words: list[str], plugin: Path) -> None:
    text = (plugin / "conf" / "experiment" / "tried" / "table.yaml").read_text()
    (plugin / "conf" / "experiment" / "tried" / "other.yaml").write_text(text.replace("tried/table", "tried/other"))
    both = plans([words[0], "experiment=tried/table,tried/other", "row=flow"])
    assert [(plan.experiment["name"], cells(plan)) for plan in both] == [
        (name, [("flow", 1), ("flow", 2)]) for name in ("tried/table", "tried/other")
    ]


def test_two_scales_are_two_tables(words: list[str]) -> None:
    assert [(plan.scale, len(plan.cells)) for plan in plans([*words, "scale=mini,full"])] == [("mini", 5), ("full", 7)]


def test_every_plan_of_an_experiment_is_a_table(words: list[str]) -> None:
    for typed in ([], ["row=flow"], ["row=sft", "seed=4"], ["optimizer.lr=1,2"], ["scale=full", "row=plain"]):
        for plan in plans([*words, *typed]):
            built = Experiment.from_config(plan.experiment)
            assert list(built.rows) == list(dict.fromkeys(cell.row for cell in plan.cells))


def test_claims_and_published_entries_of_rows_not_shown_are_left_out(words: list[str]) -> None:
    (whole,) = plans(words)
    (part,) = plans([*words, "row=flow"])
    assert len(whole.experiment["claims"]) == len(whole.experiment["published"]) == 1
    assert part.experiment["claims"] == part.experiment["published"] == []
    assert part.experiment["baseline"] is None


def test_curves_are_of_the_rows_that_are_shown() -> None:
    (plan,) = plans(["experiment=on_policy/low_density", "row=dpo-1,ipo-1,dpo-20"])
    assert [curve["rows"] for curve in plan.experiment["curves"]] == [["dpo-1", "ipo-1"], ["dpo-20"]]


# Sweeps of rows, means of rows, drops --------------------------------------------------------------------------

SEARCH = """  sft: {label: SFT, overrides: [method=finetune/sft], sweep: {optimizer.lr: [1e-3, 2e-3]}}
  both: {label: Both, mean_of: [sft-lr-1e-3, flow]}
"""
COLUMNS = "  mini: {loss: {label: Loss, metric: train/loss, better: lower}"
DROP = ", kept: {label: Kept, of: loss, below: plain}, mean: {mean_of: [loss]}}\n"


@pytest.fixture
def search(plugin: Path) -> list[str]:
    """What names an experiment with a sweep, a mean of rows, a drop, a choice and plots of them."""
    text = EXPERIMENT.replace("tried/table", "tried/search")
    (line,) = [line for line in text.splitlines(keepends=True) if line.startswith("  sft:")]
    text = text.replace(line, SEARCH).replace(f"{COLUMNS}}}\n", COLUMNS + DROP)
    text = text.replace("minus: sft,", "minus: sft-lr-1e-3,").replace("beats: sft,", "beats: both,")
    text += "  - {text: Plain loses none, row: flow, beats: plain, column: kept, scales: [mini]}\n"
    text += "plots: [{x: loss, y: kept, front: true}, {x: loss, y: mean}]\nchoose: {column: kept}\n"
    (plugin / "conf" / "experiment" / "tried" / "search.yaml").write_text(text)
    return [f"plugins={plugin}", "experiment=tried/search"]


def test_the_rows_of_a_sweep_are_planned_and_a_mean_of_rows_is_not(search: list[str]) -> None:
    (plan,) = plans(search)
    seeds = [(row, seed) for row in ("sft-lr-1e-3", "sft-lr-2e-3", "flow") for seed in (1, 2)]
    assert cells(plan) == [("plain", 0), *seeds]
    assert {value_of(cell.overrides, "optimizer.lr") for cell in plan.cells if cell.row == "sft-lr-2e-3"} == {"2e-3"}
    built = Experiment.from_config(plan.experiment)
    assert list(built.rows) == ["plain", "sft-lr-1e-3", "sft-lr-2e-3", "both", "flow"]
    assert built.rows["both"].mean_of == ("sft-lr-1e-3", "flow")
    assert len(built.claims) == 2 and len(built.published) == 1 and built.choose is not None
    (plan,) = plans([*search, "seed=7"])
    assert cells(plan) == [("plain", 0), ("sft-lr-1e-3", 7), ("sft-lr-2e-3", 7), ("flow", 7)]


def test_what_is_made_of_rows_not_shown_is_left_out(search: list[str]) -> None:
    (plan,) = plans([*search, "row=sft-lr-1e-3,sft-lr-2e-3"])
    assert cells(plan) == [(row, seed) for row in ("sft-lr-1e-3", "sft-lr-2e-3") for seed in (1, 2)]
    built = Experiment.from_config(plan.experiment)
    assert list(built.rows) == ["sft-lr-1e-3", "sft-lr-2e-3"]
    assert list(built.columns["mini"]) == ["loss", "mean"] and [plot.y for plot in built.plots] == ["mean"]
    assert built.claims == () and built.choose is None
    (whole,) = plans(search)  # what was read of the YAML is as it was
    assert list(whole.experiment["columns"]["mini"]) == ["loss", "kept", "mean"]
    assert len(whole.experiment["plots"]) == 2 and whole.experiment["choose"]
    with pytest.raises(UserError, match="row=both: must be a row with runs of its own"):
        plans([*search, "row=flow,both"])


def test_a_sweep_typed_in_makes_means_of_its_own(search: list[str]) -> None:
    (plan,) = plans([*search, "training.steps=1,2"])
    built = Experiment.from_config(plan.experiment)
    assert built.rows["both training.steps=2"].mean_of == ("sft-lr-1e-3 training.steps=2", "flow training.steps=2")
    assert built.rows["both training.steps=2"].label == "Both (training.steps=2)"
    assert not any(cell.row.startswith("both") for cell in plan.cells)


def test_in_a_search_the_values_typed_in_are_one_group(search: list[str], words: list[str]) -> None:
    (plan,) = plans([*search, "training.steps=1,2"])
    rows = plan.experiment["rows"]
    assert [rows[f"flow training.steps={steps}"]["group"] for steps in (1, 2)] == ["flow", "flow"]
    assert rows["flow training.steps=1"]["group_label"] == "FLOW"
    assert rows["sft-lr-1e-3 training.steps=1"]["group"] == "sft"
    (plan,) = plans([*words, "training.steps=1,2"])  # without `choose`, they are rows of their own
    assert "group" not in plan.experiment["rows"]["flow training.steps=1"]


def test_a_search_runs_and_is_tabled(composer: Path, search: list[str]) -> None:
    ((plan, specs),) = check_all(search)
    assert len({spec.folder for spec in specs}) == len(specs) == 7
    by_row = {"plain": 4.0, "sft-lr-1e-3": 2.0, "sft-lr-2e-3": 1.5, "flow": 3.0}
    for cell, spec in zip(plan.cells, specs, strict=True):
        assert spec.row == cell.row
        write_done(spec, loss=by_row[cell.row])
    ended = retable(*search, "tracker=none", "job=table")
    assert ended.code == 0, ended.err
    assert "SFT, lr 2e-3 (chosen)" in ended.out and "SFT, lr 1e-3 (chosen)" not in ended.out
    assert "2.500 ± 0.000 (2)" in ended.out  # the mean of 2 and 3, and 4 minus 1.5
    assert "On the Pareto front of Kept against Loss: SFT, lr 2e-3." in " ".join(ended.out.split())
    listed = retable("-m", *search, "job=plan")
    assert "sft-lr-2e-3" in listed.out and "both" not in listed.out
    refused = retable(*search, "row=both")
    assert (refused.code, refused.error) == (
        1,
        "row=both: must be a row with runs of its own; this is the mean of sft-lr-1e-3, flow",
    )


def test_without_an_experiment_the_cross_product_is_the_table() -> None:
    (plan,) = plans(["method=finetune/sft,untrained", "seed=1,2", "training.steps=3"])
    assert cells(plan) == [(f"method={method}", seed) for method in ("finetune/sft", "untrained") for seed in (1, 2)]
    assert plan.experiment["name"] == "runs"
    assert all("training.steps=3" in cell.overrides for cell in plan.cells)


def test_a_sweep_of_seeds_alone_is_one_row() -> None:
    (plan,) = plans(["seed=1,2,3"])
    assert cells(plan) == [("default", 1), ("default", 2), ("default", 3)]


def test_the_same_cell_is_meant_once() -> None:
    (plan,) = plans(["seed=1,1,2"])
    assert cells(plan) == [("default", 1), ("default", 2)]


def test_different_sweeps_have_different_tables() -> None:
    (one,), (two,), (again,) = plans(["seed=1,2"]), plans(["seed=1,2,3"]), plans(["seed=1,2"])
    assert one.variant == again.variant != two.variant


def test_range_is_a_list_of_values() -> None:
    (plan,) = plans(["seed=range(1,4)"])
    assert [cell.seed for cell in plan.cells] == [1, 2, 3]


def test_values_with_special_characters_survive(words: list[str]) -> None:
    prompt = "dataset.prompt='Q: {prompt}, = [x]'"
    (plan,) = plans([*words, "row=flow", "seed=1", prompt])
    assert value_of(plan.cells[0].overrides, "dataset.prompt") == "Q: {prompt}, = [x]"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["seed=interval(1,3)"], r"seed=interval\(1,3\): only lists of values can be swept"),
        (["seed=a"], "seed=a: must be a whole number"),
        (["seed=a,b", "method=untrained"], "seed=a: must be a whole number"),
        (["seed=1,"], "^seed=1,: must be key=value"),
        (["seed=1", "word"], "^word: must be key=value"),
        (["experiment=nothing"], "experiment=nothing: no such experiment"),
    ],
)
def test_what_cannot_be_planned(typed: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        plans(typed)
    assert "\n" not in str(error.value)


RESULT = {
    "method_metrics": {"train/loss": 2.5, "flow/temperature": 0.5, "speed": 3.0},
    "metrics": {
        "copy": {"acc,none": 0.5, "acc_stderr,none": 0.1, "nll,none": 3.0},
        "text": {"perplexity,none": 9.0},
    },
    "evaluation": {"higher_is_better": {"copy": {"acc": True}, "text": {"perplexity": False}}},
}


def test_numbers_holds_the_evaluation_and_what_the_method_reports() -> None:
    found = numbers(RESULT)
    assert found["train"] == {"loss": 2.5} and found["flow"] == {"temperature": 0.5}
    assert found["copy"]["nll,none"] == 3.0


def test_columns_of_a_sweep_are_the_first_metric_of_each_task() -> None:
    assert main_columns([RESULT]) == {
        "copy": {"label": "copy acc", "metric": "copy/acc,none", "better": "higher"},
        "text": {"label": "text perplexity", "metric": "text/perplexity,none", "better": "lower"},
    }


def test_without_evaluation_the_training_loss_is_the_column() -> None:
    bare = {**RESULT, "metrics": {}, "evaluation": {}}
    assert list(main_columns([bare])) == ["loss"]
    assert main_columns([{"method_metrics": {}, "metrics": {}, "evaluation": {}}]) == {}


def test_published_numbers_are_not_comparable_with_another_setting() -> None:
    full = ["experiment=flow/language", "scale=full", "evaluation.confirm_run_unsafe_code=true"]
    (own,) = plans([*full, "training.micro_batch_size=1"])
    assert {entry["scale"] for entry in own.experiment["published"]} == {"full"}
    (other,) = plans([*full, "model=llama_3_2_3b"])
    assert {entry["scale"] for entry in other.experiment["published"]} == {"full, unchanged"}


def test_a_row_whose_baseline_is_not_shown_has_no_gap() -> None:
    (plan,) = plans(["experiment=talr/medcalc_1e6", "row=l2_qwen3_4b", "scale=full"])
    assert plan.experiment["rows"]["l2_qwen3_4b"]["baseline"] == "l2_qwen3_4b"
    Experiment.from_config(plan.experiment)
