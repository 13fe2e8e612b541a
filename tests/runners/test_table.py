"""Cells, verdicts, relations and claims, each made by hand-written runs."""

import copy
import json
import math

import pytest

from runners.table import CellRun, Experiment, build_table

CONFIG = {
    "name": "flow/language",
    "title": "FLOW",
    "paper": {"title": "Upweighting", "authors": "Sanyal et al.", "arxiv": "2502.02797", "table": "Table 2"},
    "scales": {
        "mini": {"setting": "ours", "note": "a miniature", "overrides": [], "seeds": [1, 2, 3]},
        "full": {"overrides": [], "seeds": [1, 2, 3]},
    },
    "rows": {
        "base": {"label": "Pre-trained", "overrides": ["x=1"], "seeds": [0]},
        "sft": {"label": "Standard FT", "overrides": []},
        "flow": {"label": "FLOW", "overrides": []},
    },
    "columns": {
        scale: {
            "general": {"label": "General", "metric": "world/acc,none", "better": "higher", "percent": True},
            "target": {"label": "Target", "metric": "math/acc,none", "better": "higher", "percent": True},
            "nll": {"label": "NLL", "metric": "world/perplexity,none", "better": "lower", "transform": "log"},
            "average": {"label": "Average", "mean_of": ["general", "target"]},
        }
        for scale in ("mini", "full")
    },
    "baseline": "sft",
}


def config(**changes):
    return {**copy.deepcopy(CONFIG), **changes}


def run(row, seed, general=0.5, target=0.5, perplexity=math.e, **changes):
    metrics = {"world": {"acc,none": general, "perplexity,none": perplexity}, "math": {"acc,none": target}}
    return CellRun(**{"row": row, "seed": seed, "status": "done", "metrics": metrics, **changes})


def runs(row, generals, targets=None):
    targets = targets or generals
    return [run(row, seed, g, t) for seed, (g, t) in enumerate(zip(generals, targets, strict=True), start=1)]


def cell(table, row, column):
    found = next(r for r in (*table.rows, *table.relations) if r.key == row)
    return found.cell(column)


def verdict(published, results, scale="full", row="flow", column="general", **changes):
    table = build_table(config(published=published, **changes), scale, results)
    return cell(table, row, column)


# ------------------------------------------------------------------------------------------------------ cells


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


VALUE = {"row": "flow", "column": "general", "value": 60.0, "scale": "full", "source": "Table 2"}


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


def test_the_logarithm_of_nothing_fails_the_cell():
    found = cell(build_table(config(), "mini", [run("base", 0, perplexity=0.0)]), "base", "nll")
    assert found.verdict == "failed" and "no logarithm" in found.reason


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


# -------------------------------------------------------------------------------------------------- relations


GAP = {"row": "flow", "minus": "sft", "column": "general", "value": 10.0, "scale": "full"}


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


def test_published_entries_without_a_place_are_counted():
    columns = copy.deepcopy(CONFIG["columns"])
    columns["full"]["mmlu"] = {"label": "MMLU", "metric": "mmlu/acc,none", "better": "higher"}
    entry = {"row": "flow", "column": "mmlu", "value": 1.0, "scale": "full"}
    table = build_table(config(columns=columns, published=[entry]), "mini", [])
    assert "1 published entry not shown: scale mini has no column mmlu." in table.footnotes


# ----------------------------------------------------------------------------------------------------- claims


CLAIM = {"text": "FLOW keeps more", "row": "flow", "beats": "sft", "column": "general", "by": 0.0}


def claim(results, *entries, **changes):
    return build_table(config(claims=list(entries) or [CLAIM], **changes), "mini", results).claims


def test_a_claim_holds_by_hand():
    # Differences 4, 4, 6 points: t = 7 with 2 degrees of freedom, p = 1 - 7 / sqrt(51) = 0.0198.
    results = [*runs("flow", [0.05, 0.06, 0.09]), *runs("sft", [0.01, 0.02, 0.03])]
    (found,) = claim(results)
    assert (found.verdict, found.n) == ("holds", 3)
    assert found.mean == pytest.approx(14 / 3)
    assert found.adjusted_p == pytest.approx(1 - 7 / math.sqrt(51))
    assert found.half_width == pytest.approx(4.30265 * 2 / 3, abs=1e-4)


def test_a_claim_does_not_hold_when_the_mean_is_below_the_margin():
    results = [*runs("flow", [0.01, 0.02, 0.03]), *runs("sft", [0.05, 0.06, 0.09])]
    assert claim(results)[0].verdict == "does not hold"
    # Better, but not by 20 points.
    results = [*runs("flow", [0.05, 0.06, 0.09]), *runs("sft", [0.01, 0.02, 0.03])]
    assert claim(results, {**CLAIM, "by": 20.0})[0].verdict == "does not hold"


def test_lower_is_better_turns_the_difference_round():
    perplexities = {"flow": (1, 2), "sft": (2, 4)}
    results = [
        run(row, seed, perplexity=math.exp(slope * seed + offset))
        for row, (offset, slope) in perplexities.items()
        for seed in (1, 2, 3)
    ]
    (found,) = claim(results, {**CLAIM, "column": "nll"})
    assert found.mean == pytest.approx(5.0)  # (2 + 4 s) - (1 + 2 s) = 1 + 2 s, for s = 1, 2, 3


def test_claims_are_corrected_together():
    results = [*runs("flow", [0.05, 0.06, 0.09]), *runs("sft", [0.01, 0.02, 0.03])]
    p = 1 - 7 / math.sqrt(51)
    other = {**CLAIM, "text": "the target too", "column": "target"}
    found = claim(results, CLAIM, other)
    assert [c.adjusted_p for c in found] == pytest.approx([2 * p, 2 * p])
    third = {**CLAIM, "text": "and on average", "column": "average"}
    found = claim(results, CLAIM, other, third)
    assert [c.verdict for c in found] == ["inconclusive"] * 3  # 3 * 0.0198 = 0.059
    assert [c.p_value for c in found] == pytest.approx([p, p, p])


def test_claims_of_other_scales_are_neither_shown_nor_corrected_for():
    results = [*runs("flow", [0.05, 0.06, 0.09]), *runs("sft", [0.01, 0.02, 0.03])]
    found = claim(results, CLAIM, {**CLAIM, "column": "target", "scales": ["full"]})
    assert len(found) == 1 and found[0].adjusted_p == found[0].p_value


def test_a_claim_that_cannot_be_tested_does_not_count_in_the_correction():
    results = [*runs("flow", [0.05, 0.06, 0.09]), *runs("sft", [0.01, 0.02, 0.03])]
    first, second = claim(results, CLAIM, {**CLAIM, "beats": "base"})
    assert first.adjusted_p == first.p_value
    assert (second.verdict, second.p_value, second.mean) == ("inconclusive", None, None)
    assert "Pre-trained seed 0 missing" in second.reason


def test_one_pair_is_inconclusive():
    (found,) = claim([run("flow", 1, 0.9), run("sft", 1, 0.1)], scales={"mini": {"seeds": [1]}})
    assert (found.verdict, found.n, found.adjusted_p) == ("inconclusive", 1, None)
    assert "1 pair, a test needs at least 2" in found.reason


def test_a_partial_claim_is_inconclusive_with_its_numbers():
    results = [*runs("flow", [0.9, 0.91, 0.92]), *runs("sft", [0.1, 0.12])]
    (found,) = claim(results)
    assert (found.verdict, found.n, found.expected) == ("inconclusive", 2, 3)
    assert found.adjusted_p < 0.05 and found.mean > 70
    assert "2 of 3 pairs: Standard FT seed 3 missing" in found.reason


def test_differences_without_variance():
    results = [*runs("flow", [0.5, 0.6, 0.7]), *runs("sft", [0.4, 0.5, 0.6])]
    (found,) = claim(results)
    assert (found.verdict, found.half_width, found.adjusted_p) == ("holds", 0.0, 0.0)
    assert claim(results, {**CLAIM, "by": 20.0})[0].verdict == "does not hold"
    (equal,) = claim(results, {**CLAIM, "by": 10.0})
    assert (equal.verdict, equal.adjusted_p) == ("inconclusive", 1.0)
    assert "exactly the margin" in equal.reason


def test_a_column_this_scale_does_not_have_is_inconclusive():
    columns = copy.deepcopy(CONFIG["columns"])
    columns["full"]["mmlu"] = {"label": "MMLU", "metric": "mmlu/acc,none", "better": "higher"}
    (found,) = claim([], {**CLAIM, "column": "mmlu"}, columns=columns)
    assert (found.verdict, found.reason) == ("inconclusive", "scale mini has no column mmlu")


def test_a_deterministic_row_can_be_beaten():
    (found,) = claim([run("base", 0, 0.1), *runs("flow", [0.5, 0.6, 0.7])], {**CLAIM, "beats": "base"})
    assert (found.n, found.verdict) == (3, "holds")


# ------------------------------------------------------------------------------------ the table and bad input


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


def column(**entry):
    return config(columns={**CONFIG["columns"], "mini": {**CONFIG["columns"]["mini"], "c": entry}})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (config(rows={}), "experiment.rows must be given"),
        (config(baseline="dpo"), "baseline must name one of the rows base, sft, flow, got 'dpo'"),
        (config(scales={"full": {"setting": "ours", "seeds": [1]}}), "ours is never called full"),
        (
            config(scales={"mini": {"setting": "mine", "seeds": [1]}}),
            "setting must be 'paper' or 'ours', got 'mine'",
        ),
        (config(scales={"mini": {"seeds": [1, 1]}}), r"scales.mini.seeds must list .* got \[1, 1\]"),
        (
            config(scales={"tiny": {"seeds": [1]}}),
            "columns must have an entry for every scale, got none for 'tiny'",
        ),
        (config(published=[{**VALUE, "row": "dpo"}]), r"published\[0\] must name one of the rows"),
        (
            config(published=[{**VALUE, "column": "mmlu"}]),
            r"published\[0\].column must be a column of scale full",
        ),
        (
            config(published=[{**VALUE, "value": math.nan}]),
            r"published\[0\].value must be a finite number, got nan",
        ),
        (config(published=[{**VALUE, "tolerance": 0}]), r"published\[0\].tolerance must be > 0, got 0"),
        (config(published=[{**VALUE, "minus": "sft", "over": "sft"}]), "at most one of minus and over"),
        (config(published=[{**VALUE, "minus": "flow"}]), "must relate row to another row, got 'flow' twice"),
        (config(published=[VALUE, VALUE]), r"published\[1\] must not repeat an earlier entry"),
        (
            config(published=[{**VALUE, "tolerence": 1.0}]),
            r"published\[0\] must have no keys but .* got 'tolerence'",
        ),
        (config(published=[{"row": "flow", "column": "general"}]), r"published\[0\].value must be given"),
        (config(claims=[{**CLAIM, "beats": "dpo"}]), r"claims\[0\].beats must name one of the rows"),
        (
            config(claims=[{**CLAIM, "beats": "flow"}]),
            r"claims\[0\].beats must be another row than row, got 'flow'",
        ),
        (config(claims=[{**CLAIM, "column": "mmlu"}]), r"claims\[0\].column must be a column of some scale"),
        (config(claims=[{**CLAIM, "scales": ["huge"]}]), r"claims\[0\].scales must be scales .* got 'huge'"),
        (config(plots=[{"x": "mmlu", "y": "general"}]), r"plots\[0\] must name columns .* got 'mmlu'"),
        (column(label="C"), "columns.mini.c must have one of metric and mean_of, got neither"),
        (
            column(metric="acc", better="higher"),
            "columns.mini.c.metric must be 'task/metric name', got 'acc'",
        ),
        (column(metric="a/b"), "columns.mini.c.better must be higher or lower, got None"),
        (
            column(metric="a/b", better="higher", transform="exp"),
            "transform must be log or absent, got 'exp'",
        ),
        (column(metric="a/b", better="higher", transform="log", percent=True), "must stand without percent"),
        (column(mean_of=["mmlu"]), "columns.mini.c.mean_of must name columns of the same scale, got 'mmlu'"),
        (column(mean_of=["c"]), "columns.mini.c.mean_of must not lead back to itself, got c -> c"),
        (column(mean_of=["general", "nll"]), "mean_of must join columns of one better, got higher and lower"),
        (column(mean_of=["general"], percent=False), "percent must be that of its columns, True, got False"),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as error:
        Experiment.from_config(given)
    assert "\n" not in str(error.value)
