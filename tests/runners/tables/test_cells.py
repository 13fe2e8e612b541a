"""Cells, verdicts and relations, each made by hand-written runs."""

import copy
import math

import pytest

from runners.expand import config_roots, load_experiment
from runners.tables.table import build_table
from tests.runners.tables.experiments import CONFIG, GAP, VALUE, cell, config, run, runs


def verdict(published, results, scale="full", row="flow", column="general", **changes):
    table = build_table(config(published=published, **changes), scale, results)
    return cell(table, row, column)


def test_a_cell_is_the_mean_over_seeds_in_the_tables_units():
    table = build_table(config(), "mini", runs("flow", [0.01, 0.02, 0.03]))
    found = cell(table, "flow", "general")
    assert found.mean == pytest.approx(2.0)
    assert found.half_width == pytest.approx(2.48414, abs=1e-5)
    assert (found.n, found.expected, found.verdict) == (3, 3, None)
    assert [seed for seed, _ in found.values] == [1, 2, 3]


def test_a_deterministic_row_is_one_run_without_interval():
    found = cell(build_table(config(), "mini", [run("base", 0, 0.9)]), "base", "general")
    assert (found.mean, found.half_width, found.n, found.expected) == (90.0, None, 1, 1)


def test_a_transform_is_taken_per_seed():
    # log e, log e^3: mean 2; the log of the mean perplexity would be 2.43.
    done = [run("flow", 1, perplexity=math.e), run("flow", 2, perplexity=math.e**3)]
    found = cell(build_table(config(scales={"mini": {"seeds": [1, 2]}}), "mini", done), "flow", "nll")
    assert found.mean == pytest.approx(2.0)


def test_a_derived_column_is_averaged_per_seed_first():
    # Per seed 0.5, 0.5, 0.5: no spread, though both columns have one.
    table = build_table(config(), "mini", runs("flow", [0.4, 0.5, 0.6], [0.6, 0.5, 0.4]))
    found = cell(table, "flow", "average")
    assert found.mean == pytest.approx(50.0)
    assert found.half_width == pytest.approx(0.0, abs=1e-9)
    assert cell(table, "flow", "general").half_width > 20


def test_derived_columns_nest_and_inherit_unit_and_direction():
    columns = copy.deepcopy(CONFIG["columns"])
    columns["mini"]["all"] = {"label": "All", "mean_of": ["average", "target"]}
    columns["mini"]["loss"] = {"label": "Loss", "mean_of": ["nll"]}
    table = build_table(config(columns=columns), "mini", runs("flow", [0.2] * 3, [0.4] * 3))
    assert cell(table, "flow", "all").mean == pytest.approx((30 + 40) / 2)
    by_key = {column.key: column for column in table.columns}
    assert (by_key["all"].unit, by_key["all"].better) == ("%", "higher")
    assert by_key["loss"].better == "lower"


# --------------------------------------------------------------------------------------------------- verdicts


def test_reproduced_needs_the_value_inside_and_an_interval_within_the_tolerance():
    found = verdict([{**VALUE, "tolerance": 2.0}], runs("flow", [0.599, 0.600, 0.602]))
    assert found.verdict == "reproduced"
    assert found.tolerance == 2.0


def test_an_interval_wider_than_the_tolerance_is_inconclusive():
    # The whole width, 2 * 2.48414, is what the tolerance bounds: 4.9 is too little, 5.0 is enough.
    results = runs("flow", [0.59, 0.60, 0.61])
    assert verdict([{**VALUE, "tolerance": 4.9}], results).verdict == "inconclusive"
    assert verdict([{**VALUE, "tolerance": 5.0}], results).verdict == "reproduced"


def test_differs_when_the_value_is_outside():
    found = verdict([{**VALUE, "tolerance": 2.0}], runs("flow", [0.649, 0.650, 0.652]))
    assert found.verdict == "differs"
    assert "60.0" in found.reason


def test_two_seeds_are_inconclusive_however_close():
    scales = {"full": {"seeds": [1, 2]}}
    columns = {"full": CONFIG["columns"]["full"]}
    results = [run("flow", 1, 0.6), run("flow", 2, 0.6)]
    found = verdict([{**VALUE, "tolerance": 50.0}], results, scales=scales, columns=columns)
    assert found.verdict == "inconclusive"
    assert "2 seeds" in found.reason


def test_the_default_tolerance_is_half_the_published_gap_to_the_baseline():
    baseline = {"row": "sft", "column": "general", "value": 50.0, "scale": "full"}
    assert verdict([VALUE, baseline], runs("flow", [0.599, 0.6, 0.602])).tolerance == 5.0
    relation = {"row": "flow", "minus": "sft", "column": "general", "value": -3.0, "scale": "full"}
    assert verdict([VALUE, relation], runs("flow", [0.599, 0.6, 0.602])).tolerance == 1.5


# The gap to sft is 10, to the row's own baseline 4.
@pytest.mark.parametrize(("own", "tolerance"), [(None, 5.0), ("base", 2.0), ("sft", 5.0), ("flow", None)])
def test_a_row_may_have_a_baseline_of_its_own(own, tolerance):
    rows = {**CONFIG["rows"], "flow": {"label": "FLOW", "baseline": own}}
    others = [{**VALUE, "row": "sft", "value": 50.0}, {**VALUE, "row": "base", "value": 56.0}]
    found = verdict([VALUE, *others], runs("flow", [0.599, 0.6, 0.602]), rows=rows)
    assert found.tolerance == tolerance
    assert found.verdict == ("inconclusive" if tolerance is None else "reproduced")


def test_a_row_has_a_baseline_of_its_own_where_the_experiment_has_none():
    rows = {**CONFIG["rows"], "flow": {"label": "FLOW", "baseline": "sft"}}
    relation = {**GAP, "value": -3.0}
    found = verdict([VALUE, relation], runs("flow", [0.599, 0.6, 0.602]), rows=rows, baseline=None)
    assert found.tolerance == 1.5


def test_talr_holds_the_rows_of_a_model_against_fine_tuning_of_the_same_model():
    """Halves of 0.796 - 0.784 and 0.697 - 0.692; against the average the first would be half of 0.104."""
    table = build_table(load_experiment("talr/medcalc_1e6", config_roots([])), "full", [])
    assert cell(table, "l2_qwen3_4b", "general").tolerance == pytest.approx(0.006)
    assert cell(table, "avg_l2", "general").tolerance == pytest.approx(0.0025)
    assert cell(table, "sft_qwen3_4b", "general").tolerance is None
    assert cell(table, "avg_sft", "general").tolerance is None


def test_without_tolerance_and_gap_nothing_is_reproduced():
    found = verdict([VALUE], runs("flow", [0.599, 0.6, 0.602]))
    assert found.verdict == "inconclusive"
    assert "no tolerance" in found.reason
    # The baseline's own gap to itself is none; and a gap published at another scale does not count.
    elsewhere = {"row": "sft", "column": "general", "value": 50.0, "scale": "mini"}
    assert verdict([VALUE, elsewhere], runs("flow", [0.599, 0.6, 0.602])).tolerance is None
    assert verdict([VALUE], runs("flow", [0.599, 0.6, 0.602]), baseline=None).verdict == "inconclusive"


def test_a_number_of_another_scale_is_not_comparable():
    found = verdict([{**VALUE, "tolerance": 50.0}], runs("flow", [0.6, 0.6, 0.6]), scale="mini")
    assert found.verdict == "not comparable"
    assert found.published.value == 60.0
    # Also where both scales have a sourced setting.
    scales = {key: {"seeds": [1, 2, 3]} for key in ("mini", "full")}
    entry = {**VALUE, "tolerance": 50.0}
    found = verdict([entry], runs("flow", [0.6, 0.6, 0.6]), scale="mini", scales=scales)
    assert (found.verdict, found.reason) == ("not comparable", "published at scale full, this is scale mini")


def test_a_setting_of_ours_is_not_comparable_even_at_its_own_scale():
    entry = {**VALUE, "scale": "mini", "tolerance": 50.0}
    assert verdict([entry], runs("flow", [0.6, 0.6, 0.6]), scale="mini").verdict == "not comparable"


def test_a_setting_that_is_partly_ours_is_not_comparable_at_its_own_scale():
    scales = {"full": {"setting": "partly ours", "note": "Batch 64 is ours.", "seeds": [1, 2, 3]}}
    columns = {"full": CONFIG["columns"]["full"]}
    entry = {**VALUE, "tolerance": 50.0}
    found = verdict([entry], runs("flow", [0.6, 0.6, 0.6]), scales=scales, columns=columns)
    assert found.verdict == "not comparable" and found.mean == pytest.approx(60.0)
    assert found.reason == "parts of the setting of scale full are ours, not the paper's (see the note)"


def test_the_number_of_this_scale_is_preferred():
    entries = [{**VALUE, "scale": "mini", "value": 1.0}, {**VALUE, "tolerance": 1.0}]
    assert verdict(entries, runs("flow", [0.599, 0.6, 0.602])).published.value == 60.0


def test_seeds_that_agree_exactly_are_an_interval_of_width_zero():
    entry = {**VALUE, "tolerance": 0.5}
    assert verdict([entry], runs("flow", [0.6, 0.6, 0.6])).verdict == "reproduced"
    found = verdict([entry], runs("flow", [0.61, 0.61, 0.61]))
    assert found.verdict == "differs" and "agree exactly" in found.reason


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["stale", "stale", "stale"], "stale"),
        (["missing", "missing", "missing"], "missing"),
        (["failed", "stale", "missing"], "failed"),
        (["missing", "stale", "running"], "stale"),
        (["running", "running", "running"], "missing"),
    ],
)
@pytest.mark.parametrize("published", [[], [{**VALUE, "tolerance": 50.0}]])
def test_a_cell_without_a_done_seed_says_why(statuses, expected, published):
    results = [
        run("flow", seed, status=status, metrics=None, reason="because", folder=f"outputs/{seed}")
        for seed, status in enumerate(statuses, start=1)
    ]
    found = verdict(published, results)
    assert (found.verdict, found.mean, found.half_width, found.n) == (expected, None, None, 0)


def test_runs_that_were_never_made_are_missing():
    table = build_table(config(), "mini", [])
    assert {c.verdict for row in table.rows for c in row.cells} == {"missing"}
    assert "Left out: FLOW seeds 1, 2, 3: missing (has not run)." in table.footnotes


@pytest.mark.parametrize("status", ["failed", "stale", "missing", "running"])
def test_a_partial_cell_shows_what_is_done_and_is_never_reproduced(status):
    scales = {"full": {"seeds": [1, 2, 3, 4]}}
    columns = {"full": CONFIG["columns"]["full"]}
    results = [*runs("flow", [0.599, 0.600, 0.602]), run("flow", 4, status=status, metrics=None)]
    found = verdict([{**VALUE, "tolerance": 5.0}], results, scales=scales, columns=columns)
    assert found.verdict == "inconclusive"
    assert (found.n, found.expected) == (3, 4)
    assert found.mean == pytest.approx(60.0333, abs=1e-3)
    assert f"seed 4 {status}" in found.reason


def test_a_stale_run_is_left_out_even_when_it_has_metrics():
    results = [
        *runs("flow", [0.6, 0.6]),
        run("flow", 3, 0.1, status="stale", reason="its source has changed"),
    ]
    found = cell(build_table(config(), "mini", results), "flow", "general")
    assert (found.mean, found.n) == (60.0, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, "N/A", True])
def test_a_done_run_without_a_usable_number_fails_that_cell_only(value):
    results = [run("flow", seed, general=value, target=0.5) for seed in (1, 2, 3)]
    table = build_table(config(), "mini", results)
    assert cell(table, "flow", "general").verdict == "failed"
    assert cell(table, "flow", "average").verdict == "failed"
    assert cell(table, "flow", "target").mean == 50.0
    assert any("world/acc,none" in note and "FLOW seeds 1, 2, 3" in note for note in table.footnotes)


def test_a_metric_the_result_lacks_is_named():
    table = build_table(config(), "mini", [run("base", 0, metrics={"math": {"acc,none": 0.5}})])
    assert "Left out: Pre-trained seed 0: its result has no metric world/acc,none." in table.footnotes


def test_a_row_that_trains_nothing_has_no_numbers_of_training():
    """A mean of such columns neither; of a trained one, and of another number, it is a mistake."""
    columns = {
        "general": {"label": "General", "metric": "world/acc,none", "better": "higher", "percent": True},
        "written": {"label": "Written", "metric": "train/written_tokens", "better": "neither"},
        "both": {"label": "Both", "mean_of": ["written", "written"]},
    }
    trained = {"world": {"acc,none": 0.5}, "train": {"loss": 1.0}}
    results = [run("base", 0, metrics={"world": {"acc,none": 0.5}}), run("sft", 1, metrics=trained)]
    table = build_table(config(columns={"mini": columns, "full": columns}), "mini", results)
    for column in ("written", "both"):
        found = cell(table, "base", column)
        assert (found.mean, found.verdict) == (None, None)
    assert cell(table, "sft", "written").verdict == "failed"
    assert not any("Pre-trained" in note for note in table.footnotes)
    assert any("Standard FT seed 1: its result has no metric train/written_tokens" in note for note in table.footnotes)


def test_the_logarithm_of_nothing_fails_the_cell():
    found = cell(build_table(config(), "mini", [run("base", 0, perplexity=0.0)]), "base", "nll")
    assert found.verdict == "failed" and "no logarithm" in found.reason


# -------------------------------------------------------------------------------------------------- relations


def test_a_difference_is_paired_by_seed():
    # Both rows swing by 20 points with the seed; their difference is 10, 10, 10 and 9, 10, 11.
    results = [*runs("flow", [0.4, 0.6, 0.8]), *runs("sft", [0.31, 0.50, 0.69])]
    table = build_table(config(published=[GAP]), "full", results)
    found = cell(table, "flow:minus:sft", "general")
    assert found.mean == pytest.approx(10.0)
    assert found.half_width == pytest.approx(2.48414, abs=1e-5)
    assert table.relations[0].label == "FLOW − Standard FT"
    # Half of the published gap is 5, and the interval is 4.97 wide.
    assert (found.verdict, found.tolerance) == ("reproduced", 5.0)


def test_a_difference_is_shown_in_every_column_but_judged_only_where_published():
    results = [*runs("flow", [0.4, 0.6, 0.8]), *runs("sft", [0.3, 0.5, 0.7])]
    table = build_table(config(published=[GAP]), "full", results)
    found = cell(table, "flow:minus:sft", "target")
    assert found.mean == pytest.approx(10.0) and found.verdict is None and found.published is None


def test_a_ratio_is_per_seed_and_only_where_published():
    ratio = {"row": "flow", "over": "sft", "column": "general", "value": 1.5, "scale": "full"}
    # 2 and 1 and 1.5: mean 1.5; the ratio of the means would be 1.36.
    results = [*runs("flow", [0.4, 0.5, 0.6]), *runs("sft", [0.2, 0.5, 0.4])]
    table = build_table(config(published=[ratio]), "full", results)
    found = cell(table, "flow:over:sft", "general")
    assert found.mean == pytest.approx(1.5)
    assert found.tolerance == pytest.approx(0.25)
    assert cell(table, "flow:over:sft", "target") is None


def test_a_ratio_over_zero_is_no_number():
    ratio = {"row": "flow", "over": "sft", "column": "general", "value": 1.5, "scale": "full"}
    results = [*runs("flow", [0.4, 0.5, 0.6]), *runs("sft", [0.0, 0.0, 0.0])]
    found = cell(build_table(config(published=[ratio]), "full", results), "flow:over:sft", "general")
    assert found.verdict == "failed" and "over 0" in found.reason


def test_a_deterministic_row_stands_against_every_seed():
    entry = {**GAP, "minus": "base"}
    results = [run("base", 0, 0.5), *runs("flow", [0.4, 0.6, 0.8])]
    table = build_table(config(published=[entry]), "full", results)
    assert [v for _, v in cell(table, "flow:minus:base", "general").values] == pytest.approx([-10, 10, 30])
    assert any(note.startswith("Pre-trained is a single run") for note in table.footnotes)
    mirrored = build_table(config(published=[{**GAP, "row": "base", "minus": "flow"}]), "full", results)
    found = cell(mirrored, "base:minus:flow", "general")
    assert [v for _, v in found.values] == pytest.approx([10, -10, -30])


def test_two_deterministic_rows_make_one_pair():
    rows = {**CONFIG["rows"], "flow": {"label": "FLOW", "seeds": [5]}}
    results = [run("base", 0, 0.5), run("flow", 5, 0.75)]
    table = build_table(config(published=[{**GAP, "minus": "base"}], rows=rows), "full", results)
    found = cell(table, "flow:minus:base", "general")
    assert (found.mean, found.n, found.expected, found.verdict) == (25.0, 1, 1, "inconclusive")


def test_a_relation_with_a_seed_missing_on_one_side_is_partial():
    results = [*runs("flow", [0.4, 0.6, 0.8]), *runs("sft", [0.3, 0.5])]
    found = cell(build_table(config(published=[GAP]), "full", results), "flow:minus:sft", "general")
    assert (found.n, found.expected, found.verdict) == (2, 3, "inconclusive")
    assert "Standard FT seed 3 missing" in found.reason


def test_rows_that_share_no_seed_cannot_be_related():
    rows = {**CONFIG["rows"], "flow": {"label": "FLOW", "seeds": [7, 8, 9]}}
    results = [*runs("sft", [0.3, 0.5, 0.7]), *(run("flow", seed) for seed in (7, 8, 9))]
    table = build_table(config(published=[GAP], rows=rows), "full", results)
    assert "share no seed" in cell(table, "flow:minus:sft", "general").reason
