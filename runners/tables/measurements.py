"""What was measured, seed by seed: a column's value in every run of a row, or why there is none.

Only `done` runs count. A derived column (`mean_of`) and a `transform` are computed per seed, before the mean over
seeds. Two rows are paired by seed; a row that lists a single seed of its own is deterministic and stands against every
seed of the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from runners.tables.experiment import Column, Experiment, Row

STATUSES = ("done", "stale", "missing", "failed", "running")

T = TypeVar("T")


@dataclass(frozen=True)
class CellRun:
    """One run of one row. `metrics`: {task: {metric: value}} of a done run; `reason`: why it is not done."""

    row: str
    seed: int
    status: str
    metrics: Mapping[str, Mapping[str, Any]] | None = None
    folder: str | Path = ""
    reason: str = ""


@dataclass(frozen=True)
class Gap:
    """Why a seed has no value: its run's status, or "unusable" for a done run without this number. `row`: its label."""

    row: str
    seed: int
    status: str
    reason: str = ""


@dataclass
class Sample(Generic[T]):
    """Values by seed (numbers, or pairs of them), of `expected`; the gaps; and why nothing could be expected at all."""

    expected: int
    values: dict[int, T] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    problem: str = ""


class Measurements:
    """The runs of `experiment` at `scale`, as samples.

    samples: {(row's key, column's key): the row's values by seed, in the units the table shows}.
    Raises ValueError for an unknown scale, a run of an unknown row or status, or two of one row and seed.
    """

    def __init__(self, experiment: Experiment, scale: str, runs: Iterable[CellRun]) -> None:
        if scale not in experiment.scales:
            raise ValueError(f"scale must be one of {', '.join(experiment.scales)}, got {scale!r}")
        self.experiment = experiment
        self.scale = experiment.scales[scale]
        self.columns = experiment.columns[scale]
        self.runs: dict[tuple[str, int], CellRun] = {}
        for run in runs:
            if run.row not in experiment.rows:
                raise ValueError(f"run.row must be one of {', '.join(experiment.rows)}, got {run.row!r}")
            if run.status not in STATUSES:
                raise ValueError(f"run.status must be one of {', '.join(STATUSES)}, got {run.status!r}")
            if (run.row, run.seed) in self.runs:
                raise ValueError(f"runs must hold one run per row and seed, got two of {run.row} seed {run.seed}")
            self.runs[run.row, run.seed] = run
        self.samples = {
            (row.key, column): self._sample(row, column) for row in experiment.rows.values() for column in self.columns
        }

    def seeds(self, row: Row) -> tuple[int, ...]:
        return self.scale.seeds if row.seeds is None else row.seeds

    def run(self, row: Row, seed: int) -> CellRun:
        return self.runs.get((row.key, seed)) or CellRun(row.key, seed, "missing", reason="has not run")

    def pairs(self, row: Row, other: Row, column: str) -> Sample[tuple[float, float]]:
        """Both rows' values, seed by seed; a deterministic row stands against every seed of the other."""
        row_seeds, other_seeds = self.seeds(row), self.seeds(other)
        if row.deterministic and not other.deterministic:
            seeds = {seed: (row_seeds[0], seed) for seed in other_seeds}
        elif other.deterministic:
            seeds = {seed: (seed, other_seeds[0]) for seed in row_seeds}
        else:
            seeds = {seed: (seed, seed) for seed in row_seeds if seed in other_seeds}
        pairs = Sample[tuple[float, float]](len(seeds))
        if not seeds:
            pairs.problem = f"{row.label} and {other.label} share no seed"
        samples = self.samples[row.key, column], self.samples[other.key, column]
        for seed, own in seeds.items():
            gaps = [gap for s, part in zip(own, samples, strict=True) for gap in part.gaps if gap.seed == s]
            pairs.gaps.extend(gap for gap in gaps if gap not in pairs.gaps)
            if not gaps:
                pairs.values[seed] = (samples[0].values[own[0]], samples[1].values[own[1]])
        return pairs

    def _sample(self, row: Row, column: str) -> Sample[float]:
        sample = Sample[float](len(self.seeds(row)))
        for seed in self.seeds(row):
            run = self.run(row, seed)
            if run.status != "done":
                sample.gaps.append(Gap(row.label, seed, run.status, run.reason))
                continue
            value = _column_value(self.columns, column, run.metrics or {})
            if isinstance(value, str):
                sample.gaps.append(Gap(row.label, seed, "unusable", value))
            else:
                sample.values[seed] = value
        return sample


def _column_value(columns: Mapping[str, Column], key: str, metrics: Mapping[str, Mapping[str, Any]]) -> float | str:
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


def describe(gaps: Sequence[Gap]) -> str:
    """As in: FLOW seed 1 stale, seeds 2, 3 failed; Standard FT seed 1 missing."""
    rows: dict[str, dict[str, list[int]]] = {}
    for gap in gaps:
        status = gap.reason if gap.status == "unusable" else gap.status
        rows.setdefault(gap.row, {}).setdefault(status, []).append(gap.seed)
    return "; ".join(
        f"{row} " + ", ".join(f"{seed_list(seeds)} {status}" for status, seeds in statuses.items())
        for row, statuses in rows.items()
    )


def seed_list(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
