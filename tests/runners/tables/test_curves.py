"""Curves: what runs logged over their steps, as lines with an interval."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from runners.tables.curves import bounds, lines
from runners.tables.experiment import Curve, Experiment
from runners.tables.plots import draw_plots
from runners.tables.table import Table, build_table
from runners.tables.wording import unit
from tests.runners.tables.shown_table import config, run

CURVE = {"y": "regret/mean", "label": "regret", "x_label": "rounds", "log_x": True, "bounds": ["regret/lower_bound"]}


def logged(folder: Path, values: dict[int, float], more: str = "") -> str:
    folder.mkdir(parents=True)
    text = "".join(
        json.dumps({"step": step, "regret/mean": value, "regret/lower_bound": 2.0 * step}) + "\n"
        for step, value in values.items()
    )
    (folder / "metrics.jsonl").write_text(text + more)
    return str(folder)


def table(tmp_path: Path, **changes: object) -> Table:
    runs = []
    for seed, at_10 in ((1, 4.0), (2, 8.0), (3, 6.0)):
        folder = logged(tmp_path / f"sft{seed}", {1: 1.0, 10: at_10, **({20: 9.0} if seed == 1 else {})}, '{"step": 3')
        runs.append(replace(run("sft", seed, 0.5, 1.0), folder=folder))
    return build_table({**config(), "curves": [{**CURVE, **changes}]}, "mini", runs)


def test_a_line_is_the_mean_over_seeds_at_the_steps_that_all_logged(tmp_path: Path) -> None:
    built = table(tmp_path)
    (line,) = lines(built, built.curves[0])
    assert (line.label, line.steps, line.means) == ("Standard FT", [1, 10], [1.0, 6.0])
    assert line.half_widths[0] == 0
    assert line.half_widths[1] == pytest.approx(4.302653 * 2 / 3**0.5, rel=1e-6)  # t of 2 degrees of freedom
    (bound,) = bounds(built, built.curves[0])
    assert (bound.label, bound.means) == ("lower bound", [2.0, 20.0])


def test_a_curve_is_drawn_beside_the_plots(tmp_path: Path) -> None:
    drawings = draw_plots(table(tmp_path, title="Regret"))
    assert drawings[-1].name == "regret-curve"
    axes = drawings[-1].figure.axes[0]
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "rounds"
    assert [text.get_text() for text in drawings[-1].figure.legends[0].get_texts()] == ["Standard FT", "lower bound"]


def test_a_curve_that_nobody_logged_is_left_out(tmp_path: Path) -> None:
    built = table(tmp_path, y="loss/other")
    assert lines(built, built.curves[0]) == []
    assert all("curve" not in drawing.name for drawing in draw_plots(built))
    assert lines(table(tmp_path / "more", rows=["flow"]), Curve("regret/mean", rows=("flow",))) == []


def test_a_curve_of_an_unknown_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"curves\[0\].rows must name one of the rows"):
        Experiment.from_config({**config(), "curves": [{**CURVE, "rows": ["dpo"]}]})


def test_a_column_without_a_direction_is_shown_and_not_compared() -> None:
    given = {**config(), "claims": [], "plots": []}
    given["columns"]["mini"]["nll"]["better"] = "neither"
    built = build_table(given, "mini", [])
    column = built.column("nll")
    assert column is not None and unit(column) == ""
    with pytest.raises(ValueError, match=r"plots\[0\].front must be of columns of which higher or lower is better"):
        Experiment.from_config({**given, "plots": [{"x": "nll", "y": "general", "front": True}]})
