"""The HTML page of a table: one file that loads nothing, with its style and plots (SVG) inside it.

Jinja2 is imported when a page is made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from runners.tables.cells import TableRow
from runners.tables.plots import Drawing
from runners.tables.table import Table
from runners.tables.wording import CLAIM_MARKS, NOTHING, cell_text, claim_detail, notes, row_label, unit


def to_html(table: Table, drawings: Sequence[Drawing] = ()) -> str:
    """The page, with the plots that were drawn of the table."""
    import jinja2
    from markupsafe import Markup

    source = resources.files("runners.tables").joinpath("templates", "table.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    columns = table.shown_columns

    def line(row: TableRow) -> dict[str, Any]:
        return {"label": row_label(row), "cells": [cell_text(table, row, column) for column in columns]}

    return environment.from_string(source).render(
        table=table,
        columns=[{"label": column.label, "unit": unit(column)} for column in columns],
        definitions=table.columns,
        groups=[[line(row) for row in rows] for rows in (table.rows, table.relations) if rows],
        claims=[
            {"mark": CLAIM_MARKS[claim.verdict], "claim": claim, "detail": claim_detail(table, claim)}
            for claim in table.claims
        ],
        plots=[{"title": drawing.title, "svg": Markup(drawing.svg())} for drawing in drawings],
        footnotes=notes(table),
        arxiv=table.paper.arxiv if re.fullmatch(r"[\w.\-/]+", table.paper.arxiv) else "",
        nothing=NOTHING,
    )
