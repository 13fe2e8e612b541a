"""The cells of a table: means over seeds with their intervals, relations between rows, verdicts.

- A **cell** is the mean over the seeds the experiment lists for its row, with a 95% Student-t interval. A cell of which
  some seeds are not done shows the mean of those that are, with "k of m", and is never more than *inconclusive*: the
  seeds left out may be those that went badly. A cell with no done seed says why, by the worst of its runs: *failed*
  (also a done run without this number), else *stale*, else *missing* (also a run in progress). Of a row that trains
  nothing, numbers of training are just not there.
- A **relation** (`minus`, `over`) is computed per seed and then averaged, so that what two rows share cancels.
- A **verdict** compares a cell with its published number: *not comparable* (published at another scale, or this scale's
  setting is ours or partly so), *differs* (outside an interval of at least 3 seeds), *reproduced* (inside it, and the
  whole interval no wider than the tolerance), else *inconclusive*. The tolerance is the published entry's own, by
  default half the published gap to the baseline row (the row's own `baseline`, else the experiment's); for a relation,
  half the gap it states. No published number, no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from runners.tables.experiment import Experiment, Published, Row, Scale
from runners.tables.measurements import Gap, Measurements, Sample, count, describe
from runners.tables.statistics import mean_interval

CONFIDENCE = 0.95
MINIMUM_SEEDS = 3
RATIO_DECIMALS = 3


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    mean, half_width: in the column's units; half_width is None below two seeds, both without a value.
    values: (seed, value) of the `n` done seeds, of `expected`. verdict: None without a published number.
    """

    column: str
    mean: float | None
    half_width: float | None
    n: int
    expected: int
    values: tuple[tuple[int, float], ...]
    published: Published | None
    tolerance: float | None
    verdict: str | None
    reason: str


@dataclass(frozen=True)
class TableRow:
    """A row of the paper, or with `operation` "minus" or "over" the relation of `row` to `other`.

    group, group_label: of the row's group, which may be its own. chosen: by the experiment's `choose`.
    """

    key: str
    label: str
    cells: tuple[Cell, ...]
    row: str
    operation: str | None = None
    other: str | None = None
    group: str = ""
    group_label: str = ""
    chosen: bool = False

    def cell(self, column: str) -> Cell | None:
        """The cell in this column; None where a ratio is not published and so not shown."""
        return next((cell for cell in self.cells if cell.column == column), None)


def format_number(value: float, decimals: int, signed: bool = False) -> str:
    """`value` with so many decimals; never "-0.0"."""
    rounded = round(value, decimals) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{decimals}f}"


def format_published(value: float, signed: bool = False) -> str:
    """A published number with the digits its source gives, as far as the YAML kept them."""
    return f"{value:+}" if signed and value else f"{value}"


def column_decimals(measured: Measurements) -> dict[str, int]:
    """Per column: one for percentages, else four significant digits of the largest; never fewer than published."""
    decimals = {}
    for key, column in measured.columns.items():
        place = (key, measured.scale.key, None)
        published = [e.value for e in measured.experiment.published if (e.column, e.scale, e.over) == place]
        values = [v for row in measured.experiment.rows for v in measured.samples[row, key].values.values()]
        largest = max(map(abs, [*values, *published]), default=0.0)
        own = 1 if column.percent or largest == 0.0 else 3 - math.floor(math.log10(largest))
        stated = [len(format_published(value).partition(".")[2]) for value in published]
        decimals[key] = min(max([own, 0, *stated]), 8)
    return decimals


def plain_rows(measured: Measurements, decimals: Mapping[str, int]) -> Iterator[TableRow]:
    """The rows of the paper, with a cell in every column."""
    experiment, scale = measured.experiment, measured.scale
    for row in experiment.rows.values():
        cells = []
        for column in measured.columns:
            entry = _published(experiment, scale, None, row.key, column)
            gap = None if entry is None else _published_gap(experiment, entry)
            cells.append(_judged(scale, column, measured.samples[row.key, column], entry, gap, decimals[column]))
        label = experiment.group_label(row.group)
        yield TableRow(row.key, row.label, tuple(cells), row.key, group=row.group, group_label=label)


def relation_rows(measured: Measurements, decimals: Mapping[str, int]) -> Iterator[TableRow]:
    """The relations of which something is published: differences in every column, ratios only where stated."""
    experiment, scale = measured.experiment, measured.scale
    for relation in dict.fromkeys(e.relation for e in experiment.published if e.relation is not None):
        row, other = experiment.rows[relation[0]], experiment.rows[relation[2]]
        minus = relation[1] == "minus"
        cells = []
        for column in measured.columns:
            entry = _published(experiment, scale, relation, row.key, column)
            if entry is None and not minus:
                continue  # a ratio means something only where the paper states one
            sample = _relation_sample(measured, row, other, column, minus)
            gap = None if entry is None else abs(entry.value if minus else entry.value - 1.0)
            cells.append(_judged(scale, column, sample, entry, gap, decimals[column] if minus else RATIO_DECIMALS))
        if cells:
            label = f"{row.label} {'−' if minus else '/'} {other.label}"
            yield TableRow(":".join(relation), label, tuple(cells), row.key, relation[1], other.key)


def _relation_sample(measured: Measurements, row: Row, other: Row, column: str, minus: bool) -> Sample[float]:
    pairs = measured.pairs(row, other, column)
    sample = Sample[float](pairs.expected, gaps=pairs.gaps, problem=pairs.problem)
    for seed, (a, b) in pairs.values.items():
        if minus:
            sample.values[seed] = a - b
        elif b != 0:
            sample.values[seed] = a / b
        else:
            sample.gaps.append(Gap(other.label, seed, "unusable", "a ratio over 0"))
    return sample


def _judged(
    scale: Scale, column: str, sample: Sample[float], entry: Published | None, gap: float | None, decimals: int
) -> Cell:
    """The cell of a sample. `gap`: the published one, of which half is the default tolerance."""
    tolerance = entry.tolerance if entry is not None else None
    if tolerance is None and gap:
        tolerance = gap / 2.0
    values = tuple(sorted(sample.values.items()))
    cell = Cell(column, None, None, len(values), sample.expected, values, entry, tolerance, None, "")
    if not values:
        return replace(cell, verdict=_absence(sample.gaps), reason=sample.problem or describe(sample.gaps))
    interval = mean_interval([value for _, value in values], CONFIDENCE)
    cell = replace(cell, mean=interval.mean, half_width=interval.half_width)
    if entry is None:
        return replace(cell, reason=describe(sample.gaps))
    verdict, reason = _verdict(scale, cell, entry, sample.gaps, decimals)
    return replace(cell, verdict=verdict, reason=reason)


def _absence(gaps: Sequence[Gap]) -> str | None:
    """The verdict of a cell with no value at all: the worst of its runs; none where there can be no value."""
    statuses = {gap.status for gap in gaps}
    if statuses == {"untrained"}:
        return None
    if statuses & {"failed", "unusable"}:
        return "failed"
    return "stale" if "stale" in statuses else "missing"


def _verdict(scale: Scale, cell: Cell, entry: Published, gaps: Sequence[Gap], decimals: int) -> tuple[str, str]:
    """The verdict of a cell with a value and a published number, and its reason."""
    if entry.scale != scale.key:
        return "not comparable", f"published at scale {entry.scale}, this is scale {scale.key}"
    if scale.setting == "ours":
        return "not comparable", f"the setting of scale {scale.key} is ours, not the paper's"
    if scale.setting == "partly ours":
        return "not comparable", f"parts of the setting of scale {scale.key} are ours, not the paper's (see the note)"
    if cell.n < cell.expected:
        return "inconclusive", f"{cell.n} of {cell.expected} seeds: {describe(gaps)}"
    if cell.n < MINIMUM_SEEDS or cell.mean is None or cell.half_width is None:
        return "inconclusive", f"{count(cell.n, 'seed')}, a verdict needs at least {MINIMUM_SEEDS}"
    low, high = cell.mean - cell.half_width, cell.mean + cell.half_width
    shown = f"[{format_number(low, decimals)}, {format_number(high, decimals)}]"
    if cell.half_width == 0.0:
        shown += " (the seeds agree exactly)"
    rounding = 1e-9 * max(abs(low), abs(high), abs(entry.value))
    if not low - rounding <= entry.value <= high + rounding:
        return "differs", f"published {format_published(entry.value)} lies outside {shown}"
    if cell.tolerance is None:
        return "inconclusive", "no tolerance is stated, and no published gap to the baseline gives one"
    width = f"{2 * cell.half_width:.3g} wide, tolerance {cell.tolerance:.3g}"
    if 2 * cell.half_width > cell.tolerance + rounding:
        return "inconclusive", f"the interval is too wide: {width}"
    return "reproduced", f"published {format_published(entry.value)} lies in {shown}, {width}"


def _published(
    experiment: Experiment, scale: Scale, relation: tuple[str, str, str] | None, row: str, column: str
) -> Published | None:
    """The entry for this place: the one of this scale, else the first of another scale."""
    found = [e for e in experiment.published if (e.relation, e.row, e.column) == (relation, row, column)]
    return next((entry for entry in found if entry.scale == scale.key), found[0] if found else None)


def _published_gap(experiment: Experiment, entry: Published) -> float | None:
    """Published distance of the entry's row to the baseline row, same column and scale; None: unknown."""
    baseline = experiment.rows[entry.row].baseline or experiment.baseline
    if baseline is None or entry.row == baseline:
        return None
    for other in experiment.published:
        if (other.column, other.scale) != (entry.column, entry.scale):
            continue
        if other.relation == (entry.row, "minus", baseline):
            return abs(other.value)
        if other.relation is None and other.row == baseline:
            return abs(entry.value - other.value)
    return None
