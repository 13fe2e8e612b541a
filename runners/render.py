"""Show a finished table: in the terminal, as Markdown, CSV, LaTeX and a self-contained HTML page, and to W&B.

Every form is made from the same few texts (`61.3 ± 1.2 (3)`, `paper 61.2`, the verdict), so that they cannot
disagree; each escapes them for its own format. rich, Jinja2 and matplotlib are imported when they are needed.
"""

from __future__ import annotations

import csv
import io
import os
import re
import sys
import tempfile
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.table import (
    Cell,
    ClaimResult,
    Plot,
    Table,
    TableColumn,
    TableRow,
    format_number,
    format_published,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.text import Text

NOTHING = "—"
LEGEND = (
    "Under a number: what the paper published, at this scale unless another is named, and the verdict. "
    f"{NOTHING}, or nothing, under a number: no published number."
)
CLAIM_MARKS = {"holds": "✓", "does not hold": "✗", "inconclusive": "?"}
TERMINAL_STYLES = {
    "reproduced": "green",
    "holds": "green",
    "differs": "red",
    "does not hold": "red",
    "failed": "bold red",
    "inconclusive": "yellow",
    "stale": "magenta",
    "missing": "dim",
    "not comparable": "dim",
}
# fmt: off
CSV_COLUMNS = [
    "kind", "row", "row_label", "column", "column_label", "mean", "half_width", "n", "expected",
    "published", "published_scale", "source", "tolerance", "verdict", "reason",
]
WANDB_COLUMNS = [
    "row", "column", "mean", "half_width", "seeds", "published", "published_scale", "verdict", "reason",
]
# fmt: on


# ---------------------------------------------------------------------------------- the texts all forms share


@dataclass(frozen=True)
class CellText:
    measured: str
    published: str
    verdict: str
    reason: str


def _cell_text(table: Table, row: TableRow, column: TableColumn) -> CellText:
    cell = row.cell(column.key)
    if cell is None:
        return CellText("", "", "", "")
    return CellText(
        _measured(cell, _decimals(row, column), row.operation == "minus"),
        # A row of which nothing is published needs no line that says so in every cell.
        _published(table, cell, row.operation == "minus") if any(c.published for c in row.cells) else "",
        cell.verdict or "",
        cell.reason,
    )


def _decimals(row: TableRow, column: TableColumn) -> int:
    return 3 if row.operation == "over" else column.decimals


def _measured(cell: Cell, decimals: int, signed: bool) -> str:
    if cell.mean is None:
        return NOTHING
    text = format_number(cell.mean, decimals, signed)
    if cell.half_width is not None:
        text += f" ± {format_number(cell.half_width, decimals)}"
    return f"{text} ({cell.n})" if cell.n == cell.expected else f"{text} ({cell.n} of {cell.expected})"


def _published(table: Table, cell: Cell, signed: bool) -> str:
    if cell.published is None:
        return NOTHING
    text = f"paper {format_published(cell.published.value, signed)}"
    return text if cell.published.scale == table.scale else f"{text} ({cell.published.scale})"


def _unit(column: TableColumn) -> str:
    """The unit and an arrow that points to where better lies."""
    arrow = "↑" if column.better == "higher" else "↓"
    return f"{column.unit} {arrow}" if column.unit else arrow


def _claim_detail(table: Table, claim: ClaimResult) -> str:
    column = table.column(claim.column)
    label = claim.column if column is None else column.label
    parts = [f"{label}, {table.row_label(claim.row)} against {table.row_label(claim.beats)}"]
    if claim.mean is not None:
        text = f"better by {format_number(claim.mean, claim.decimals, signed=True)}"
        if claim.half_width is not None:
            low, high = claim.mean - claim.half_width, claim.mean + claim.half_width
            ends = [format_number(end, claim.decimals, signed=True) for end in (low, high)]
            text += f" (95% CI {ends[0]} to {ends[1]})"
        parts.append(f"{text}, asked: more than {claim.by:g}")
        parts.append(f"{claim.n} pair{'' if claim.n == 1 else 's'}")
    if claim.adjusted_p is not None:
        parts.append(f"adjusted {_p_value(claim.adjusted_p)}")
    if claim.reason:
        parts.append(claim.reason)
    return "; ".join(parts)


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3g}"


def _citation(table: Table) -> str:
    paper = table.paper
    arxiv = f"arXiv:{paper.arxiv}" if paper.arxiv else ""
    return ". ".join(part.rstrip(".") for part in (paper.authors, paper.title, arxiv, paper.table) if part)


def _scale_line(table: Table) -> str:
    return f"{table.name}, scale {table.scale}" + (" (setting: ours)" if table.setting == "ours" else "")


def _footnotes(table: Table) -> tuple[str, ...]:
    return (LEGEND, *table.footnotes)


# --------------------------------------------------------------------------------------------------- terminal


def render_terminal(table: Table, console: Console | None = None) -> None:
    """Print the table, its claims and footnotes; a wide table in blocks of columns that fit the console."""
    from rich.console import Console
    from rich.text import Text

    if console is None:
        # A pipe has no width of its own; 100 columns unless the user says otherwise.
        piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
        console = Console(width=100 if piped else None, highlight=False)
    plain = _ascii if console.options.ascii_only else str

    def line(text: str, style: str = "") -> None:
        console.print(Text(plain(text), style=style), highlight=False)

    def hanging(mark: str, text: str, mark_style: str, style: str = "") -> None:
        # A path stays in one piece, so that it can be copied, even where it is longer than a line.
        width = max(console.width - len(mark), 20)
        wrapped = textwrap.wrap(plain(text), width, break_long_words=False, break_on_hyphens=False)
        for index, part in enumerate(wrapped):
            head = Text(plain(mark) if index == 0 else " " * len(mark), style=mark_style)
            console.print(head.append(part, style=style or "default"), highlight=False, soft_wrap=True)

    line(table.title, "bold")
    if _citation(table):
        line(_citation(table), "dim")
    line(_scale_line(table), "dim")
    for block in _blocks(table, console.width):
        console.print(_terminal_grid(table, block, console.width, console.options.ascii_only))
    if table.claims:
        line("Claims", "bold")
        width = max(len(claim.verdict) for claim in table.claims)
        for claim in table.claims:
            mark = f" {CLAIM_MARKS[claim.verdict]} {claim.verdict:<{width}} "
            hanging(mark, claim.text, TERMINAL_STYLES[claim.verdict])
            hanging(" " * len(mark), _claim_detail(table, claim), "dim", "dim")
        console.print()
    for note in _footnotes(table):
        hanging(" - ", note, "dim", "dim")


def _terminal_grid(table: Table, columns: Sequence[TableColumn], width: int, ascii_only: bool) -> Any:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    plain = _ascii if ascii_only else str
    grid = Grid(box=box.ASCII2 if ascii_only else box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("", overflow="fold", max_width=max(width // 3, 10))
    for column in columns:
        grid.add_column(Text(plain(f"{column.label}\n{_unit(column)}"), justify="right"), justify="right")
    for rows in (table.rows, table.relations):
        for row in rows:
            texts = [_cell_text(table, row, column) for column in columns]
            if not any(text.measured for text in texts):
                continue  # a ratio published only for columns of another block
            grid.add_row(Text(plain(row.label)), *(_terminal_cell(text, plain) for text in texts))
        grid.add_section()
    return grid


def _terminal_cell(cell: CellText, plain: Callable[[str], str]) -> Text:
    from rich.text import Text

    text = Text(plain(cell.measured))
    if cell.published:
        text.append("\n" + plain(cell.published), style="dim")
    if cell.verdict:
        text.append("\n" + cell.verdict, style=TERMINAL_STYLES[cell.verdict])
    return text


def _blocks(table: Table, width: int) -> list[list[TableColumn]]:
    """The shown columns, cut into blocks that fit in `width` beside the row labels."""
    from rich.cells import cell_len

    rows = (*table.rows, *table.relations)
    labels = min(max(cell_len(row.label) for row in rows), max(width // 3, 10)) + 2
    blocks: list[list[TableColumn]] = []
    used = width
    for column in table.shown_columns:
        texts = [_cell_text(table, row, column) for row in rows]
        parts = [
            column.label,
            *(part for text in texts for part in (text.measured, text.published, text.verdict)),
        ]
        needed = max(map(cell_len, parts)) + 2
        if used + needed > width:
            blocks.append([])
            used = labels
        blocks[-1].append(column)
        used += needed
    return blocks


_TO_ASCII = {ord(k): v for k, v in zip("±−—↑↓✓✗", ("+-", "-", "--", "up", "down", "+", "x"), strict=True)}


def _ascii(text: str) -> str:
    """For terminals and pipes that take no Unicode."""
    plain = text.translate(_TO_ASCII)
    return plain.encode("ascii", "replace").decode("ascii")


# ------------------------------------------------------------------------------------------------------ files


def write_files(table: Table, folder: str | Path) -> list[Path]:
    """Write table.md, table.csv, values.csv, table.tex, table.html and plots/*.png into `folder`.

    Returns their paths. Each file is replaced atomically, so that a reader never sees half of one.
    """
    folder = Path(folder)
    figures = _figures(table)
    contents: dict[Path, bytes] = {
        folder / "table.md": to_markdown(
            table, [(f"plots/{name}.png", plot) for name, plot, _ in figures]
        ).encode(),
        folder / "table.csv": to_csv(table).encode(),
        folder / "values.csv": values_to_csv(table).encode(),
        folder / "table.tex": to_latex(table).encode(),
        folder / "table.html": _html(table, figures).encode(),
    }
    for name, _, figure in figures:
        contents[folder / "plots" / f"{name}.png"] = _png(figure)
    for path, content in contents.items():
        _write_atomically(path, content)
    return list(contents)


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would make the files the owner's alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def to_markdown(table: Table, images: Sequence[tuple[str, Plot]] = ()) -> str:
    """GitHub Markdown. `images`: (relative path, plot) of the plots to link."""
    columns = table.shown_columns
    lines = [f"# {_md(table.title)}", ""]
    if _citation(table):
        lines += [_md(_citation(table)), ""]
    lines += [_md(_scale_line(table)), ""]
    lines.append("| |" + "".join(f" {_md(column.label)} ({_unit(column)}) |" for column in columns))
    lines.append("|:--|" + "--:|" * len(columns))
    for row in (*table.rows, *table.relations):
        cells = []
        for column in columns:
            text = _cell_text(table, row, column)
            verdict = f"*{text.verdict}*" if text.verdict else ""
            cells.append(
                "<br>".join(part for part in (_md(text.measured), _md(text.published), verdict) if part)
            )
        lines.append(f"| {_md(row.label)} |" + "".join(f" {cell} |" for cell in cells))
    if table.claims:
        lines += ["", "## Claims", ""]
        for claim in table.claims:
            mark = CLAIM_MARKS[claim.verdict]
            detail = _md(_claim_detail(table, claim))
            lines.append(f"- {mark} **{claim.verdict}**: {_md(claim.text)}<br>{detail}")
    for path, plot in images:
        lines += ["", f"![{_md(_plot_title(table, plot))}]({path})"]
    lines += ["", "## Notes", "", *(f"- {_md(note)}" for note in _footnotes(table))]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """One line per cell and relation, full precision; an empty field is "none"."""
    records: list[list[object]] = []
    for kind, row, cell in _cells(table):
        published = cell.published
        column = table.column(cell.column)
        records.append(
            [
                kind,
                row.key,
                row.label,
                cell.column,
                column.label if column is not None else "",
                cell.mean,
                cell.half_width,
                cell.n,
                cell.expected,
                published.value if published else None,
                published.scale if published else None,
                published.source if published else None,
                cell.tolerance,
                cell.verdict,
                cell.reason,
            ]
        )
    return _csv(CSV_COLUMNS, records)


def values_to_csv(table: Table) -> str:
    """One line per cell and seed."""
    return _csv(
        ("kind", "row", "column", "seed", "value"),
        [
            [kind, row.key, cell.column, seed, value]
            for kind, row, cell in _cells(table)
            for seed, value in cell.values
        ],
    )


def as_rows(table: Table) -> tuple[list[str], list[list[str | float | int | None]]]:
    """(column names, rows) for a `wandb.Table`: one row per shown cell; a number there is not is None."""
    shown = {column.key: column.label for column in table.shown_columns}
    rows: list[list[str | float | int | None]] = []
    for _, row, cell in _cells(table):
        if cell.column in shown:
            published = cell.published
            rows.append(
                [
                    row.label,
                    shown[cell.column],
                    cell.mean,
                    cell.half_width,
                    cell.n,
                    float(published.value) if published else None,
                    published.scale if published else "",
                    cell.verdict or ("no published number" if published is None else ""),
                    cell.reason,
                ]
            )
    return WANDB_COLUMNS.copy(), rows


def _cells(table: Table) -> Iterable[tuple[str, TableRow, Cell]]:
    for kind, rows in (("row", table.rows), ("relation", table.relations)):
        for row in rows:
            for cell in row.cells:
                yield kind, row, cell


def _csv(header: Sequence[str], records: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(records)
    return buffer.getvalue()


def _md(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~&$!])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------------------ LaTeX

_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": "$-$",
    "—": "---",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\to$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "²": "$^2$",
    # After the end of a row these two would be read as its options.
    "[": "{[}",
    "*": "{*}",
}


def to_latex(table: Table) -> str:
    r"""A `table` environment for \usepackage{booktabs}, with the claims and footnotes below it."""
    columns = table.shown_columns
    caption = ". ".join(part for part in (table.title, _citation(table), _scale_line(table)) if part)
    head = " & ".join(f"{_tex(column.label)} ({_tex(_unit(column))})" for column in columns)
    lines = [
        r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc}",
        r"\begin{table}[t]",
        r"  \centering",
        rf"  \caption{{{_tex(caption)}.}}",
        rf"  \label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', f'{table.name}-{table.scale}').strip('-')}}}",
        rf"  \begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"    \toprule",
        rf"    & {head} \\",
        r"    \midrule",
    ]
    for index, rows in enumerate((table.rows, table.relations)):
        if index and rows:
            lines.append(r"    \midrule")
        for row in rows:
            texts = [_cell_text(table, row, column) for column in columns]
            lines.append(
                f"    {_tex(row.label)} & " + " & ".join(_tex(text.measured) for text in texts) + r" \\"
            )
            if any(text.verdict for text in texts):
                for parts in ([text.published for text in texts], [text.verdict for text in texts]):
                    if any(parts):
                        shown = (rf"\footnotesize {_tex(part)}" if part else "" for part in parts)
                        lines.append("    & " + " & ".join(shown) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"  \par\medskip\raggedright\footnotesize"]
    for claim in table.claims:
        detail = _claim_detail(table, claim)
        lines.append(rf"  \textbf{{{claim.verdict}}}: {_tex(claim.text)} ({_tex(detail)}).\par")
    lines += [rf"  {_tex(note)}\par" for note in _footnotes(table)]
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    escaped = "".join(_TEX.get(character) or _greek(character) for character in _one_line(text))
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)  # a minus sign, not a hyphen


def _greek(character: str) -> str:
    """A small Greek letter, or Delta, as the command that pdflatex knows; everything else as it is."""
    name = unicodedata.name(character, "")
    if character == "Δ":
        return r"$\Delta$"
    if name.startswith("GREEK SMALL LETTER ") and name.count(" ") == 3 and character not in "ος":
        return rf"$\{name.rpartition(' ')[2].lower().replace('lamda', 'lambda')}$"
    return character


# ------------------------------------------------------------------------------------------------------- HTML


def to_html(table: Table) -> str:
    """One page that loads nothing: its style and plots (SVG) are inside it."""
    return _html(table, _figures(table))


def _html(table: Table, figures: Sequence[tuple[str, Plot, Figure]]) -> str:
    import jinja2
    from markupsafe import Markup

    source = resources.files("runners").joinpath("templates", "table.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    columns = table.shown_columns

    def line(row: TableRow) -> dict[str, Any]:
        return {"label": row.label, "cells": [_cell_text(table, row, column) for column in columns]}

    plots = [
        {"title": _plot_title(table, plot), "svg": Markup(_svg(name, figure))}
        for name, plot, figure in figures
    ]
    return environment.from_string(source).render(
        table=table,
        columns=[{"label": column.label, "unit": _unit(column)} for column in columns],
        definitions=table.columns,
        groups=[[line(row) for row in rows] for rows in (table.rows, table.relations) if rows],
        claims=[
            {"mark": CLAIM_MARKS[claim.verdict], "claim": claim, "detail": _claim_detail(table, claim)}
            for claim in table.claims
        ],
        plots=plots,
        footnotes=_footnotes(table),
        arxiv=table.paper.arxiv if re.fullmatch(r"[\w.\-/]+", table.paper.arxiv) else "",
        nothing=NOTHING,
    )


# ------------------------------------------------------------------------------------------------------ plots

# Okabe and Ito's colours, which colour-blind readers can tell apart; the marker differs as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# In the SVG this colour becomes the page's own text colour, so that a plot is readable on a dark page.
_INK = "#010203"


def _figures(table: Table) -> list[tuple[str, Plot, Figure]]:
    """(file name, plot, figure) per plot; file names are unique."""
    figures: list[tuple[str, Plot, Figure]] = []
    for plot in table.plots:
        name = re.sub(r"[^A-Za-z0-9]+", "-", f"{plot.y}-against-{plot.x}").strip("-").lower()
        if any(name == other for other, _, _ in figures):
            name = f"{name}-{len(figures) + 1}"
        figures.append((name, plot, _scatter(table, plot)))
    return figures


def _plot_title(table: Table, plot: Plot) -> str:
    x, y = table.column(plot.x), table.column(plot.y)
    return plot.title or f"{y.label if y else plot.y} against {x.label if x else plot.x}"


def _scatter(table: Table, plot: Plot) -> Figure:
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
        shown = False
        if x is None or y is None:
            continue
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
            set_label(f"{column.label} ({_unit(column)})", parse_math=False, fontsize=12)
    axes.set_title(_plot_title(table, plot), parse_math=False, fontsize=13, pad=12, wrap=True)
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
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=11
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
            text.set_color(_INK)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _svg(name: str, figure: Figure) -> str:
    """The figure as an element of a page: no prolog, ids of its own, text in the page's colour."""
    import matplotlib

    buffer = io.StringIO()
    # The salt makes the ids those of this plot alone, and the same every time.
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows the namespaces
    svg = re.sub(r'<svg([^>]*?)\swidth="[^"]*"', r"<svg\1", svg, count=1)
    svg = re.sub(r'<svg([^>]*?)\sheight="[^"]*"', r"<svg\1", svg, count=1)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)  # ids are the page's, not the plot's
    return svg.replace(_INK, "currentColor").strip()
