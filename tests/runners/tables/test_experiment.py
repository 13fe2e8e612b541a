"""What an experiment says about its table is refused, in one line, where it does not fit together."""

import math

import pytest

from runners.tables.experiment import Experiment
from tests.runners.tables.experiments import CLAIM, CONFIG, VALUE, config


def column(**entry):
    return config(columns={**CONFIG["columns"], "mini": {**CONFIG["columns"]["mini"], "c": entry}})


def row(**entry):
    return config(rows={**CONFIG["rows"], "r": entry})


DROP = {"of": "general", "below": "base"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (config(rows={}), "experiment.rows must be given"),
        (config(baseline="dpo"), "baseline must name one of the rows base, sft, flow, got 'dpo'"),
        (config(scales={"full": {"setting": "ours", "seeds": [1]}}), "ours is never called full"),
        (
            config(scales={"mini": {"setting": "mine", "seeds": [1]}}),
            "setting must be 'paper', 'partly ours' or 'ours', got 'mine'",
        ),
        (
            config(scales={"full": {"setting": "partly ours", "seeds": [1]}}),
            "scales.full.note must say which parts of the setting are ours, got none",
        ),
        (row(baseline="dpo"), "rows.r.baseline must name one of the rows base, sft, flow, r, got 'dpo'"),
        (row(baseline=["sft"]), r"rows.r.baseline must be a text, got \['sft'\]"),
        (config(scales={"mini": {"note": "no seeds"}}), r"scales.mini.seeds must list .* got \[\]"),
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
        (column(metric="a/b"), "columns.mini.c.better must be higher, lower or neither, got None"),
        (
            column(metric="a/b", better="higher", transform="exp"),
            "transform must be log or absent, got 'exp'",
        ),
        (column(metric="a/b", better="higher", transform="log", percent=True), "must stand without percent"),
        (column(mean_of=["mmlu"]), "columns.mini.c.mean_of must name columns of the same scale, got 'mmlu'"),
        (column(mean_of=["c"]), "columns.mini.c.mean_of must not lead back to itself, got c -> c"),
        (column(mean_of=["general", "nll"]), "mean_of must join columns of one better, got higher and lower"),
        (column(mean_of=["general"], percent=False), "percent must be that of its columns, True, got False"),
        (column(of="general"), "columns.mini.c must have of and below together, got of alone"),
        (column(below="base"), "columns.mini.c must have of and below together, got below alone"),
        (column(**DROP, metric="a/b"), "columns.mini.c must have of and below without .*, got metric too"),
        (column(**DROP, mean_of=["general"]), "columns.mini.c must have of and below .* got mean_of too"),
        (column(of="mmlu", below="base"), "columns.mini.c.of must name a column of the same scale .* got 'mmlu'"),
        (column(of="c", below="base"), "columns.mini.c.of must name a column .* that is no drop, got 'c'"),
        (
            column(of="general", below="dpo"),
            "columns.mini.c.below must name one of the rows base, sft, flow, got 'dpo'",
        ),
        (column(**DROP, percent=False), "columns.mini.c.percent must be that of general, True, got False"),
        (column(**DROP, transform="log"), "columns.mini.c.transform must stand without percent and mean_of"),
        (column(**DROP, better="up"), "columns.mini.c.better must be higher, lower or neither, got 'up'"),
        (
            config(
                columns={**CONFIG["columns"], "mini": {**CONFIG["columns"]["mini"], "d": DROP, "c": {"mean_of": ["d"]}}}
            ),
            "columns.mini.c.mean_of must name no drop .* got 'd'",
        ),
        (row(mean_of=[]), r"rows.r.mean_of must be a list of rows, got \[\]"),
        (row(mean_of="sft"), "rows.r.mean_of must be a list of rows, got 'sft'"),
        (row(mean_of=["dpo"]), "rows.r.mean_of must name rows with runs of their own, got 'dpo'"),
        (row(mean_of=["r"]), "rows.r.mean_of must name rows with runs of their own, got 'r'"),
        (row(mean_of=["sft", "sft"]), "rows.r.mean_of must name each row once"),
        (
            row(mean_of=["base", "sft"]),
            r"rows.r.mean_of must join rows of the same seeds \(scale mini\), got \[0\] and \[1, 2, 3\]",
        ),
        (row(mean_of=["sft"], seeds=[1]), r"rows.r must have no seeds, being the mean of other rows, got \[1\]"),
        (row(mean_of=["sft"], overrides=["a=1"]), "rows.r must have no overrides, being the mean"),
        (row(mean_of=["sft"], mini=["a=1"]), "rows.r must have no mini, being the mean"),
        (row(group=3), "rows.r.group must be a text, got 3"),
        (
            config(
                rows={
                    **CONFIG["rows"],
                    "a": {"group": "g", "group_label": "A"},
                    "b": {"group": "g", "group_label": "B"},
                }
            ),
            "rows.b.group_label must be its group's, 'A', got 'B'",
        ),
        (config(choose="average"), "choose must be a mapping with the key column, got 'average'"),
        (config(choose={"colum": "average"}), "choose must have no keys but column, got 'colum'"),
        (config(choose={"column": "mmlu"}), "choose.column must be a column of some scale, got 'mmlu'"),
        (config(plots=[{"x": "nll", "y": "general", "front": "yes"}]), r"plots\[0\].front must be true or false"),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as error:
        Experiment.from_config(given)
    assert "\n" not in str(error.value)
