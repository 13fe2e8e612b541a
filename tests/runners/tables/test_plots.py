"""Plots: what their labels say and which points they show."""

import io

from runners.tables.plots import draw_plots
from runners.tables.table import build_table
from tests.runners.tables.shown_table import PUBLISHED, RUNS, config, table


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
