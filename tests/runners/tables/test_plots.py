"""Plots: what their labels say and which points they show."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex

from runners.tables.plots import draw_plots
from runners.tables.table import build_table
from tests.runners.tables.shown_table import PUBLISHED, RUNS, config, run, table


def test_plot_labels_are_not_read_as_mathematics_or_hidden(recwarn):
    given = config("_FLOW $x_", PUBLISHED)
    given["columns"]["mini"]["nll"]["label"] = "cost in $ per $ _{"
    drawings = draw_plots(build_table(given, "mini", RUNS))
    labels = [text.get_text() for text in drawings[0].figure.legends[0].get_texts()]
    assert labels == ["Pre-trained", "Standard FT", "_FLOW $x_ (2 of 3 seeds)", "hollow: published"]
    assert drawings[0].figure.axes[0].get_xlabel() == "cost in $ per $ _{ (↓)"
    for drawing in drawings:
        drawing.figure.savefig(io.BytesIO(), format="png")
    assert not [w for w in recwarn if "glyph" in str(w.message).lower() or "underscore" in str(w.message).lower()]


def test_published_points_are_hollow_and_only_those_of_this_scale():
    drawings = draw_plots(table())
    hollow = [line for line in drawings[0].figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in hollow] == [([1.2], [52.0])]
    assert drawings[0].figure.legends[0].get_texts()[-1].get_text() == "hollow: published"


# ----------------------------------------------------------------------------------------------------------- groups


def searched(groups, per_group=2, front=True, labels=True, **changes):
    """A table of `groups` methods with several settings each, and the drawing of its plot."""
    given = config()
    given |= {"claims": [], "baseline": None, "plots": [{"x": "nll", "y": "general", "front": front}]}
    given["rows"], results = {}, []
    for index in range(groups):
        for setting in range(per_group):
            key = f"g{index}-{setting}"
            given["rows"][key] = {"label": f"Method {index}, lr {setting}", "group": f"g{index}"}
            if labels:
                given["rows"][key]["group_label"] = f"Method {index}"
            # Better on one axis, worse on the other; and later groups worse on both.
            results += [
                run(key, seed, 0.9 - 0.1 * setting - 0.01 * index, 2.0 - 0.5 * setting + 0.1 * index)
                for seed in (1, 2, 3)
            ]
    given |= changes
    (drawing,) = draw_plots(build_table(given, "mini", results))
    return drawing


def legend(drawing):
    return [text.get_text() for text in drawing.figure.legends[0].get_texts()]


def lines(drawing, style):
    return [
        line for line in drawing.figure.axes[0].lines if line.get_linestyle() == style and len(line.get_xdata()) > 1
    ]


def test_the_rows_of_a_group_have_one_marker_one_line_and_one_entry():
    drawing = searched(3, front=False)
    assert legend(drawing) == ["Method 0", "Method 1", "Method 2"]
    joined = lines(drawing, "-")
    assert len(joined) == 3
    assert joined[1].get_xdata() == pytest.approx([2.1, 1.6]) and joined[1].get_ydata() == pytest.approx([89, 79])
    points = [line for line in drawing.figure.axes[0].lines if line.get_marker() in ("o", "s", "^")]
    assert [line.get_marker() for line in points] == ["o", "s", "^"]
    assert [len(line.get_xdata()) for line in points] == [2, 2, 2]
    assert [line.get_color() for line in points] == [line.get_color() for line in joined]
    assert legend(searched(2, labels=False, front=False)) == ["g0", "g1"]


def test_a_group_of_one_row_has_no_line():
    assert lines(searched(3, per_group=1), "-") == []


def test_a_group_that_is_not_complete_says_so_once():
    given = config()
    given["plots"] = given["plots"][:1]
    for key in ("sft", "flow"):
        given["rows"][key] |= {"group": "tuned", "group_label": "Fine-tuned"}
    (drawing,) = draw_plots(build_table(given, "mini", RUNS))
    assert legend(drawing) == ["Pre-trained", "Fine-tuned (5 of 6 seeds)"]


def test_sixteen_groups_are_told_apart():
    drawing = searched(16)
    handles = drawing.figure.legends[0].legend_handles[:16]
    assert len({(handle.get_marker(), to_hex(handle.get_color())) for handle in handles}) == 16
    assert legend(drawing) == [*(f"Method {index}" for index in range(16)), "Pareto front"]
    # Nothing lies over another thing: the legend below the axes, the labels inside the figure.
    drawing.figure.draw_without_rendering()
    (axes,) = drawing.figure.axes
    box = drawing.figure.legends[0].get_window_extent()
    assert box.y1 <= axes.xaxis.label.get_window_extent().y0
    assert box.x0 >= 0 and box.x1 <= drawing.figure.bbox.x1


def test_the_front_is_a_dashed_staircase_of_the_points_not_beaten():
    # NLL is better lower: of x from 1.5 to 2 the best general is what x = 1.5 has, 80.
    (dashed,) = lines(searched(3), "--")
    assert dashed.get_drawstyle() == "steps-post"
    assert list(zip(dashed.get_xdata(), dashed.get_ydata(), strict=True)) == [
        (pytest.approx(1.5), pytest.approx(80)),
        (pytest.approx(2.0), pytest.approx(90)),
    ]
    assert lines(searched(3, front=False), "--") == []
    columns = config()["columns"]
    columns["mini"]["nll"]["better"] = "higher"
    (dashed,) = lines(searched(3, columns=columns), "--")
    assert dashed.get_drawstyle() == "steps-pre"
    assert np.allclose(dashed.get_xdata(), [2.0, 2.1, 2.2]) and np.allclose(dashed.get_ydata(), [90, 89, 88])


def test_a_front_of_one_point_has_no_line():
    drawing = searched(2, per_group=1)
    assert lines(drawing, "--") == [] and legend(drawing) == ["Method 0", "Method 1"]
