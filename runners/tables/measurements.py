"""What was measured, seed by seed: a column's value in every run of a row, or why there is none.

Only `done` runs count. A derived column (`mean_of`, or a drop: `of` and `below`), a derived row (`mean_of`) and a
`transform` are computed per seed, before the mean over seeds. Two rows are paired by seed; a row that lists a single
seed of its own is deterministic and stands against every seed of the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from evals import forgetting
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
    """Why a seed has no value. `row`: its label.

    status: its run's; or, of a done run, "untrained" where the number is one of training and it trains nothing, and
    "unusable" where it lacks the number for another reason.
    """

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
            if parts := experiment.rows[run.row].mean_of:
                raise ValueError(f"run.row must have runs of its own, got {run.row!r}, the mean of {', '.join(parts)}")
            if run.status not in STATUSES:
                raise ValueError(f"run.status must be one of {', '.join(STATUSES)}, got {run.status!r}")
            if (run.row, run.seed) in self.runs:
                raise ValueError(f"runs must hold one run per row and seed, got two of {run.row} seed {run.seed}")
            self.runs[run.row, run.seed] = run
        self._known: dict[tuple[str, str], Sample[float]] = {}
        self.samples = {
            (row.key, column): self._sample(row, column) for row in experiment.rows.values() for column in self.columns
        }

    def seeds(self, row: Row) -> tuple[int, ...]:
        return self.scale.seeds if row.seeds is None else row.seeds

    def run(self, row: Row, seed: int) -> CellRun:
        return self.runs.get((row.key, seed)) or CellRun(row.key, seed, "missing", reason="has not run")

    def pairs(self, row: Row, other: Row, column: str) -> Sample[tuple[float, float]]:
        """Both rows' values, seed by seed; a deterministic row stands against every seed of the other."""
        seeds = self._paired_seeds(row, other, column)
        pairs = Sample[tuple[float, float]](len(seeds))
        if not seeds:
            pairs.problem = f"{row.label} and {other.label} share no seed"
        samples = self._sample(row, column), self._sample(other, column)
        for seed, own in seeds.items():
            gaps = [gap for s, part in zip(own, samples, strict=True) for gap in _gaps(part, s)]
            pairs.gaps.extend(gap for gap in gaps if gap not in pairs.gaps)
            if not gaps:
                pairs.values[seed] = (samples[0].values[own[0]], samples[1].values[own[1]])
        return pairs

    def _paired_seeds(self, row: Row, other: Row, column: str) -> dict[int, tuple[int, int]]:
        """The seeds of the pairs: of each, the seeds of its two values."""
        row_seeds, other_seeds = self._seeds_of_values(row, column), self._seeds_of_values(other, column)
        row_single = row.deterministic and len(row_seeds) == 1
        other_single = other.deterministic and len(other_seeds) == 1
        if row_single and not other_single:
            return {seed: (row_seeds[0], seed) for seed in other_seeds}
        if other_single:
            return {seed: (seed, other_seeds[0]) for seed in row_seeds}
        return {seed: (seed, seed) for seed in row_seeds if seed in other_seeds}

    def _seeds_of_values(self, row: Row, column: str) -> tuple[int, ...]:
        """The row's own seeds; of a drop, those of its pairs with the row that it is measured below."""
        drop = self.columns[column]
        if drop.of is None or drop.below is None:
            return self.seeds(row)
        return tuple(self._paired_seeds(row, self.experiment.rows[drop.below], drop.of))

    def _sample(self, row: Row, column: str) -> Sample[float]:
        """The row's values in a column; found once, as others are made of it."""
        if (row.key, column) not in self._known:
            drop = self.columns[column]
            if drop.of is not None and drop.below is not None:
                sample = self._drop(row, drop.of, drop.below)
            elif row.mean_of:
                sample = self._mean(row, column)
            else:
                sample = self._measured(row, column)
            self._known[row.key, column] = sample
        return self._known[row.key, column]

    def _drop(self, row: Row, of: str, below: str) -> Sample[float]:
        """What a row has lost, seed by seed, against the row it is measured below."""
        pairs = self.pairs(row, self.experiment.rows[below], of)
        sample = Sample[float](pairs.expected, gaps=pairs.gaps, problem=pairs.problem)
        for seed, (tuned, base) in pairs.values.items():
            sample.values[seed] = forgetting.drop(base, tuned)
        return sample

    def _mean(self, row: Row, column: str) -> Sample[float]:
        """The mean over the rows that a row is the mean of, where all of them have the seed."""
        parts = [self._sample(self.experiment.rows[key], column) for key in row.mean_of]
        sample = Sample[float](len(self.seeds(row)))
        for seed in self.seeds(row):
            gaps = [gap for part in parts for gap in part.gaps if gap.seed == seed]
            sample.gaps.extend(gaps)
            if not gaps:
                sample.values[seed] = forgetting.mean_score([part.values[seed] for part in parts])
        return sample

    def _measured(self, row: Row, column: str) -> Sample[float]:
        sample = Sample[float](len(self.seeds(row)))
        for seed in self.seeds(row):
            run = self.run(row, seed)
            if run.status != "done":
                sample.gaps.append(Gap(row.label, seed, run.status, run.reason))
                continue
            value = _column_value(self.columns, column, run.metrics or {})
            if isinstance(value, str):
                status = (
                    "untrained" if self._is_of_training(column) and "train" not in (run.metrics or {}) else "unusable"
                )
                sample.gaps.append(Gap(row.label, seed, status, value))
            else:
                sample.values[seed] = value
        return sample

    def _is_of_training(self, key: str) -> bool:
        column = self.columns[key]
        return (
            all(map(self._is_of_training, column.mean_of))
            if column.mean_of
            else str(column.metric).startswith("train/")
        )


def _column_value(columns: Mapping[str, Column], key: str, metrics: Mapping[str, Mapping[str, Any]]) -> float | str:
    """The column's value in one run's metrics, in the table's units; or, as a string, why it has none."""
    column = columns[key]
    if column.mean_of:
        parts = [_column_value(columns, part, metrics) for part in column.mean_of]
        numbers = [part for part in parts if not isinstance(part, str)]
        if len(numbers) < len(parts):
            return next(part for part in parts if isinstance(part, str))
        return forgetting.mean_score(numbers)
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


def _gaps(sample: Sample[float], seed: int) -> list[Gap]:
    """Why a sample has no value of a seed; of a drop this may be a run of another seed, of the row it stands below."""
    if seed in sample.values:
        return []
    return [gap for gap in sample.gaps if gap.seed == seed] or sample.gaps


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
