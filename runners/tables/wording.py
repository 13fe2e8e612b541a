"""The words that every form of a table is made from: `61.3 ± 1.2 (3)`, `paper 61.2`, the verdict, a claim's numbers.

Each form escapes them for its own format, so that no two forms can disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

from runners.tables.cells import RATIO_DECIMALS, Cell, TableRow, format_number, format_published
from runners.tables.claims import ClaimResult
from runners.tables.table import Table, TableColumn

NOTHING = "—"
LEGEND = (
    "Under a number: what the paper published, at this scale unless another is named, and the verdict. "
    f"{NOTHING}, or nothing, under a number: no published number."
)
CLAIM_MARKS = {"holds": "✓", "does not hold": "✗", "inconclusive": "?"}


@dataclass(frozen=True)
class CellText:
    """What stands in a cell, one under the other (empty: nothing), and why it was judged so."""

    measured: str
    published: str
    verdict: str
    reason: str


def row_label(row: TableRow) -> str:
    """The row's label, with a mark where it is the chosen one of its group."""
    return f"{row.label} (chosen)" if row.chosen else row.label


def cell_text(table: Table, row: TableRow, column: TableColumn) -> CellText:
    cell = row.cell(column.key)
    if cell is None:
        return CellText("", "", "", "")
    return CellText(
        _measured(cell, RATIO_DECIMALS if row.operation == "over" else column.decimals, row.operation == "minus"),
        # A row of which nothing is published needs no line that says so in every cell.
        _published(table, cell, row.operation == "minus") if any(c.published for c in row.cells) else "",
        cell.verdict or "",
        cell.reason,
    )


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


def unit(column: TableColumn) -> str:
    """The unit and an arrow that points to where better lies, if anywhere."""
    arrow = {"higher": "↑", "lower": "↓"}.get(column.better, "")
    return f"{column.unit} {arrow}".strip()


def with_unit(label: str, column: TableColumn) -> str:
    """A column's label, its unit and arrow in brackets where it has any."""
    return f"{label} ({unit(column)})" if unit(column) else label


def claim_detail(table: Table, claim: ClaimResult) -> str:
    """The numbers behind a claim's verdict: the difference, its interval, the pairs, the adjusted p, the reason."""
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


def citation(table: Table) -> str:
    """The paper: authors, title, arXiv id, table; what the experiment does not state is left out."""
    paper = table.paper
    arxiv = f"arXiv:{paper.arxiv}" if paper.arxiv else ""
    return ". ".join(part.rstrip(".") for part in (paper.authors, paper.title, arxiv, paper.table) if part)


def scale_line(table: Table) -> str:
    return f"{table.name}, scale {table.scale}" + ("" if table.setting == "paper" else f" (setting: {table.setting})")


def notes(table: Table) -> tuple[str, ...]:
    """The footnotes, after a legend where something published stands under a number."""
    shown = {column.key for column in table.shown_columns}
    cells = (cell for row in (*table.rows, *table.relations) for cell in row.cells if cell.column in shown)
    return (LEGEND, *table.footnotes) if any(cell.published for cell in cells) else table.footnotes
