"""From runs to a paper's table.

`build_table(experiment, scale, runs)` is a pure function of the experiment's YAML and of what has run: the values seed
by seed (`measurements`), cells with verdicts and relations (`cells`), claims (`claims`), which rows stand out
(`selection`), and here the table that holds
them, with the footnotes that say what its numbers leave out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from runners.tables.cells import TableRow, column_decimals, plain_rows, relation_rows
from runners.tables.claims import ClaimResult, judge_claims
from runners.tables.experiment import Column, Curve, Experiment, Paper, Plot, Row
from runners.tables.measurements import CellRun, Measurements, count, seed_list
from runners.tables.selection import GroupChoice, choices, front


@dataclass(frozen=True)
class TableColumn:
    """`unit`: "%", "log" or ""; `definition`: the metric, or what it is made of."""

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
    curves: tuple[Curve, ...]
    runs: tuple[RunRecord, ...]

    @property
    def shown_columns(self) -> tuple[TableColumn, ...]:
        return tuple(column for column in self.columns if not column.hidden)

    def column(self, key: str) -> TableColumn | None:
        return next((column for column in self.columns if column.key == key), None)

    def front(self, plot: Plot) -> list[TableRow]:
        """The rows on the Pareto front of a plot."""
        return front(self.rows, plot, {column.key: column.better for column in self.columns})

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
    made = _choices(measured, rows)
    chosen = {choice.row.key for choice in made if choice.row is not None and not choice.incomplete}
    rows = tuple(replace(row, chosen=True) if row.key in chosen else row for row in rows)
    plots = tuple(plot for plot in experiment.plots if plot.x in columns and plot.y in columns)
    return Table(
        name=experiment.name,
        title=experiment.title,
        paper=experiment.paper,
        scale=scale,
        setting=measured.scale.setting,
        note=measured.scale.note,
        columns=tuple(_table_column(measured, column, decimals[key]) for key, column in columns.items()),
        rows=rows,
        relations=relations,
        claims=claims,
        footnotes=(
            *_footnotes(measured, rows, relations, claims),
            *_choice_notes(measured, made),
            *_front_notes(measured, rows, plots),
        ),
        plots=plots,
        curves=experiment.curves,
        runs=tuple(_run_records(measured)),
    )


def _table_column(measured: Measurements, column: Column, decimals: int) -> TableColumn:
    columns = measured.columns
    unit = "%" if column.percent else (column.transform or "")
    if column.mean_of:
        definition = "mean of " + ", ".join(columns[key].label for key in column.mean_of)
    elif column.of is not None:
        definition = _drop_in_words(measured, column)
    else:
        definition = f"log of {column.metric}" if column.transform else str(column.metric)
    better = column.better or "higher"
    return TableColumn(column.key, column.label, better, unit, decimals, definition, column.hidden)


def _drop_in_words(measured: Measurements, drop: Column) -> str:
    below = measured.experiment.rows[str(drop.below)].label
    return f"{measured.columns[str(drop.of)].label} of {below} minus that of the row"


def _choices(measured: Measurements, rows: Sequence[TableRow]) -> list[GroupChoice]:
    """The choices in a search; none where the experiment asks for none or this scale lacks the column."""
    choose = measured.experiment.choose
    if choose is None or choose.column not in measured.columns:
        return []
    return choices(rows, choose.column, _better(measured.columns[choose.column]))


def _better(column: Column) -> str:
    return column.better or "higher"


def _run_records(measured: Measurements) -> Iterator[RunRecord]:
    for row in _run_rows(measured):
        for seed in measured.seeds(row):
            run = measured.run(row, seed)
            yield RunRecord(row.label, seed, run.status, str(run.folder or ""), run.reason or "")


def _run_rows(measured: Measurements) -> Iterator[Row]:
    """The rows with runs of their own."""
    return (row for row in measured.experiment.rows.values() if not row.mean_of)


# -------------------------------------------------------------------------------------------------------- footnotes


def _footnotes(
    measured: Measurements, rows: Sequence[TableRow], relations: Sequence[TableRow], claims: Sequence[ClaimResult]
) -> Iterator[str]:
    scale = measured.scale
    if scale.setting == "ours":
        yield f"Setting: ours. Scale {scale.key} is not the paper's and claims none of its numbers."
    if scale.setting == "partly ours":
        yield f"Setting: partly ours. Not all of scale {scale.key} is the paper's: it claims none of its numbers."
    if scale.note:
        yield scale.note
    if any(cell.half_width is not None for row in (*rows, *relations) for cell in row.cells):
        yield (
            "± is the half-width of the 95% Student-t interval of the mean over seeds; in brackets, the number of "
            "seeds. It covers what the seed changes, not what all seeds share: a shared parent (such as the "
            "pre-trained base), which keeps its own seed, the samples of a mix, the sequences of a penalty, the choice "
            "of the evaluation's items."
        )
    if relations:
        yield "Differences and ratios are computed seed by seed, then averaged."
    yield from _made_of_others(measured)
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


def _made_of_others(measured: Measurements) -> Iterator[str]:
    """What the rows and columns are that stand for no run or metric of their own."""
    rows = measured.experiment.rows
    for row in rows.values():
        if row.mean_of:
            parts = "; ".join(rows[part].label for part in row.mean_of)
            yield f"{row.label} is the mean, seed by seed, of {parts}."
    for column in measured.columns.values():
        if column.of is not None and not column.hidden:
            yield f"{column.label} is, seed by seed, {_drop_in_words(measured, column)}."


def _choice_notes(measured: Measurements, made: Sequence[GroupChoice]) -> Iterator[str]:
    """The rule of the search, which rows it chose, and where its choice is open."""
    choose = measured.experiment.choose
    if choose is None or not made:
        return
    column = measured.columns[choose.column]
    best = "highest" if _better(column) == "higher" else "lowest"
    decided = [choice.row.label for choice in made if choice.row is not None and not choice.incomplete]
    yield (
        f"Chosen: in each group of rows the one with the {best} mean {column.label}, once all of them are complete; a "
        f"tie goes to the first{': ' if decided else ''}{'; '.join(decided)}."
    )
    for choice in made:
        if choice.incomplete:
            found = "none is complete" if choice.row is None else f"best so far: {choice.row.label}"
            missing = "; ".join(row.label for row in choice.incomplete)
            yield f"The choice in {choice.group_label} is open, not complete: {missing} ({found})."


def _front_notes(measured: Measurements, rows: Sequence[TableRow], plots: Sequence[Plot]) -> Iterator[str]:
    columns = measured.columns
    better = {key: _better(column) for key, column in columns.items()}
    for plot in plots:
        on_front = front(rows, plot, better) if plot.front else []
        if on_front:
            axes = f"{columns[plot.y].label} against {columns[plot.x].label}"
            yield f"On the Pareto front of {axes}: {'; '.join(row.label for row in on_front)}."


def _single_runs(measured: Measurements, relations: Sequence[TableRow], claims: Sequence[ClaimResult]) -> list[str]:
    """Labels of the deterministic rows that a relation, a drop or a claim sets against several seeds."""
    related = [(row.row, row.other, row.cells[0].expected) for row in relations]
    for column in measured.columns.values():
        if column.below is not None:
            for row in measured.experiment.rows:
                related.append((row, column.below, measured.samples[row, column.key].expected))
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
    for row in _run_rows(measured):
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
