"""Show a finished table: print it in the terminal, write its files. rich is imported when something is printed."""

from __future__ import annotations

import os
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.tables.formats import to_csv, to_latex, to_markdown, values_to_csv
from runners.tables.page import to_html
from runners.tables.plots import draw_plots
from runners.tables.table import Table, TableColumn
from runners.tables.wording import (
    CLAIM_MARKS,
    CellText,
    cell_text,
    citation,
    claim_detail,
    notes,
    row_label,
    scale_line,
    unit,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

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
    if citation(table):
        line(citation(table), "dim")
    line(scale_line(table), "dim")
    for block in _blocks(table, console.width):
        console.print(_terminal_grid(table, block, console.width, console.options.ascii_only))
    if table.claims:
        line("Claims", "bold")
        width = max(len(claim.verdict) for claim in table.claims)
        for claim in table.claims:
            mark = f" {CLAIM_MARKS[claim.verdict]} {claim.verdict:<{width}} "
            hanging(mark, claim.text, TERMINAL_STYLES[claim.verdict])
            hanging(" " * len(mark), claim_detail(table, claim), "dim", "dim")
        console.print()
    for note in notes(table):
        hanging(" - ", note, "dim", "dim")


def _terminal_grid(table: Table, columns: Sequence[TableColumn], width: int, ascii_only: bool) -> Any:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    plain = _ascii if ascii_only else str
    grid = Grid(box=box.ASCII2 if ascii_only else box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("", overflow="fold", max_width=max(width // 3, 10))
    for column in columns:
        grid.add_column(Text(plain(f"{column.label}\n{unit(column)}"), justify="right"), justify="right")
    for rows in (table.rows, table.relations):
        for row in rows:
            texts = [cell_text(table, row, column) for column in columns]
            if not any(text.measured for text in texts):
                continue  # a ratio published only for columns of another block
            grid.add_row(Text(plain(row_label(row))), *(_terminal_cell(text, plain) for text in texts))
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
    labels = min(max(cell_len(row_label(row)) for row in rows), max(width // 3, 10)) + 2
    blocks: list[list[TableColumn]] = []
    used = width
    for column in table.shown_columns:
        texts = [cell_text(table, row, column) for row in rows]
        parts = [column.label, *(part for t in texts for part in (t.measured, t.published, t.verdict))]
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


# ------------------------------------------------------------------------------------------------------------ files


def write_files(table: Table, folder: str | Path) -> list[Path]:
    """Write table.md, table.csv, values.csv, table.tex, table.html and plots/*.png into `folder`.

    Returns their paths. Each file is replaced atomically, so that a reader never sees half of one.
    """
    folder = Path(folder)
    drawings = draw_plots(table)
    images = [(f"plots/{drawing.name}.png", drawing.title) for drawing in drawings]
    contents: dict[Path, bytes] = {
        folder / "table.md": to_markdown(table, images).encode(),
        folder / "table.csv": to_csv(table).encode(),
        folder / "values.csv": values_to_csv(table).encode(),
        folder / "table.tex": to_latex(table).encode(),
        folder / "table.html": to_html(table, drawings).encode(),
    }
    for drawing in drawings:
        contents[folder / "plots" / f"{drawing.name}.png"] = drawing.png()
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
