"""A table as text: Markdown, CSV, LaTeX, and the rows that a tracker takes."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence

from runners.tables.cells import Cell, TableRow
from runners.tables.table import Table
from runners.tables.wording import (
    CLAIM_MARKS,
    cell_text,
    citation,
    claim_detail,
    notes,
    row_label,
    scale_line,
    with_unit,
)

# fmt: off
CSV_COLUMNS = [
    "kind", "row", "row_label", "column", "column_label", "mean", "half_width", "n", "expected",
    "published", "published_scale", "source", "tolerance", "verdict", "reason",
]
WANDB_COLUMNS = [
    "row", "column", "mean", "half_width", "seeds", "published", "published_scale", "verdict", "reason",
]
# fmt: on


# --------------------------------------------------------------------------------------------------------- Markdown


def to_markdown(table: Table, images: Sequence[tuple[str, str]] = ()) -> str:
    """GitHub Markdown. `images`: (relative path, title) of the plots to link."""
    columns = table.shown_columns
    lines = [f"# {_md(table.title)}", ""]
    if citation(table):
        lines += [_md(citation(table)), ""]
    lines += [_md(scale_line(table)), ""]
    lines.append("| |" + "".join(f" {with_unit(_md(column.label), column)} |" for column in columns))
    lines.append("|:--|" + "--:|" * len(columns))
    for row in (*table.rows, *table.relations):
        cells = []
        for column in columns:
            text = cell_text(table, row, column)
            verdict = f"*{text.verdict}*" if text.verdict else ""
            cells.append("<br>".join(part for part in (_md(text.measured), _md(text.published), verdict) if part))
        lines.append(f"| {_md(row_label(row))} |" + "".join(f" {cell} |" for cell in cells))
    if table.claims:
        lines += ["", "## Claims", ""]
        for claim in table.claims:
            mark = CLAIM_MARKS[claim.verdict]
            detail = _md(claim_detail(table, claim))
            lines.append(f"- {mark} **{claim.verdict}**: {_md(claim.text)}<br>{detail}")
    for path, title in images:
        lines += ["", f"![{_md(title)}]({path})"]
    lines += ["", "## Notes", "", *(f"- {_md(note)}" for note in notes(table))]
    return "\n".join(lines) + "\n"


def _md(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~&$!])", r"\\\1", _one_line(text))


# -------------------------------------------------------------------------------------------------------------- CSV


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
                row_label(row),
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
        [[kind, row.key, cell.column, seed, value] for kind, row, cell in _cells(table) for seed, value in cell.values],
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
                    row_label(row),
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


# ---------------------------------------------------------------------------------------------------------------- LaTeX

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
    caption = ". ".join(part for part in (table.title, citation(table), scale_line(table)) if part)
    head = " & ".join(_tex(with_unit(column.label, column)) for column in columns)
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
            texts = [cell_text(table, row, column) for column in columns]
            lines.append(f"    {_tex(row_label(row))} & " + " & ".join(_tex(text.measured) for text in texts) + r" \\")
            if any(text.verdict for text in texts):
                for parts in ([text.published for text in texts], [text.verdict for text in texts]):
                    if any(parts):
                        shown = (rf"\footnotesize {_tex(part)}" if part else "" for part in parts)
                        lines.append("    & " + " & ".join(shown) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"  \par\medskip\raggedright\footnotesize"]
    for claim in table.claims:
        detail = claim_detail(table, claim)
        lines.append(rf"  \textbf{{{claim.verdict}}}: {_tex(claim.text)} ({_tex(detail)}).\par")
    lines += [rf"  {_tex(note)}\par" for note in notes(table)]
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


def _one_line(text: str) -> str:
    return " ".join(text.split())
