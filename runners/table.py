"""From runs to a paper's table: cells with intervals and verdicts, relations between rows, and claims.

`build_table(experiment, scale, runs)` is a pure function of the experiment's YAML and of what has run:

- A **cell** is the mean over the seeds the experiment lists for its row, with a 95% Student-t interval.
  Only `done` runs count. A cell of which some seeds are not done shows the mean of those that are, with
  "k of m", and is never more than *inconclusive*: the seeds left out may be those that went badly. A cell
  with no done seed says why, by the worst of its runs: *failed* (also a done run without this number), else
  *stale*, else *missing* (also a run in progress).
- A derived column (`mean_of`) and a `transform` are computed per seed, before the mean over seeds.
- A **verdict** compares a cell with its published number: *not comparable* (published at another scale, or
  this scale's setting is ours), *differs* (outside an interval of at least 3 seeds), *reproduced* (inside it,
  and the whole interval no wider than the tolerance), else *inconclusive*. The tolerance is the published
  entry's own, by default half the published gap to the baseline row; for a relation, half the gap it states.
  No published number, no verdict.
- A **relation** (`minus`, `over`) is computed per seed and then averaged, so that what two rows share
  cancels. A row that lists a single seed of its own is deterministic: it stands against every seed of the
  other row.
- A **claim** is a two-sided paired t-test, oriented by the column's `better`, against the claim's `by`, with
  Holm's correction over the claims tested at this scale. A claim of which some pairs are not done is
  *inconclusive*, for the reason above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from runners.statistics import PairedTest, holm, mean_interval, paired_test

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
MINIMUM_SEEDS = 3
STATUSES = ("done", "stale", "missing", "failed", "running")
VERDICTS = ("reproduced", "inconclusive", "differs", "not comparable", "stale", "missing", "failed")
JUDGEMENTS = ("holds", "does not hold", "inconclusive")

T = TypeVar("T")


# ------------------------------------------------------------------------------------------------------ input


@dataclass(frozen=True)
class Paper:
    title: str = ""
    authors: str = ""
    arxiv: str = ""
    table: str = ""


@dataclass(frozen=True)
class Scale:
    """`setting`: "paper" when it is sourced, "ours" when it is not."""

    key: str
    seeds: tuple[int, ...]
    setting: str = "paper"
    note: str = ""


@dataclass(frozen=True)
class Row:
    """`seeds`: the row's own seeds; None for the scale's."""

    key: str
    label: str
    seeds: tuple[int, ...] | None = None

    @property
    def deterministic(self) -> bool:
        """Whether the row is measured once and stands against every seed of the others."""
        return self.seeds is not None and len(self.seeds) == 1


@dataclass(frozen=True)
class Column:
    """A metric ("task/metric name") or the mean of other columns, in the units the table shows."""

    key: str
    label: str
    metric: str | None = None
    mean_of: tuple[str, ...] = ()
    better: str | None = None
    percent: bool | None = None
    transform: str | None = None
    hidden: bool = False


@dataclass(frozen=True)
class Published:
    """A published value, difference (`minus` a row) or ratio (`over` a row), in the units the table shows."""

    row: str
    column: str
    value: float
    scale: str = "full"
    source: str = ""
    tolerance: float | None = None
    minus: str | None = None
    over: str | None = None

    @property
    def relation(self) -> tuple[str, str, str] | None:
        """(row, "minus" or "over", other row), or None for a plain value."""
        if self.minus is not None:
            return (self.row, "minus", self.minus)
        return None if self.over is None else (self.row, "over", self.over)


@dataclass(frozen=True)
class Claim:
    """`row` beats the row `beats` on `column` by at least `by` (table units); `scales` None: at all."""

    text: str
    row: str
    beats: str
    column: str
    by: float = 0.0
    scales: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Plot:
    x: str
    y: str
    title: str = ""


@dataclass(frozen=True)
class Experiment:
    """What an experiment's YAML says about its table."""

    name: str
    title: str
    paper: Paper
    scales: Mapping[str, Scale]
    rows: Mapping[str, Row]
    columns: Mapping[str, Mapping[str, Column]]
    published: tuple[Published, ...] = ()
    claims: tuple[Claim, ...] = ()
    plots: tuple[Plot, ...] = ()
    baseline: str | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Experiment:
        """Read the plain dict of the YAML. Raises ValueError for what does not fit together.

        Scales and rows may hold further keys (overrides, ...); columns, published, claims and plots may not.
        """
        for key in ("name", "scales", "rows", "columns"):
            if not config.get(key):
                raise ValueError(f"experiment.{key} must be given, got {config.get(key)!r}")
        scales = {
            key: Scale(key, tuple(entry["seeds"]), entry.get("setting", "paper"), entry.get("note") or "")
            for key, entry in config["scales"].items()
        }
        rows = {}
        for key, entry in config["rows"].items():
            seeds = entry.get("seeds")
            rows[key] = Row(key, entry.get("label") or key, None if seeds is None else tuple(seeds))
        paper = config.get("paper") or {}
        experiment = cls(
            name=config["name"],
            title=config.get("title") or config["name"],
            paper=Paper(**{item.name: str(paper.get(item.name) or "") for item in fields(Paper)}),
            scales=scales,
            rows=rows,
            columns={
                scale: _columns(entries, f"columns.{scale}") for scale, entries in config["columns"].items()
            },
            published=_entries(Published, config, "published"),
            claims=tuple(
                replace(claim, scales=None if claim.scales is None else tuple(claim.scales))
                for claim in _entries(Claim, config, "claims")
            ),
            plots=_entries(Plot, config, "plots"),
            baseline=config.get("baseline"),
        )
        experiment._check()
        return experiment

    def _check(self) -> None:
        for scale in self.scales.values():
            where = f"scales.{scale.key}"
            if scale.setting not in ("paper", "ours"):
                raise ValueError(f"{where}.setting must be 'paper' or 'ours', got {scale.setting!r}")
            if scale.key == "full" and scale.setting == "ours":
                raise ValueError(f"{where}.setting must be 'paper' (ours is never called full), got 'ours'")
            if scale.key not in self.columns:
                raise ValueError(f"columns must have an entry for every scale, got none for {scale.key!r}")
        for key, seeds in [(f"scales.{s.key}", s.seeds) for s in self.scales.values()] + [
            (f"rows.{r.key}", r.seeds) for r in self.rows.values() if r.seeds is not None
        ]:
            if not seeds or len(set(seeds)) != len(seeds):
                raise ValueError(f"{key}.seeds must list at least one seed, each once, got {list(seeds)}")
        if self.baseline is not None:
            self._check_row(self.baseline, "baseline")
        anywhere = {column for columns in self.columns.values() for column in columns}
        seen: set[tuple[object, ...]] = set()
        for index, entry in enumerate(self.published):
            where = f"published[{index}]"
            if entry.minus is not None and entry.over is not None:
                raise ValueError(f"{where} must have at most one of minus and over, got both")
            for row in filter(None, (entry.row, entry.minus, entry.over)):
                self._check_row(row, where)
            if entry.relation is not None and entry.relation[2] == entry.row:
                raise ValueError(f"{where} must relate row to another row, got {entry.row!r} twice")
            columns = self.columns.get(entry.scale, anywhere)
            if entry.column not in columns:
                raise ValueError(
                    f"{where}.column must be a column of scale {entry.scale}, got {entry.column!r}"
                )
            _check_number(entry.value, f"{where}.value")
            if entry.tolerance is not None:
                _check_number(entry.tolerance, f"{where}.tolerance")
                if entry.tolerance <= 0:
                    raise ValueError(f"{where}.tolerance must be > 0, got {entry.tolerance}")
            identity = (entry.row, entry.relation, entry.column, entry.scale)
            if identity in seen:
                raise ValueError(
                    f"{where} must not repeat an earlier entry, got {entry.row}/{entry.column} again"
                )
            seen.add(identity)
        for index, claim in enumerate(self.claims):
            where = f"claims[{index}]"
            self._check_row(claim.row, f"{where}.row")
            self._check_row(claim.beats, f"{where}.beats")
            if claim.row == claim.beats:
                raise ValueError(f"{where}.beats must be another row than row, got {claim.beats!r}")
            _check_number(claim.by, f"{where}.by")
            for name in claim.scales or ():
                if name not in self.scales:
                    raise ValueError(f"{where}.scales must be scales of the experiment, got {name!r}")
                if claim.column not in self.columns[name]:
                    raise ValueError(f"{where}.column must be a column of scale {name}, got {claim.column!r}")
            if claim.column not in anywhere:
                raise ValueError(f"{where}.column must be a column of some scale, got {claim.column!r}")
        for index, plot in enumerate(self.plots):
            for column in (plot.x, plot.y):
                if column not in anywhere:
                    raise ValueError(f"plots[{index}] must name columns of some scale, got {column!r}")

    def _check_row(self, row: str, where: str) -> None:
        if row not in self.rows:
            raise ValueError(f"{where} must name one of the rows {', '.join(self.rows)}, got {row!r}")


@dataclass(frozen=True)
class CellRun:
    """One run of one row. `metrics`: {task: {metric: value}} of a done run; `reason`: why it is not done."""

    row: str
    seed: int
    status: str
    metrics: Mapping[str, Mapping[str, Any]] | None = None
    folder: str | Path = ""
    reason: str = ""


# ----------------------------------------------------------------------------------------------------- output


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
    """A row of the paper, or with `operation` "minus" or "over" the relation of `row` to `other`."""

    key: str
    label: str
    cells: tuple[Cell, ...]
    row: str
    operation: str | None = None
    other: str | None = None

    def cell(self, column: str) -> Cell | None:
        """The cell in this column; None where a ratio is not published and so not shown."""
        return next((cell for cell in self.cells if cell.column == column), None)


@dataclass(frozen=True)
class ClaimResult:
    """A claim judged. mean, half_width: of the paired differences; above 0 means that `row` is better."""

    text: str
    row: str
    beats: str
    column: str
    by: float
    verdict: str
    mean: float | None
    half_width: float | None
    n: int
    expected: int
    p_value: float | None
    adjusted_p: float | None
    decimals: int
    reason: str


@dataclass(frozen=True)
class RunRecord:
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


def format_number(value: float, decimals: int, signed: bool = False) -> str:
    """`value` with so many decimals; never "-0.0"."""
    rounded = round(value, decimals) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{decimals}f}"


def format_published(value: float, signed: bool = False) -> str:
    """A published number with the digits its source gives, as far as the YAML kept them."""
    return f"{value:+}" if signed and value else f"{value}"


# --------------------------------------------------------------------------------------------------- building


@dataclass(frozen=True)
class _Gap:
    """Why a seed has no value: its run's status, or "unusable" for a done run without this number."""

    row: str
    seed: int
    status: str
    reason: str = ""


@dataclass
class _Sample:
    """What a cell is made of, for the seeds that are expected."""

    expected: int
    values: dict[int, float] = field(default_factory=dict)
    gaps: list[_Gap] = field(default_factory=list)
    problem: str = ""


@dataclass
class _Pairs:
    expected: int
    values: dict[int, tuple[float, float]] = field(default_factory=dict)
    gaps: list[_Gap] = field(default_factory=list)
    problem: str = ""


def build_table(experiment: Experiment | Mapping[str, Any], scale: str, runs: Iterable[CellRun]) -> Table:
    """Build the table of `experiment` at `scale` from what has run; see the module's docstring for the rules.

    Raises ValueError for an unknown scale, a run of an unknown row or status, or two of one row and seed.
    """
    if not isinstance(experiment, Experiment):
        experiment = Experiment.from_config(experiment)
    if scale not in experiment.scales:
        raise ValueError(f"scale must be one of {', '.join(experiment.scales)}, got {scale!r}")
    return _Builder(experiment, experiment.scales[scale], list(runs)).table()


class _Builder:
    def __init__(self, experiment: Experiment, scale: Scale, runs: Sequence[CellRun]) -> None:
        self.experiment = experiment
        self.scale = scale
        self.columns = experiment.columns[scale.key]
        self.runs: dict[tuple[str, int], CellRun] = {}
        for run in runs:
            if run.row not in experiment.rows:
                raise ValueError(f"run.row must be one of {', '.join(experiment.rows)}, got {run.row!r}")
            if run.status not in STATUSES:
                raise ValueError(f"run.status must be one of {', '.join(STATUSES)}, got {run.status!r}")
            if (run.row, run.seed) in self.runs:
                raise ValueError(
                    f"runs must hold one run per row and seed, got two of {run.row} seed {run.seed}"
                )
            self.runs[run.row, run.seed] = run
        self.samples = {
            (row.key, column): self._sample(row, column)
            for row in experiment.rows.values()
            for column in self.columns
        }
        self.decimals = {column: self._decimals(column) for column in self.columns}
        self.broadcast: set[str] = set()

    def table(self) -> Table:
        rows = tuple(
            TableRow(row.key, row.label, tuple(self._cell(row, column) for column in self.columns), row.key)
            for row in self.experiment.rows.values()
        )
        relations = tuple(self._relations())
        claims = tuple(self._claims())
        return Table(
            name=self.experiment.name,
            title=self.experiment.title,
            paper=self.experiment.paper,
            scale=self.scale.key,
            setting=self.scale.setting,
            note=self.scale.note,
            columns=tuple(self._table_column(column) for column in self.columns.values()),
            rows=rows,
            relations=relations,
            claims=claims,
            footnotes=tuple(self._footnotes(rows, relations, claims)),
            plots=tuple(p for p in self.experiment.plots if p.x in self.columns and p.y in self.columns),
            runs=tuple(self._run_records()),
        )

    # -- values

    def _seeds(self, row: Row) -> tuple[int, ...]:
        return self.scale.seeds if row.seeds is None else row.seeds

    def _run(self, row: Row, seed: int) -> CellRun:
        return self.runs.get((row.key, seed)) or CellRun(row.key, seed, "missing", reason="has not run")

    def _sample(self, row: Row, column: str) -> _Sample:
        sample = _Sample(len(self._seeds(row)))
        for seed in self._seeds(row):
            run = self._run(row, seed)
            if run.status != "done":
                sample.gaps.append(_Gap(row.label, seed, run.status, run.reason))
                continue
            value = _column_value(self.columns, column, run.metrics or {})
            if isinstance(value, str):
                sample.gaps.append(_Gap(row.label, seed, "unusable", value))
            else:
                sample.values[seed] = value
        return sample

    def _pairs(self, row: Row, other: Row, column: str) -> _Pairs:
        """Both rows' values, seed by seed; a deterministic row stands against every seed of the other."""
        row_seeds, other_seeds = self._seeds(row), self._seeds(other)
        if row.deterministic and not other.deterministic:
            seeds = {seed: (row_seeds[0], seed) for seed in other_seeds}
        elif other.deterministic:
            seeds = {seed: (seed, other_seeds[0]) for seed in row_seeds}
        else:
            seeds = {seed: (seed, seed) for seed in row_seeds if seed in other_seeds}
        pairs = _Pairs(len(seeds))
        if not seeds:
            pairs.problem = f"{row.label} and {other.label} share no seed"
        if len(seeds) > 1:
            self.broadcast.update(r.label for r in (row, other) if r.deterministic)
        samples = self.samples[row.key, column], self.samples[other.key, column]
        for seed, own in seeds.items():
            gaps = [gap for s, part in zip(own, samples, strict=True) for gap in part.gaps if gap.seed == s]
            pairs.gaps.extend(gap for gap in gaps if gap not in pairs.gaps)
            if not gaps:
                pairs.values[seed] = (samples[0].values[own[0]], samples[1].values[own[1]])
        return pairs

    # -- cells and verdicts

    def _cell(self, row: Row, column: str) -> Cell:
        entry = self._published(None, row.key, column)
        gap = None if entry is None else self._published_gap(entry)
        return self._judged(column, self.samples[row.key, column], entry, gap, self.decimals[column])

    def _relations(self) -> Iterable[TableRow]:
        wanted = dict.fromkeys(
            entry.relation for entry in self.experiment.published if entry.relation is not None
        )
        for relation in wanted:
            row, other = self.experiment.rows[relation[0]], self.experiment.rows[relation[2]]
            minus = relation[1] == "minus"
            cells = []
            for column in self.columns:
                entry = self._published(relation, row.key, column)
                if entry is None and not minus:
                    continue  # a ratio means something only where the paper states one
                sample = self._relation_sample(row, other, column, minus)
                gap = None if entry is None else abs(entry.value if minus else entry.value - 1.0)
                cells.append(self._judged(column, sample, entry, gap, self.decimals[column] if minus else 3))
            if cells:
                sign = "−" if minus else "/"
                label = f"{row.label} {sign} {other.label}"
                yield TableRow(":".join(relation), label, tuple(cells), row.key, relation[1], other.key)

    def _relation_sample(self, row: Row, other: Row, column: str, minus: bool) -> _Sample:
        pairs = self._pairs(row, other, column)
        sample = _Sample(pairs.expected, gaps=list(pairs.gaps), problem=pairs.problem)
        for seed, (a, b) in pairs.values.items():
            if minus:
                sample.values[seed] = a - b
            elif b != 0:
                sample.values[seed] = a / b
            else:
                sample.gaps.append(_Gap(other.label, seed, "unusable", "a ratio over 0"))
        return sample

    def _judged(
        self, column: str, sample: _Sample, entry: Published | None, gap: float | None, decimals: int
    ) -> Cell:
        """The cell of a sample. `gap`: the published one, of which half is the default tolerance."""
        tolerance = entry.tolerance if entry is not None else None
        if tolerance is None and gap:
            tolerance = gap / 2.0
        values = tuple(sorted(sample.values.items()))
        cell = Cell(column, None, None, len(values), sample.expected, values, entry, tolerance, None, "")
        if not values:
            return replace(
                cell, verdict=_absence(sample.gaps), reason=sample.problem or _describe(sample.gaps)
            )
        interval = mean_interval([value for _, value in values], CONFIDENCE)
        cell = replace(cell, mean=interval.mean, half_width=interval.half_width)
        if entry is None:
            return replace(cell, reason=_describe(sample.gaps))
        verdict, reason = self._verdict(cell, entry, sample.gaps, decimals)
        return replace(cell, verdict=verdict, reason=reason)

    def _verdict(self, cell: Cell, entry: Published, gaps: Sequence[_Gap], decimals: int) -> tuple[str, str]:
        if entry.scale != self.scale.key:
            return "not comparable", f"published at scale {entry.scale}, this is scale {self.scale.key}"
        if self.scale.setting == "ours":
            return "not comparable", f"the setting of scale {self.scale.key} is ours, not the paper's"
        if cell.n < cell.expected:
            return "inconclusive", f"{cell.n} of {cell.expected} seeds: {_describe(gaps)}"
        if cell.n < MINIMUM_SEEDS or cell.mean is None or cell.half_width is None:
            return "inconclusive", f"{_count(cell.n, 'seed')}, a verdict needs at least {MINIMUM_SEEDS}"
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

    def _published(self, relation: tuple[str, str, str] | None, row: str, column: str) -> Published | None:
        """The entry for this place: the one of this scale, else the first of another scale."""
        found = [
            e for e in self.experiment.published if (e.relation, e.row, e.column) == (relation, row, column)
        ]
        return next((entry for entry in found if entry.scale == self.scale.key), found[0] if found else None)

    def _published_gap(self, entry: Published) -> float | None:
        """Published distance of the entry's row to the baseline row, same column and scale; None: unknown."""
        baseline = self.experiment.baseline
        if baseline is None or entry.row == baseline:
            return None
        for other in self.experiment.published:
            if (other.column, other.scale) != (entry.column, entry.scale):
                continue
            if other.relation == (entry.row, "minus", baseline):
                return abs(other.value)
            if other.relation is None and other.row == baseline:
                return abs(entry.value - other.value)
        return None

    # -- claims

    def _claims(self) -> Iterable[ClaimResult]:
        claims = [c for c in self.experiment.claims if c.scales is None or self.scale.key in c.scales]
        tested = [self._tested(claim) for claim in claims]
        p_values = [test.p_value for _, test in tested if test is not None and test.p_value is not None]
        adjusted = iter(holm(p_values))
        for claim, (pairs, test) in zip(claims, tested, strict=True):
            p_value = None if test is None else test.p_value
            adjusted_p = None if p_value is None else next(adjusted)
            verdict, reason = self._claim_verdict(claim, pairs, test, adjusted_p)
            yield ClaimResult(
                text=claim.text,
                row=claim.row,
                beats=claim.beats,
                column=claim.column,
                by=float(claim.by),
                verdict=verdict,
                mean=None if test is None else test.mean,
                half_width=None if test is None else test.half_width,
                n=len(pairs.values),
                expected=pairs.expected,
                p_value=p_value,
                adjusted_p=adjusted_p,
                decimals=self.decimals.get(claim.column, 1),
                reason=reason,
            )

    def _tested(self, claim: Claim) -> tuple[_Pairs, PairedTest | None]:
        if claim.column not in self.columns:
            return _Pairs(0, problem=f"scale {self.scale.key} has no column {claim.column}"), None
        pairs = self._pairs(self.experiment.rows[claim.row], self.experiment.rows[claim.beats], claim.column)
        if not pairs.values:
            return pairs, None
        ours, theirs = zip(*(pairs.values[seed] for seed in sorted(pairs.values)), strict=True)
        if self.columns[claim.column].better == "lower":
            ours, theirs = theirs, ours
        return pairs, paired_test(ours, theirs, claim.by)

    def _claim_verdict(
        self, claim: Claim, pairs: _Pairs, test: PairedTest | None, adjusted_p: float | None
    ) -> tuple[str, str]:
        if pairs.problem:
            return "inconclusive", pairs.problem
        if len(pairs.values) < pairs.expected:
            return "inconclusive", f"{len(pairs.values)} of {pairs.expected} pairs: {_describe(pairs.gaps)}"
        if test is None or adjusted_p is None:
            return "inconclusive", f"{_count(pairs.expected, 'pair')}, a test needs at least 2"
        if adjusted_p >= SIGNIFICANCE:
            return "inconclusive", "all pairs differ by exactly the margin" if test.half_width == 0.0 else ""
        reason = "all pairs differ by exactly the same amount" if test.half_width == 0.0 else ""
        return ("holds" if test.mean > claim.by else "does not hold"), reason

    # -- columns, runs, footnotes

    def _table_column(self, column: Column) -> TableColumn:
        unit = "%" if column.percent else (column.transform or "")
        if column.mean_of:
            definition = "mean of " + ", ".join(self.columns[key].label for key in column.mean_of)
        else:
            definition = f"log of {column.metric}" if column.transform else str(column.metric)
        better = column.better or "higher"
        return TableColumn(
            column.key, column.label, better, unit, self.decimals[column.key], definition, column.hidden
        )

    def _decimals(self, column: str) -> int:
        """One for percentages, else four significant digits of the largest; never fewer than published."""
        place = (column, self.scale.key, None)
        published = [e.value for e in self.experiment.published if (e.column, e.scale, e.over) == place]
        values = [abs(v) for row in self.experiment.rows for v in self.samples[row, column].values.values()]
        largest = max([*values, *map(abs, published)], default=0.0)
        own = 1 if self.columns[column].percent or largest == 0.0 else 3 - math.floor(math.log10(largest))
        stated = [len(format_published(value).partition(".")[2]) for value in published]
        return min(max([own, 0, *stated]), 8)

    def _run_records(self) -> Iterable[RunRecord]:
        for row in self.experiment.rows.values():
            for seed in self._seeds(row):
                run = self._run(row, seed)
                yield RunRecord(row.label, seed, run.status, str(run.folder or ""), run.reason or "")

    def _footnotes(
        self, rows: Sequence[TableRow], relations: Sequence[TableRow], claims: Sequence[ClaimResult]
    ) -> Iterable[str]:
        cells = [cell for row in (*rows, *relations) for cell in row.cells]
        if self.scale.setting == "ours":
            yield f"Setting: ours. Scale {self.scale.key} is not the paper's and claims none of its numbers."
        if self.scale.note:
            yield self.scale.note
        if any(cell.half_width is not None for cell in cells):
            yield (
                "± is the half-width of the 95% Student-t interval of the mean over seeds; in brackets, the "
                "number of seeds. It covers what the seed changes: neither a shared parent (such as the "
                "pre-trained base), which keeps its own seed, nor the choice of the evaluation's items."
            )
        if relations:
            yield "Differences and ratios are computed seed by seed, then averaged."
        for label in sorted(self.broadcast):
            yield f"{label} is a single run, used against every seed; how it might vary is in no interval."
        if any(claim.adjusted_p is not None for claim in claims):
            tested = sum(claim.adjusted_p is not None for claim in claims)
            yield (
                f"Claims: two-sided paired t-tests at the 5% level, p adjusted by Holm over the "
                f"{_count(tested, 'claim')} tested here; the intervals are not adjusted."
            )
        yield from self._run_footnotes()
        yield from self._reason_footnotes(rows, relations)
        elsewhere = [e for e in self.experiment.published if e.column not in self.columns]
        if elsewhere:
            names = ", ".join(sorted({e.column for e in elsewhere}))
            entries = _count(len(elsewhere), "published entry", "published entries")
            yield f"{entries} not shown: scale {self.scale.key} has no column {names}."

    def _run_footnotes(self) -> Iterable[str]:
        left_out: dict[tuple[str, str, str], list[int]] = {}
        for record in self._run_records():
            if record.status != "done":
                detail = "; ".join(part for part in (record.reason, record.folder) if part)
                left_out.setdefault((record.row, record.status, detail), []).append(record.seed)
        for (label, status, detail), seeds in left_out.items():
            shown = f"{status} ({detail})" if detail else status
            yield f"Left out: {label} {_seed_list(seeds)}: {shown}."
        for row in self.experiment.rows.values():
            listed = self._seeds(row)
            unlisted = sorted(seed for key, seed in self.runs if key == row.key and seed not in listed)
            if unlisted:
                yield f"Left out: {row.label} {_seed_list(unlisted)}: not listed by the experiment."
        unusable: dict[tuple[str, str], dict[int, None]] = {}
        for sample in self.samples.values():
            for gap in sample.gaps:
                if gap.status == "unusable":
                    unusable.setdefault((gap.row, gap.reason), {})[gap.seed] = None
        for (label, reason), found in unusable.items():
            yield f"Left out: {label} {_seed_list(list(found))}: {reason}."

    def _reason_footnotes(self, rows: Sequence[TableRow], relations: Sequence[TableRow]) -> Iterable[str]:
        places: dict[tuple[str, str], list[str]] = {}
        for row in (*rows, *relations):
            for cell in row.cells:
                column = self.columns[cell.column]
                if cell.verdict in ("inconclusive", "differs", "not comparable") and not column.hidden:
                    place = f"{row.label} on {column.label}"
                    places.setdefault((cell.verdict, cell.reason), []).append(place)
        for (verdict, reason), where in places.items():
            suffix = "" if verdict == "not comparable" else f" ({', '.join(where)})"
            yield f"{verdict.capitalize()}: {reason}{suffix}."


# ---------------------------------------------------------------------------------------------------- details


def _column_value(
    columns: Mapping[str, Column], key: str, metrics: Mapping[str, Mapping[str, Any]]
) -> float | str:
    """The column's value in one run's metrics, in the table's units; or, as a string, why it has none."""
    column = columns[key]
    if column.mean_of:
        parts = [_column_value(columns, part, metrics) for part in column.mean_of]
        numbers = [part for part in parts if not isinstance(part, str)]
        if len(numbers) < len(parts):
            return next(part for part in parts if isinstance(part, str))
        return math.fsum(numbers) / len(numbers)
    task, _, name = str(column.metric).partition("/")
    value = metrics.get(task, {}).get(name)
    if value is None:
        return f"its result has no metric {column.metric}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"its metric {column.metric} is not a finite number, but {value}"
    if column.percent:
        return 100.0 * value
    if column.transform == "log":
        return math.log(value) if value > 0 else f"its metric {column.metric} has no logarithm, being {value}"
    return float(value)


def _absence(gaps: Sequence[_Gap]) -> str:
    """The verdict of a cell with no value at all: the worst of its runs."""
    statuses = {gap.status for gap in gaps}
    if statuses & {"failed", "unusable"}:
        return "failed"
    return "stale" if "stale" in statuses else "missing"


def _describe(gaps: Sequence[_Gap]) -> str:
    """As in: FLOW seed 1 stale, seeds 2, 3 failed; Standard FT seed 1 missing."""
    rows: dict[str, dict[str, list[int]]] = {}
    for gap in gaps:
        status = gap.reason if gap.status == "unusable" else gap.status
        rows.setdefault(gap.row, {}).setdefault(status, []).append(gap.seed)
    return "; ".join(
        f"{row} " + ", ".join(f"{_seed_list(seeds)} {status}" for status, seeds in statuses.items())
        for row, statuses in rows.items()
    )


def _seed_list(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _check_number(value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number, got {value!r}")


def _entries(kind: Callable[..., T], config: Mapping[str, Any], key: str) -> tuple[T, ...]:
    return tuple(_entry(kind, entry, f"{key}[{index}]") for index, entry in enumerate(config.get(key) or ()))


def _entry(kind: Callable[..., T], entry: Mapping[str, Any], where: str, **given: Any) -> T:
    """A dataclass from a mapping; ValueError for a key it does not have or one that is not given."""
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    for name in entry:
        if name not in known or name in given:
            allowed = ", ".join(other for other in known if other not in given)
            raise ValueError(f"{where} must have no keys but {allowed}, got {name!r}")
    for name, item in known.items():
        if item.default is MISSING and name not in entry and name not in given:
            raise ValueError(f"{where}.{name} must be given, got {dict(entry)}")
    return kind(**given, **entry)


def _columns(entries: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Column]:
    """The columns of one scale; a derived one takes `better` and `percent` from those it averages."""
    columns = {}
    for key, entry in entries.items():
        column = _entry(Column, {"label": key, **entry}, f"{where}.{key}", key=key)
        columns[key] = replace(column, mean_of=tuple(column.mean_of))
    for key, column in columns.items():
        if bool(column.metric) == bool(column.mean_of):
            found = "both" if column.metric else "neither"
            raise ValueError(f"{where}.{key} must have one of metric and mean_of, got {found}")
        if column.metric and "/" not in column.metric:
            raise ValueError(f"{where}.{key}.metric must be 'task/metric name', got {column.metric!r}")
        if column.transform not in (None, "log"):
            raise ValueError(f"{where}.{key}.transform must be log or absent, got {column.transform!r}")
        if column.transform and (column.percent or column.mean_of):
            raise ValueError(f"{where}.{key}.transform must stand without percent and mean_of, got both")
        if column.better not in (None, "higher", "lower") or (column.metric and column.better is None):
            raise ValueError(f"{where}.{key}.better must be higher or lower, got {column.better!r}")
        for part in column.mean_of:
            if part not in columns:
                raise ValueError(f"{where}.{key}.mean_of must name columns of the same scale, got {part!r}")
    resolved: dict[str, Column] = {}
    for key in columns:
        _resolve(columns, key, resolved, (), where)
    return {key: resolved[key] for key in columns}


def _resolve(
    columns: Mapping[str, Column], key: str, resolved: dict[str, Column], above: tuple[str, ...], where: str
) -> Column:
    if key in resolved:
        return resolved[key]
    if key in above:
        path = " -> ".join((*above, key))
        raise ValueError(f"{where}.{key}.mean_of must not lead back to itself, got {path}")
    column = columns[key]
    if column.mean_of:
        parts = [_resolve(columns, part, resolved, (*above, key), where) for part in column.mean_of]
        for name in ("better", "percent", "transform"):
            found = sorted({str(getattr(part, name) or "none") for part in parts})
            if len(found) > 1 and not (name == "better" and column.better):
                raise ValueError(
                    f"{where}.{key}.mean_of must join columns of one {name}, got {' and '.join(found)}"
                )
        percent = bool(parts[0].percent)
        if column.percent is not None and column.percent != percent:
            raise ValueError(
                f"{where}.{key}.percent must be that of its columns, {percent}, got {column.percent}"
            )
        column = replace(column, better=column.better or parts[0].better, percent=percent)
    resolved[key] = column
    return column
