"""What an experiment says about its table is refused, in one line, where it does not fit together."""

import math

import pytest

from runners.tables.experiment import Experiment
from tests.runners.tables.experiments import CLAIM, CONFIG, VALUE, config


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
