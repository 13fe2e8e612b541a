"""The chosen row of each group and the rows on a plot's Pareto front."""

import pytest

from runners.tables.formats import as_rows, to_csv, to_latex, to_markdown
from runners.tables.page import to_html
from runners.tables.selection import groups
from runners.tables.table import build_table
from tests.runners.tables.experiments import config, run, runs
from tests.runners.tables.test_render import printed

ROWS = {
    "base": {"label": "Pre-trained", "seeds": [0]},
    "sft-a": {"label": "SFT, a", "group": "sft", "group_label": "SFT"},
    "sft-b": {"label": "SFT, b", "group": "sft"},
    "flow-a": {"label": "FLOW, a", "group": "flow", "group_label": "FLOW"},
    "flow-b": {"label": "FLOW, b", "group": "flow"},
}


def build(results, **changes):
    return build_table(config(rows=ROWS, baseline=None, **changes), "mini", results)


def chosen(table):
    return [row.key for row in table.rows if row.chosen]


DONE = [
    run("base", 0, 0.9, 0.0),
    *runs("sft-a", [0.5, 0.5, 0.5], [0.4] * 3),
    *runs("sft-b", [0.4, 0.5, 0.9], [0.3] * 3),
    *runs("flow-a", [0.6, 0.6, 0.7], [0.6] * 3),
    *runs("flow-b", [0.6, 0.6, 0.6], [0.7] * 3),
]


def test_rows_without_a_group_are_their_own():
    table = build([])
    assert [[row.key for row in own] for own in groups(table.rows)] == [
        ["base"],
        ["sft-a", "sft-b"],
        ["flow-a", "flow-b"],
    ]
    assert [row.group_label for row in table.rows] == ["Pre-trained", "SFT", "SFT", "FLOW", "FLOW"]
    # A group named after a row holds that row, and is called as it is.
    rows = {"sft": {"label": "Standard FT"}, "more": {"label": "More", "group": "sft"}, "x": {"group": "g"}}
    named = build_table(config(rows=rows), "mini", [])
    assert [row.group_label for row in named.rows] == ["Standard FT", "Standard FT", "g"]


def test_the_best_mean_of_each_group_is_chosen():
    table = build(DONE, choose={"column": "general"})
    assert chosen(table) == ["sft-b", "flow-a"]  # means 50 and 60, 63 and 60; alone in its group, the base is no choice
    assert (
        "Chosen: in each group of rows the one with the highest mean General, once all of them are complete; a tie "
        "goes to the first: SFT, b; FLOW, a."
    ) in table.footnotes
    assert chosen(build(DONE, choose={"column": "target"})) == ["sft-a", "flow-b"]
    assert chosen(build(DONE)) == []


def test_the_choice_goes_by_the_columns_better():
    results = [
        run(row, seed, perplexity=value) for row, value in (("sft-a", 3.0), ("sft-b", 2.0)) for seed in (1, 2, 3)
    ]
    table = build(results, choose={"column": "nll"})
    assert chosen(table) == ["sft-b"] and any("lowest mean NLL" in note for note in table.footnotes)


def test_a_tie_goes_to_the_first():
    results = [*runs("sft-a", [0.3, 0.4, 0.5]), *runs("sft-b", [0.5, 0.3, 0.4])]
    assert chosen(build(results, choose={"column": "general"})) == ["sft-a"]


def test_a_group_with_an_incomplete_row_is_open():
    results = [r for r in DONE if (r.row, r.seed) != ("flow-b", 2)]
    table = build(results, choose={"column": "general"})
    assert chosen(table) == ["sft-b"]
    assert "The choice in FLOW is open, not complete: FLOW, b (best so far: FLOW, a)." in table.footnotes
    table = build([run("flow-b", 1, 0.99)], choose={"column": "general"})
    assert chosen(table) == []
    assert "The choice in FLOW is open, not complete: FLOW, a; FLOW, b (none is complete)." in table.footnotes


def test_a_scale_without_the_column_makes_no_choice():
    columns = config()["columns"]
    columns["full"]["mmlu"] = {"label": "MMLU", "metric": "mmlu/acc,none", "better": "higher"}
    table = build(DONE, columns=columns, choose={"column": "mmlu"})
    assert chosen(table) == [] and not any("hosen" in note for note in table.footnotes)


@pytest.mark.parametrize("form", [printed, to_markdown, to_csv, to_latex, to_html, lambda table: str(as_rows(table))])
def test_every_form_marks_the_chosen_row(form):
    text = form(build(DONE, choose={"column": "general"}))
    assert "SFT, b (chosen)" in text and "FLOW, a (chosen)" in text
    assert "SFT, a (chosen)" not in text and "Pre-trained (chosen)" not in text
    assert "(chosen)" not in form(build(DONE))


# ---------------------------------------------------------------------------------------------------------- front


def front_notes(table):
    return [note for note in table.footnotes if "Pareto" in note]


def test_the_rows_on_the_front_are_listed():
    # Target, general: base (0, 90), sft-a (40, 50), sft-b (30, 60), flow-a (60, 63.3), flow-b (70, 60).
    plot = {"x": "target", "y": "general", "front": True}
    table = build(DONE, plots=[plot, {**plot, "x": "average", "front": False}])
    assert front_notes(table) == ["On the Pareto front of General against Target: Pre-trained; FLOW, a; FLOW, b."]
    assert [row.key for row in table.front(table.plots[0])] == ["base", "flow-a", "flow-b"]


def test_the_front_goes_by_each_columns_better():
    results = [
        *(run("sft-a", seed, 0.5, perplexity=2.0) for seed in (1, 2, 3)),
        *(run("sft-b", seed, 0.6, perplexity=3.0) for seed in (1, 2, 3)),
        *(run("flow-a", seed, 0.5, perplexity=3.0) for seed in (1, 2, 3)),
    ]
    table = build(results, plots=[{"x": "nll", "y": "general", "front": True}])
    assert front_notes(table) == ["On the Pareto front of General against NLL: SFT, a; SFT, b."]


def test_nothing_done_has_no_front():
    assert front_notes(build([], plots=[{"x": "target", "y": "general", "front": True}])) == []
