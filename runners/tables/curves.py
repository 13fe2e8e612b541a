"""What runs logged over their steps, as lines: the mean over a row's seeds, with its 95% interval."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from runners.tables.experiment import Curve
from runners.tables.statistics import mean_interval
from runners.tables.table import Table


class Line(NamedTuple):
    """A row's mean at every step that all its done runs logged. half_widths: of the interval; 0 for a single run."""

    label: str
    steps: list[int]
    means: list[float]
    half_widths: list[float]


def lines(table: Table, curve: Curve) -> list[Line]:
    """One line for each row of the curve that has done runs which logged its metric."""
    shown = [row for row in table.rows if not curve.rows or row.key in curve.rows]
    found = (_line(table, row.label, curve.y) for row in shown)
    return [line for line in found if line is not None]


def bounds(table: Table, curve: Curve) -> list[Line]:
    """One line for each of the curve's bounds, of the first row that logged it."""
    shown = [row.label for row in table.rows if not curve.rows or row.key in curve.rows]
    found = []
    for metric in curve.bounds:
        of_rows = (_line(table, label, metric) for label in shown)
        first = next((line for line in of_rows if line is not None), None)
        if first is not None:
            found.append(first._replace(label=metric.rpartition("/")[2].replace("_", " ")))
    return found


def _line(table: Table, label: str, metric: str) -> Line | None:
    folders = [Path(run.folder) for run in table.runs if run.row == label and run.status == "done"]
    series = [one for folder in folders if (one := _logged(folder, metric))]
    steps = sorted(set.intersection(*map(set, series))) if series else []
    if not steps:
        return None
    intervals = [mean_interval([one[step] for one in series]) for step in steps]
    return Line(label, steps, [each.mean for each in intervals], [each.half_width or 0.0 for each in intervals])


def _logged(folder: Path, metric: str) -> dict[int, float]:
    """The finite values of a metric by step."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return {}
    return dict(_values(path.read_text(encoding="utf-8").splitlines(), metric))


def _values(written: Iterable[str], metric: str) -> Iterable[tuple[int, float]]:
    for line in written:
        try:
            logged = json.loads(line)
        except ValueError:  # cut off in the middle
            continue
        value = logged.get(metric)
        if logged.get("step") is not None and isinstance(value, int | float) and abs(value) < float("inf"):
            yield int(logged["step"]), float(value)
