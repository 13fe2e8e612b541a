"""The plots of a table, one column against another: matplotlib figures, as PNG and as SVG for a page.

matplotlib is imported when a figure is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from runners.tables.experiment import Plot
from runners.tables.table import Table
from runners.tables.wording import unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; the marker differs as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# In the SVG this colour becomes the page's own text colour, so that a plot is readable on a dark page.
_INK = "#010203"


class Drawing(NamedTuple):
    """A plot drawn. `name`: of its file, without suffix; unique within the table."""

    name: str
    title: str
    figure: Figure

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()

    def svg(self) -> str:
        """An element of a page: no prolog, ids of its own, text in the page's colour."""
        import matplotlib

        buffer = io.StringIO()
        # The salt makes the ids those of this plot alone, and the same every time.
        with matplotlib.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "path"}):
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows the namespaces
        svg = re.sub(r'<svg([^>]*?)\swidth="[^"]*"', r"<svg\1", svg, count=1)
        svg = re.sub(r'<svg([^>]*?)\sheight="[^"]*"', r"<svg\1", svg, count=1)
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", svg)  # ids are the page's, not the plot's
        return svg.replace(_INK, "currentColor").strip()


def draw_plots(table: Table) -> list[Drawing]:
    """The plots of a table, in its order."""
    drawings: list[Drawing] = []
    for plot in table.plots:
        name = re.sub(r"[^A-Za-z0-9]+", "-", f"{plot.y}-against-{plot.x}").strip("-").lower()
        if any(name == other.name for other in drawings):
            name = f"{name}-{len(drawings) + 1}"
        title = _title(table, plot)
        drawings.append(Drawing(name, title, _scatter(table, plot, title)))
    return drawings


def _title(table: Table, plot: Plot) -> str:
    x, y = table.column(plot.x), table.column(plot.y)
    return plot.title or f"{y.label if y else plot.y} against {x.label if x else plot.x}"


def _scatter(table: Table, plot: Plot, title: str) -> Figure:
    """One marker per row with its 95% intervals; hollow where the paper's point is at this scale."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    handles: list[Line2D] = []
    hollow: dict[str, Any] = {"linestyle": "none", "markersize": 11, "markerfacecolor": "none"}
    any_published = False
    for index, row in enumerate(table.rows):
        x, y = row.cell(plot.x), row.cell(plot.y)
        marker, colour = _MARKERS[index % len(_MARKERS)], _COLOURS[index % len(_COLOURS)]
        style: dict[str, Any] = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 9}
        if x is None or y is None:
            continue
        shown = False
        if x.mean is not None and y.mean is not None:
            axes.errorbar([x.mean], [y.mean], xerr=x.half_width, yerr=y.half_width, capsize=4, **style)
            shown = True
        published = [cell.published for cell in (x, y)]
        points = [entry.value for entry in published if entry is not None and entry.scale == table.scale]
        if len(points) == 2:
            axes.plot([points[0]], [points[1]], **{**style, **hollow})
            shown = any_published = True
        if shown:
            done = min(x.n, y.n)
            label = row.label if done == x.expected else f"{row.label} ({done} of {x.expected} seeds)"
            handles.append(Line2D([], [], label=label, **style))
    if any_published:
        handles.append(Line2D([], [], label="hollow: published", marker="o", color="#7F7F7F", **hollow))
    for set_label, key in ((axes.set_xlabel, plot.x), (axes.set_ylabel, plot.y)):
        column = table.column(key)
        if column is not None:
            set_label(f"{column.label} ({unit(column)})", parse_math=False, fontsize=12)
    axes.set_title(title, parse_math=False, fontsize=13, pad=12, wrap=True)
    _finish(figure, axes, handles)
    return figure


def _finish(figure: Figure, axes: Any, handles: Sequence[Any]) -> None:
    """Margins, ink and a legend below the axes, outside them, so that it never covers a point."""
    axes.margins(0.12)
    axes.tick_params(labelsize=11, colors=_INK)
    axes.grid(alpha=0.25, color="#7F7F7F")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_color(_INK)
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(len(handles), 4, 72 // (longest + 6)))
        # The legend's lines are added to the figure's height, not taken from the axes.
        figure.set_figheight(4.4 + 0.25 * -(-len(handles) // columns))
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=11)
        for text in legend.get_texts():
            text.set_parse_math(False)
            text.set_color(_INK)
