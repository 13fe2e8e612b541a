"""From runs to a paper's table.

`build_table(experiment, scale, runs)` is a pure function of the experiment's YAML and of what has run: the values seed
by seed (`measurements`), cells with verdicts and relations (`cells`), claims (`claims`), and here the table that holds
them, with the footnotes that say what its numbers leave out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runners.tables.cells import TableRow, column_decimals, plain_rows, relation_rows
from runners.tables.claims import ClaimResult, judge_claims
from runners.tables.experiment import Column, Experiment, Paper, Plot
from runners.tables.measurements import CellRun, Measurements, count, seed_list


@dataclass(frozen=True)
class TableColumn:
    """`unit`: "%", "log" or ""; `definition`: the metric, or of which columns it is the mean."""

    key: str
    label: str
    better: str
    unit: str
    decimals: int
    definition: str
    hidden: bool = False


@dataclass(frozen=True)
class RunRecord:
    """One run that the table asks for, whether or not it is done. `row`: the row's label."""

    row: str
    seed: int
    status: str
    folder: str
    reason: str


@dataclass(frozen=True)
class Table:
    """A table as it can be shown: plain data, `to_dict` is JSON-able."""

    name: str
    title: str
    paper: Paper
    scale: str
    setting: str
    note: str
    columns: tuple[TableColumn, ...]
    rows: tuple[TableRow, ...]
    relations: tuple[TableRow, ...]
    claims: tuple[ClaimResult, ...]
    footnotes: tuple[str, ...]
    plots: tuple[Plot, ...]
    runs: tuple[RunRecord, ...]

    @property
    def shown_columns(self) -> tuple[TableColumn, ...]:
        return tuple(column for column in self.columns if not column.hidden)

    def column(self, key: str) -> TableColumn | None:
        return next((column for column in self.columns if column.key == key), None)

    def row_label(self, key: str) -> str:
        return next(row.label for row in self.rows if row.key == key)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def build_table(experiment: Experiment | Mapping[str, Any], scale: str, runs: Iterable[CellRun]) -> Table:
    """Build the table of `experiment` at `scale` from what has run.

    Raises ValueError for an experiment that does not fit together, an unknown scale, a run of an unknown row or status,
    or two of one row and seed.
    """
    if not isinstance(experiment, Experiment):
        experiment = Experiment.from_config(experiment)
    measured = Measurements(experiment, scale, runs)
    columns = measured.columns
    decimals = column_decimals(measured)
    rows = tuple(plain_rows(measured, decimals))
    relations = tuple(relation_rows(measured, decimals))
    claims = tuple(judge_claims(measured, decimals))
    return Table(
        name=experiment.name,
        title=experiment.title,
        paper=experiment.paper,
        scale=scale,
        setting=measured.scale.setting,
        note=measured.scale.note,
        columns=tuple(_table_column(column, columns, decimals[key]) for key, column in columns.items()),
        rows=rows,
        relations=relations,
        claims=claims,
        footnotes=tuple(_footnotes(measured, rows, relations, claims)),
        plots=tuple(plot for plot in experiment.plots if plot.x in columns and plot.y in columns),
        runs=tuple(_run_records(measured)),
    )


def _table_column(column: Column, columns: Mapping[str, Column], decimals: int) -> TableColumn:
    unit = "%" if column.percent else (column.transform or "")
    if column.mean_of:
        definition = "mean of " + ", ".join(columns[key].label for key in column.mean_of)
    else:
        definition = f"log of {column.metric}" if column.transform else str(column.metric)
    better = column.better or "higher"
    return TableColumn(column.key, column.label, better, unit, decimals, definition, column.hidden)


def _run_records(measured: Measurements) -> Iterator[RunRecord]:
    for row in measured.experiment.rows.values():
        for seed in measured.seeds(row):
            run = measured.run(row, seed)
            yield RunRecord(row.label, seed, run.status, str(run.folder or ""), run.reason or "")


# -------------------------------------------------------------------------------------------------------- footnotes


def _footnotes(
    measured: Measurements, rows: Sequence[TableRow], relations: Sequence[TableRow], claims: Sequence[ClaimResult]
) -> Iterator[str]:
    scale = measured.scale
    if scale.setting == "ours":
        yield f"Setting: ours. Scale {scale.key} is not the paper's and claims none of its numbers."
    if scale.note:
        yield scale.note
    if any(cell.half_width is not None for row in (*rows, *relations) for cell in row.cells):
        yield (
            "± is the half-width of the 95% Student-t interval of the mean over seeds; in brackets, the number of "
            "seeds. It covers what the seed changes: neither a shared parent (such as the pre-trained base), which "
            "keeps its own seed, nor the choice of the evaluation's items."
        )
    if relations:
        yield "Differences and ratios are computed seed by seed, then averaged."
    for label in _single_runs(measured, relations, claims):
        yield f"{label} is a single run, used against every seed; how it might vary is in no interval."
    tested = sum(claim.adjusted_p is not None for claim in claims)
    if tested:
        yield (
            f"Claims: two-sided paired t-tests at the 5% level, p adjusted by Holm over the {count(tested, 'claim')} "
            "tested here; the intervals are not adjusted."
        )
    yield from _left_out(measured)
    yield from _reasons(measured, (*rows, *relations))
    elsewhere = [entry.column for entry in measured.experiment.published if entry.column not in measured.columns]
    if elsewhere:
        entries = count(len(elsewhere), "published entry", "published entries")
        yield f"{entries} not shown: scale {scale.key} has no column {', '.join(sorted(set(elsewhere)))}."


def _single_runs(measured: Measurements, relations: Sequence[TableRow], claims: Sequence[ClaimResult]) -> list[str]:
    """Labels of the deterministic rows that a relation or a claim sets against several seeds."""
    related = [(row.row, row.other, row.cells[0].expected) for row in relations]
    related += [(claim.row, claim.beats, claim.expected) for claim in claims]
    keys = {key for *pair, expected in related if expected > 1 for key in pair}
    rows = measured.experiment.rows.values()
    return sorted({row.label for row in rows if row.key in keys and row.deterministic})


def _left_out(measured: Measurements) -> Iterator[str]:
    """The runs that no mean holds, and the values that one run lacks."""
    not_done: dict[tuple[str, str, str], list[int]] = {}
    for record in _run_records(measured):
        if record.status != "done":
            detail = "; ".join(part for part in (record.reason, record.folder) if part)
            not_done.setdefault((record.row, record.status, detail), []).append(record.seed)
    for (label, status, detail), seeds in not_done.items():
        shown = f"{status} ({detail})" if detail else status
        yield f"Left out: {label} {seed_list(seeds)}: {shown}."
    for row in measured.experiment.rows.values():
        unlisted = sorted(seed for key, seed in measured.runs if key == row.key and seed not in measured.seeds(row))
        if unlisted:
            yield f"Left out: {row.label} {seed_list(unlisted)}: not listed by the experiment."
    unusable: dict[tuple[str, str], dict[int, None]] = {}  # several columns may lack one number of a run
    for sample in measured.samples.values():
        for gap in sample.gaps:
            if gap.status == "unusable":
                unusable.setdefault((gap.row, gap.reason), {})[gap.seed] = None
    for (label, reason), found in unusable.items():
        yield f"Left out: {label} {seed_list(list(found))}: {reason}."


def _reasons(measured: Measurements, rows: Sequence[TableRow]) -> Iterator[str]:
    """Why the shown cells were judged as they were, those with the same reason together."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for cell in row.cells:
            column = measured.columns[cell.column]
            if cell.verdict in ("inconclusive", "differs", "not comparable") and not column.hidden:
                places.setdefault((cell.verdict, cell.reason), []).append(f"{row.label} on {column.label}")
    for (verdict, reason), where in places.items():
        suffix = "" if verdict == "not comparable" else f" ({', '.join(where)})"
        yield f"{verdict.capitalize()}: {reason}{suffix}."
