"""Columns and rows that are made of others: a drop against a row, the mean of rows. Worked out by hand."""

import copy
import math

import pytest

from runners.tables.table import build_table
from tests.runners.tables.experiments import CLAIM, CONFIG, GAP, cell, config, run, runs

DROP = {"label": "Drop", "of": "general", "below": "base"}
MEAN = {"label": "Average of both", "mean_of": ["sft", "flow"]}


def with_columns(**columns):
    own = copy.deepcopy(CONFIG["columns"])
    for scale in own.values():
        scale.update(columns)
    return own


def with_mean(**changes):
    return config(rows={**CONFIG["rows"], "both": MEAN}, **changes)


def values(table, row, column):
    return dict(cell(table, row, column).values)


# ------------------------------------------------------------------------------------------------------- drop columns


def test_a_drop_below_a_single_run_stands_against_every_seed():
    results = [run("base", 0, 0.6), *runs("flow", [0.5, 0.4, 0.3])]
    table = build_table(config(columns=with_columns(drop=DROP)), "mini", results)
    assert values(table, "flow", "drop") == pytest.approx({1: 10.0, 2: 20.0, 3: 30.0})
    found = cell(table, "flow", "drop")
    assert (found.n, found.expected) == (3, 3) and found.mean == pytest.approx(20.0)
    assert values(table, "base", "drop") == {0: 0.0}
    column = table.column("drop")
    assert (column.unit, column.better, column.decimals) == ("%", "lower", 1)
    assert column.definition == "General of Pre-trained minus that of the row"
    assert "Drop is, seed by seed, General of Pre-trained minus that of the row." in table.footnotes
    assert any(note.startswith("Pre-trained is a single run, used against every seed") for note in table.footnotes)


def test_a_drop_is_paired_by_seed():
    # 50-40, 60-70, 70-60: mean 10/3; the spread is that of the differences.
    results = [*runs("sft", [0.5, 0.6, 0.7]), *runs("flow", [0.4, 0.7, 0.6]), run("base", 0, 0.9)]
    table = build_table(config(columns=with_columns(drop={**DROP, "below": "sft"})), "mini", results)
    assert values(table, "flow", "drop") == pytest.approx({1: 10.0, 2: -10.0, 3: 10.0})
    assert values(table, "sft", "drop") == {1: 0.0, 2: 0.0, 3: 0.0}
    assert cell(table, "sft", "drop").half_width == 0.0
    # The single run stands against every seed of the row it is measured below.
    assert values(table, "base", "drop") == pytest.approx({1: -40.0, 2: -30.0, 3: -20.0})
    assert any(note.startswith("Pre-trained is a single run, used against every seed") for note in table.footnotes)


def test_a_drop_of_a_derived_column_and_of_a_logarithm():
    loss = {"label": "Loss kept", "of": "nll", "below": "base"}
    columns = with_columns(drop={**DROP, "of": "average"}, loss=loss)
    results = [run("base", 0, 0.6, 0.2, perplexity=math.e), *runs("flow", [0.5] * 3, [0.1] * 3)]
    results[1:] = [run("flow", seed, 0.5, 0.1, perplexity=math.e**3) for seed in (1, 2, 3)]
    table = build_table(config(columns=columns), "mini", results)
    assert values(table, "flow", "drop") == pytest.approx(dict.fromkeys((1, 2, 3), 10.0))  # 40 - 30
    assert values(table, "flow", "loss") == pytest.approx(dict.fromkeys((1, 2, 3), -2.0))
    # Of a loss, the base's minus the row's is better the higher it is.
    assert (table.column("loss").unit, table.column("loss").better) == ("log", "higher")
    assert (
        build_table(config(columns=with_columns(drop={**DROP, "better": "higher"})), "mini", []).column("drop").better
        == "higher"
    )


def test_a_drop_lacks_the_seeds_that_either_row_lacks():
    results = [*runs("sft", [0.5, 0.6]), run("sft", 3, status="failed", metrics=None), *runs("flow", [0.4, 0.5, 0.6])]
    table = build_table(config(columns=with_columns(drop={**DROP, "below": "sft"})), "mini", results)
    found = cell(table, "flow", "drop")
    assert (found.n, found.expected) == (2, 3)
    assert "Standard FT seed 3 failed" in found.reason


def test_a_drop_below_a_row_that_is_missing_is_missing():
    claim = {**CLAIM, "column": "drop"}
    table = build_table(
        config(columns=with_columns(drop=DROP), claims=[claim]),
        "mini",
        [*runs("flow", [0.4] * 3), *runs("sft", [0.5] * 3)],
    )
    found = cell(table, "flow", "drop")
    assert (found.verdict, found.mean, found.expected) == ("missing", None, 3)
    assert "Pre-trained seed 0 missing" in found.reason
    assert table.claims[0].verdict == "inconclusive" and "Pre-trained seed 0 missing" in table.claims[0].reason


def test_rows_that_share_no_seed_have_no_drop():
    rows = {**CONFIG["rows"], "flow": {"label": "FLOW", "seeds": [7, 8]}}
    results = [*runs("sft", [0.3, 0.5, 0.7]), *(run("flow", seed) for seed in (7, 8))]
    given = config(rows=rows, columns=with_columns(drop={**DROP, "below": "sft"}), claims=[{**CLAIM, "column": "drop"}])
    table = build_table(given, "mini", results)
    assert "share no seed" in cell(table, "flow", "drop").reason
    assert table.claims[0].verdict == "inconclusive"


def test_claims_and_published_numbers_can_be_of_a_drop():
    # Drops of SFT 20, 25, 30, of FLOW 10, 13, 20: FLOW loses 10, 12, 10 less.
    published = [{"row": "sft", "column": "drop", "value": 25.0, "scale": "full", "tolerance": 50.0}]
    given = config(
        columns=with_columns(drop=DROP),
        claims=[{**CLAIM, "column": "drop"}, {**CLAIM, "row": "base", "beats": "sft", "column": "drop"}],
        published=published,
    )
    results = [run("base", 0, 0.6), *runs("sft", [0.4, 0.35, 0.3]), *runs("flow", [0.5, 0.47, 0.4])]
    table = build_table(given, "full", results)
    assert cell(table, "sft", "drop").verdict == "reproduced"
    kept, base = table.claims
    assert (kept.verdict, kept.n) == ("holds", 3) and kept.mean == pytest.approx(32 / 3)
    assert (base.verdict, base.n) == ("holds", 3) and base.mean == pytest.approx(25.0)


def test_a_claim_pairs_a_single_runs_drop_below_seeded_runs():
    # Below SFT (50, 60, 70), the base at 90 has drops -40, -30, -20, and FLOW at 40, 50, 60 has 10, 10, 10.
    given = config(
        columns=with_columns(drop={**DROP, "below": "sft"}),
        claims=[{**CLAIM, "row": "base", "beats": "flow", "column": "drop"}],
    )
    results = [run("base", 0, 0.9), *runs("sft", [0.5, 0.6, 0.7]), *runs("flow", [0.4, 0.5, 0.6])]
    (claim,) = build_table(given, "mini", results).claims
    assert (claim.n, claim.expected) == (3, 3) and claim.mean == pytest.approx(40.0)


# ------------------------------------------------------------------------------------------------------- mean rows


def test_a_mean_of_rows_is_taken_seed_by_seed():
    results = [*runs("sft", [0.2, 0.4, 0.6]), *runs("flow", [0.6, 0.4, 0.2])]
    table = build_table(with_mean(), "mini", results)
    assert values(table, "both", "general") == pytest.approx({1: 40.0, 2: 40.0, 3: 40.0})
    found = cell(table, "both", "general")
    assert found.half_width == pytest.approx(0.0, abs=1e-9) and found.expected == 3
    assert "Average of both is the mean, seed by seed, of Standard FT; FLOW." in table.footnotes


def test_a_mean_of_rows_needs_all_of_them():
    table = build_table(with_mean(), "mini", [*runs("sft", [0.2, 0.4, 0.6]), *runs("flow", [0.6, 0.4])])
    found = cell(table, "both", "general")
    assert (found.n, found.expected) == (2, 3) and "FLOW seed 3 missing" in found.reason
    assert values(table, "both", "general").keys() == {1, 2}


def test_a_mean_of_rows_asks_for_no_runs():
    table = build_table(with_mean(), "mini", [])
    assert {record.row for record in table.runs} == {"Pre-trained", "Standard FT", "FLOW"}
    assert not any("Left out: Average of both" in note for note in table.footnotes)
    assert cell(table, "both", "general").verdict == "missing"
    with pytest.raises(ValueError, match=r"run.row must have runs of its own, got 'both', the mean of sft, flow"):
        build_table(with_mean(), "mini", [run("both", 1)])


def test_published_numbers_claims_and_drops_of_a_mean_of_rows():
    published = [{"row": "both", "column": "general", "value": 40.0, "scale": "full", "tolerance": 50.0}]
    published.append({**GAP, "row": "both", "minus": "base", "value": -20.0})
    given = with_mean(
        columns=with_columns(drop=DROP),
        published=published,
        claims=[{**CLAIM, "row": "base", "beats": "both"}],
    )
    results = [run("base", 0, 0.6), *runs("sft", [0.2, 0.4, 0.6]), *runs("flow", [0.6, 0.4, 0.23])]
    table = build_table(given, "full", results)
    assert cell(table, "both", "general").verdict == "reproduced"
    assert values(table, "both", "drop") == pytest.approx({1: 20.0, 2: 20.0, 3: 18.5})
    assert values(table, "both:minus:base", "general") == pytest.approx({1: -20.0, 2: -20.0, 3: -18.5})
    (claim,) = table.claims
    assert (claim.verdict, claim.n) == ("holds", 3) and claim.mean == pytest.approx(58.5 / 3)


def test_a_drop_below_a_mean_of_rows_is_zero_for_itself():
    given = with_mean(columns=with_columns(drop={**DROP, "below": "both"}))
    table = build_table(given, "mini", [*runs("sft", [0.1, 0.2, 0.3]), *runs("flow", [0.3, 0.7, 0.4])])
    assert values(table, "both", "drop") == {1: 0.0, 2: 0.0, 3: 0.0}
    assert values(table, "sft", "drop") == pytest.approx({1: 10.0, 2: 25.0, 3: 5.0})


def test_the_mean_of_single_runs_is_a_single_run():
    rows = {**CONFIG["rows"], "other": {"label": "Other", "seeds": [0]}}
    rows["bases"] = {"label": "Bases", "mean_of": ["base", "other"]}
    published = [{**GAP, "minus": "bases"}]
    results = [run("base", 0, 0.5), run("other", 0, 0.7), *runs("flow", [0.4, 0.6, 0.8])]
    table = build_table(config(rows=rows, published=published), "full", results)
    assert values(table, "bases", "general") == pytest.approx({0: 60.0})
    assert values(table, "flow:minus:bases", "general") == pytest.approx({1: -20.0, 2: 0.0, 3: 20.0})
