"""The table as a whole: what it holds, what its footnotes say, which runs it refuses."""

import copy
import json
import math

import pytest

from runners.tables.experiment import Experiment
from runners.tables.table import build_table
from tests.runners.tables.experiments import CLAIM, CONFIG, GAP, VALUE, config, run, runs


def test_footnotes_say_which_runs_are_left_out_and_what_the_interval_leaves_out():
    results = [
        *runs("flow", [0.6, 0.7]),
        run("flow", 3, status="failed", metrics=None, reason="loss is not finite", folder="outputs/flow-3"),
        run("flow", 9, 0.1),
    ]
    notes = "\n".join(build_table(config(), "mini", results).footnotes)
    assert "Left out: FLOW seed 3: failed (loss is not finite; outputs/flow-3)." in notes
    assert "Left out: FLOW seed 9: not listed by the experiment." in notes
    assert "shared parent" in notes and "Setting: ours" in notes and "a miniature" in notes
    assert "the samples of a mix, the sequences of a penalty" in notes


def test_a_setting_that_is_partly_ours_is_a_footnote():
    scales = {"full": {"setting": "partly ours", "note": "Batch 64 is ours.", "seeds": [1]}}
    given = config(scales=scales, columns={"full": CONFIG["columns"]["full"]})
    notes = build_table(given, "full", []).footnotes
    assert notes[0].startswith("Setting: partly ours.") and notes[1] == "Batch 64 is ours."
    assert not any(note.startswith("Setting") for note in build_table(config(), "full", []).footnotes)


def test_published_entries_without_a_place_are_counted():
    columns = copy.deepcopy(CONFIG["columns"])
    columns["full"]["mmlu"] = {"label": "MMLU", "metric": "mmlu/acc,none", "better": "higher"}
    entry = {"row": "flow", "column": "mmlu", "value": 1.0, "scale": "full"}
    table = build_table(config(columns=columns, published=[entry]), "mini", [])
    assert "1 published entry not shown: scale mini has no column mmlu." in table.footnotes


def test_a_table_is_json_without_nan():
    results = [*runs("flow", [0.05, math.nan, 0.09]), *runs("sft", [0.01, 0.02, 0.03])]
    table = build_table(config(claims=[CLAIM], published=[GAP, VALUE]), "full", results)
    again = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert again["rows"][1]["cells"][0]["mean"] == pytest.approx(2.0)
    assert [row["key"] for row in again["rows"]] == ["base", "sft", "flow"]


def test_building_changes_nothing_and_does_not_depend_on_the_order_of_runs():
    given, results = config(claims=[CLAIM], published=[GAP, VALUE]), runs("flow", [0.5, 0.6, 0.7])
    results += runs("sft", [0.4, 0.3, 0.6])
    before = copy.deepcopy(given)
    table = build_table(given, "mini", results)
    assert given == before
    assert build_table(given, "mini", results[::-1]) == table
    assert build_table(Experiment.from_config(given), "mini", iter(results)) == table


def test_every_run_that_was_asked_for_is_recorded():
    table = build_table(config(), "mini", [run("flow", 1, folder="outputs/flow-1")])
    assert [(r.row, r.seed, r.status) for r in table.runs] == [
        ("Pre-trained", 0, "missing"),
        *(("Standard FT", seed, "missing") for seed in (1, 2, 3)),
        ("FLOW", 1, "done"),
        ("FLOW", 2, "missing"),
        ("FLOW", 3, "missing"),
    ]


def test_plots_of_columns_this_scale_lacks_are_left_out():
    columns = copy.deepcopy(CONFIG["columns"])
    columns["full"]["mmlu"] = {"label": "MMLU", "metric": "mmlu/acc,none", "better": "higher"}
    plots = [{"x": "target", "y": "general"}, {"x": "mmlu", "y": "general"}]
    assert len(build_table(config(columns=columns, plots=plots), "mini", []).plots) == 1
    assert len(build_table(config(columns=columns, plots=plots), "full", []).plots) == 2


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([run("dpo", 1)], "run.row must be one of base, sft, flow, got 'dpo'"),
        ([run("flow", 1, status="ok")], "run.status must be one of done, .* got 'ok'"),
        ([run("flow", 1), run("flow", 1)], "one run per row and seed, got two of flow seed 1"),
    ],
)
def test_runs_that_do_not_belong_are_refused(results, message):
    with pytest.raises(ValueError, match=message):
        build_table(config(), "mini", results)


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="scale must be one of mini, full, got 'huge'"):
        build_table(config(), "huge", [])
