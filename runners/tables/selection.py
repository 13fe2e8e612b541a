"""Which rows stand out: those on a plot's Pareto front, and in a search the chosen row of each group.

A group's rows are the settings of one method. The chosen one has the best mean in the column that the experiment names;
only rows of which all seeds are done compete, and while one of a group is not complete its choice is open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evals import forgetting
from runners.tables.cells import TableRow
from runners.tables.experiment import Plot


@dataclass(frozen=True)
class GroupChoice:
    """The row chosen in a group, or with `incomplete` rows the best so far (None: none is complete)."""

    group_label: str
    row: TableRow | None
    incomplete: tuple[TableRow, ...] = ()


def groups(rows: Sequence[TableRow]) -> list[list[TableRow]]:
    """The rows by group, in the order in which the groups begin."""
    found: dict[str, list[TableRow]] = {}
    for row in rows:
        found.setdefault(row.group, []).append(row)
    return list(found.values())


def front(rows: Sequence[TableRow], plot: Plot, better: Mapping[str, str]) -> list[TableRow]:
    """The rows on the Pareto front of a plot, of those with a value on both axes. `better`: of each column."""
    cells = [(row.cell(plot.x), row.cell(plot.y)) for row in rows]
    points = [(None if x is None else x.mean, None if y is None else y.mean) for x, y in cells]
    on_front = forgetting.pareto_front(points, (better[plot.x], better[plot.y]))
    return [row for row, is_on in zip(rows, on_front, strict=True) if is_on]


def choices(rows: Sequence[TableRow], column: str, better: str) -> list[GroupChoice]:
    """The choice in each group of more than one row, by the mean in `column`; a tie goes to the first."""
    return [_choice(own, column, better) for own in groups(rows) if len(own) > 1]


def _choice(rows: Sequence[TableRow], column: str, better: str) -> GroupChoice:
    best: tuple[float, TableRow] | None = None
    incomplete = []
    for row in rows:
        cell = row.cell(column)
        if cell is None or cell.mean is None or cell.n < cell.expected:
            incomplete.append(row)
        elif best is None or (cell.mean > best[0] if better == "higher" else cell.mean < best[0]):
            best = (cell.mean, row)
    return GroupChoice(rows[0].group_label, None if best is None else best[1], tuple(incomplete))
