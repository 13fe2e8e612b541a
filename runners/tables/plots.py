"""The plots of a table, one column against another or a metric over steps: matplotlib figures, as PNG and as SVG.

matplotlib is imported when a figure is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from runners.tables.curves import Line, bounds, lines
from runners.tables.experiment import Curve, Plot
from runners.tables.selection import groups
from runners.tables.table import Table
from runners.tables.wording import with_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; the marker differs as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Their sizes among many points, alike to the eye.
_SMALL = {"o": 8, "s": 8, "^": 9, "D": 7, "v": 9, "P": 9, "X": 9, "*": 12}
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
    for number, curve in enumerate(table.curves, start=1):
        found = lines(table, curve)
        if found:
            words = [curve.title or curve.y, "curve", *([str(number)] if len(table.curves) > 1 else [])]
            name = re.sub(r"[^A-Za-z0-9]+", "-", " ".join(words)).strip("-").lower()
            title = curve.title or f"{curve.label or curve.y} over {curve.x_label}"
            drawings.append(Drawing(name, title, _curves(curve, found, bounds(table, curve), title)))
    return drawings


def _title(table: Table, plot: Plot) -> str:
    x, y = table.column(plot.x), table.column(plot.y)
    return plot.title or f"{y.label if y else plot.y} against {x.label if x else plot.x}"


def _scatter(table: Table, plot: Plot, title: str) -> Figure:
    """One marker per group, its rows with their 95% intervals; hollow where the paper's point is at this scale."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    handles: list[Line2D] = []
    hollow: dict[str, Any] = {"linestyle": "none", "markersize": 11, "markerfacecolor": "none"}
    any_published = False
    grouped = groups(table.rows)
    # Plots of a search hold many points close together.
    crowded = plot.front or len(grouped) < len(table.rows)
    for index, rows in enumerate(grouped):
        style, bars = _styles(index, crowded)
        measured: list[tuple[float, float]] = []
        done = expected = 0
        shown = False
        for row in rows:
            x, y = row.cell(plot.x), row.cell(plot.y)
            if x is None or y is None:
                continue
            if x.mean is not None and y.mean is not None:
                axes.errorbar([x.mean], [y.mean], xerr=x.half_width, yerr=y.half_width, **bars)
                measured.append((x.mean, y.mean))
            published = [cell.published for cell in (x, y)]
            points = [entry.value for entry in published if entry is not None and entry.scale == table.scale]
            if len(points) == 2:
                axes.plot([points[0]], [points[1]], **{**style, "markeredgecolor": style["color"], **hollow})
                any_published = True
            shown = shown or bool(measured) or len(points) == 2
            done, expected = done + min(x.n, y.n), expected + x.expected
        if len(measured) > 1:
            axes.plot(*zip(*measured, strict=True), color=style["color"], linewidth=1, alpha=0.6, zorder=1)
        if crowded and measured:  # above all the bars
            axes.plot(*zip(*measured, strict=True), zorder=3, **style)
        if shown:
            label = rows[0].group_label
            label = label if done == expected else f"{label} ({done} of {expected} seeds)"
            handles.append(Line2D([], [], label=label, **style))
    if plot.front:
        handles += _draw_front(axes, table, plot)
    if any_published:
        handles.append(Line2D([], [], label="hollow: published", marker="o", color="#7F7F7F", **hollow))
    for set_label, key in ((axes.set_xlabel, plot.x), (axes.set_ylabel, plot.y)):
        column = table.column(key)
        if column is not None:
            set_label(with_unit(column.label, column), parse_math=False, fontsize=12)
    axes.set_title(title, parse_math=False, fontsize=13, pad=12, wrap=True)
    _finish(figure, axes, handles, height=5.6 if crowded else 4.4)
    return figure


def _curves(curve: Curve, found: Sequence[Line], limits: Sequence[Line], title: str) -> Figure:
    """One line per row, with its 95% interval as a band; what bounds them is dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for index, line in enumerate(found):
        colour = _COLOURS[index % len(_COLOURS)]
        style = ("-", "-.", ":")[index // len(_COLOURS) % 3]
        handles += axes.plot(line.steps, line.means, color=colour, linestyle=style, linewidth=1.8, label=line.label)
        low = [mean - half for mean, half in zip(line.means, line.half_widths, strict=True)]
        high = [mean + half for mean, half in zip(line.means, line.half_widths, strict=True)]
        axes.fill_between(line.steps, low, high, color=colour, alpha=0.18, linewidth=0)
    for index, line in enumerate(limits):
        dash = ("--", (0, (1, 1)))[index % 2]
        handles += axes.plot(line.steps, line.means, color=_INK, linestyle=dash, linewidth=1.4, label=line.label)
    if curve.log_x:
        axes.set_xscale("log")
    if curve.log_y:
        axes.set_yscale("log")
    axes.set_xlabel(curve.x_label, parse_math=False, fontsize=12)
    axes.set_ylabel(curve.label or curve.y, parse_math=False, fontsize=12)
    axes.set_title(title, parse_math=False, fontsize=13, pad=12, wrap=True)
    _finish(figure, axes, handles, height=4.4)
    return figure


def _styles(index: int, crowded: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the points of the group of this index are drawn, and their intervals."""
    marker, colour = _MARKERS[index % len(_MARKERS)], _COLOURS[index % len(_COLOURS)]
    style: dict[str, Any] = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 9}
    if not crowded:
        return style, {**style, "capsize": 4}
    style |= {"markersize": _SMALL[marker], "markeredgecolor": "white", "markeredgewidth": 0.7, "alpha": 0.9}
    return style, {"fmt": "none", "ecolor": colour, "elinewidth": 1, "capsize": 2, "alpha": 0.7}


def _draw_front(axes: Any, table: Table, plot: Plot) -> list[Any]:
    """The border of what the rows reach, as steps through those on the front; its entry in the legend."""
    from matplotlib.lines import Line2D

    cells = [(row.cell(plot.x), row.cell(plot.y)) for row in table.front(plot)]
    points = sorted((x.mean, y.mean) for x, y in cells if x and y and x.mean is not None and y.mean is not None)
    x_column = table.column(plot.x)
    if len(points) < 2 or x_column is None:
        return []
    # Between two points of the front, the one with the better x is the best that has been reached.
    where = "pre" if x_column.better == "higher" else "post"
    style: dict[str, Any] = {"color": _INK, "linestyle": "--", "linewidth": 1}
    axes.step(*zip(*points, strict=True), where=where, zorder=1.5, alpha=0.7, **style)
    return [Line2D([], [], label="Pareto front", **style)]


def _finish(figure: Figure, axes: Any, handles: Sequence[Any], height: float) -> None:
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
        figure.set_figheight(height + 0.25 * -(-len(handles) // columns))
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=11)
        for text in legend.get_texts():
            text.set_parse_math(False)
            text.set_color(_INK)
