"""What an experiment's YAML says about its table: rows, scales, columns, published numbers, claims, plots, the choice.

`Experiment.from_config` reads the plain dict and refuses, in one line, what does not fit together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Paper:
    title: str = ""
    authors: str = ""
    arxiv: str = ""
    table: str = ""


@dataclass(frozen=True)
class Scale:
    """`setting`: "paper" when it is sourced, "ours" when it is not, "partly ours" when the note says what is not."""

    key: str
    seeds: tuple[int, ...]
    setting: str = "paper"
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row with runs of its own, or the mean of other rows.

    seeds: the row's own, or those of the rows it is the mean of; None for the scale's. group: the key of its group,
    by default its own. mean_of: keys of the rows whose per-seed mean it is. baseline: in place of the experiment's, for
    what is published of this row; itself for no gap.
    """

    key: str
    label: str
    seeds: tuple[int, ...] | None = None
    group: str = ""
    group_label: str = ""
    mean_of: tuple[str, ...] = ()
    baseline: str | None = None

    @property
    def deterministic(self) -> bool:
        """Whether the row is measured once and stands against every seed of the others."""
        return self.seeds is not None and len(self.seeds) == 1


@dataclass(frozen=True)
class Column:
    """A metric ("task/metric name"), the mean of other columns, or a drop, in the units the table shows.

    A drop is the value of the column `of` in the row `below`, minus the row's own.
    """

    key: str
    label: str
    metric: str | None = None
    mean_of: tuple[str, ...] = ()
    of: str | None = None
    below: str | None = None
    better: str | None = None  # higher, lower or neither
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
    """The column `y` against the column `x`; `front`: with the Pareto front of all rows."""

    x: str
    y: str
    title: str = ""
    front: bool = False


@dataclass(frozen=True)
class Curve:
    """A metric that runs log with a step (`y`, as in metrics.jsonl), over the steps, a line for each row.

    label, x_label: of the axes. log_x, log_y: logarithmic axes. bounds: further metrics, drawn as dashed lines of the
    first row that logs them. rows: keys of the rows; none for all.
    """

    y: str
    title: str = ""
    label: str = ""
    x_label: str = "step"
    log_x: bool = False
    log_y: bool = False
    bounds: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """For a search: in each group, the row with the best mean in `column` is the chosen one."""

    column: str


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
    curves: tuple[Curve, ...] = ()
    baseline: str | None = None
    choose: Choice | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Experiment:
        """Read the plain dict of the YAML. Raises ValueError for what does not fit together.

        Scales and rows may hold further keys (overrides, ...); columns, published, claims, plots and choose may not.
        """
        for key in ("name", "scales", "rows", "columns"):
            if not config.get(key):
                raise ValueError(f"experiment.{key} must be given, got {config.get(key)!r}")
        scales = {
            key: Scale(key, tuple(entry.get("seeds") or ()), entry.get("setting", "paper"), entry.get("note") or "")
            for key, entry in config["scales"].items()
        }
        rows = {key: _row(key, entry, config["scales"]) for key, entry in config["rows"].items()}
        choose = config.get("choose")
        if choose is not None and not isinstance(choose, Mapping):
            raise ValueError(f"choose must be a mapping with the key column, got {choose!r}")
        paper = config.get("paper") or {}
        experiment = cls(
            name=config["name"],
            title=config.get("title") or config["name"],
            paper=Paper(**{item.name: str(paper.get(item.name) or "") for item in fields(Paper)}),
            scales=scales,
            rows={key: _with_seeds(row, rows, scales) for key, row in rows.items()},
            columns={scale: _columns(entries, f"columns.{scale}") for scale, entries in config["columns"].items()},
            published=_entries(Published, config, "published"),
            claims=tuple(
                replace(claim, scales=None if claim.scales is None else tuple(claim.scales))
                for claim in _entries(Claim, config, "claims")
            ),
            plots=_entries(Plot, config, "plots"),
            curves=tuple(
                replace(curve, bounds=tuple(curve.bounds), rows=tuple(curve.rows))
                for curve in _entries(Curve, config, "curves")
            ),
            baseline=config.get("baseline"),
            choose=None if choose is None else _entry(Choice, choose, "choose"),
        )
        experiment._check_scales()
        experiment._check_groups()
        experiment._check_columns()
        experiment._check_published()
        experiment._check_claims()
        experiment._check_plots()
        return experiment

    def _check_scales(self) -> None:
        for scale in self.scales.values():
            where = f"scales.{scale.key}"
            if scale.setting not in ("paper", "partly ours", "ours"):
                raise ValueError(f"{where}.setting must be 'paper', 'partly ours' or 'ours', got {scale.setting!r}")
            if scale.key == "full" and scale.setting == "ours":
                raise ValueError(
                    f"{where}.setting must be 'paper' or 'partly ours' (ours is never called full), got 'ours'"
                )
            if scale.setting == "partly ours" and not scale.note:
                raise ValueError(f"{where}.note must say which parts of the setting are ours, got none")
            if scale.key not in self.columns:
                raise ValueError(f"columns must have an entry for every scale, got none for {scale.key!r}")
            _check_seeds(scale.seeds, where)
        for row in self.rows.values():
            if row.seeds is not None:
                _check_seeds(row.seeds, f"rows.{row.key}")
            if row.baseline is not None:
                self._check_row(row.baseline, f"rows.{row.key}.baseline")
        if self.baseline is not None:
            self._check_row(self.baseline, "baseline")

    def group_label(self, group: str) -> str:
        """What a group is called: its `group_label`, else the label of the row of that key, else its key."""
        labels = [row.group_label for row in self.rows.values() if row.group == group and row.group_label]
        if labels:
            return labels[0]
        return self.rows[group].label if group in self.rows else group

    def _check_groups(self) -> None:
        labels: dict[str, str] = {}
        for row in self.rows.values():
            if row.group_label and labels.setdefault(row.group, row.group_label) != row.group_label:
                other = labels[row.group]
                raise ValueError(f"rows.{row.key}.group_label must be its group's, {other!r}, got {row.group_label!r}")

    def _check_columns(self) -> None:
        for scale, columns in self.columns.items():
            for column in columns.values():
                if column.below is not None:
                    self._check_row(column.below, f"columns.{scale}.{column.key}.below")
        if self.choose is not None and self.choose.column not in self._all_columns:
            raise ValueError(f"choose.column must be a column of some scale, got {self.choose.column!r}")
        if self.choose is not None:
            self._check_direction(self.choose.column, "choose.column")

    def _check_published(self) -> None:
        seen: set[tuple[object, ...]] = set()
        for index, entry in enumerate(self.published):
            where = f"published[{index}]"
            if entry.minus is not None and entry.over is not None:
                raise ValueError(f"{where} must have at most one of minus and over, got both")
            for row in filter(None, (entry.row, entry.minus, entry.over)):
                self._check_row(row, where)
            if entry.relation is not None and entry.relation[2] == entry.row:
                raise ValueError(f"{where} must relate row to another row, got {entry.row!r} twice")
            # A paper's scale may be one that the experiment does not have.
            if entry.column not in self.columns.get(entry.scale, self._all_columns):
                raise ValueError(f"{where}.column must be a column of scale {entry.scale}, got {entry.column!r}")
            _check_number(entry.value, f"{where}.value")
            if entry.tolerance is not None:
                _check_number(entry.tolerance, f"{where}.tolerance")
                if entry.tolerance <= 0:
                    raise ValueError(f"{where}.tolerance must be > 0, got {entry.tolerance}")
            identity = (entry.row, entry.relation, entry.column, entry.scale)
            if identity in seen:
                raise ValueError(f"{where} must not repeat an earlier entry, got {entry.row}/{entry.column} again")
            seen.add(identity)

    def _check_claims(self) -> None:
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
            if claim.column not in self._all_columns:
                raise ValueError(f"{where}.column must be a column of some scale, got {claim.column!r}")
            self._check_direction(claim.column, f"{where}.column")

    def _check_plots(self) -> None:
        for index, plot in enumerate(self.plots):
            for column in (plot.x, plot.y):
                if column not in self._all_columns:
                    raise ValueError(f"plots[{index}] must name columns of some scale, got {column!r}")
            if not isinstance(plot.front, bool):
                raise ValueError(f"plots[{index}].front must be true or false, got {plot.front!r}")
            for column in (plot.x, plot.y) if plot.front else ():
                self._check_direction(column, f"plots[{index}].front")
        for index, curve in enumerate(self.curves):
            for row in curve.rows:
                self._check_row(row, f"curves[{index}].rows")

    def _check_direction(self, column: str, where: str) -> None:
        """What is compared is better when it is higher, or when it is lower."""
        for columns in self.columns.values():
            if column in columns and columns[column].better == "neither":
                raise ValueError(f"{where} must be of columns of which higher or lower is better, got {column!r}")

    @property
    def _all_columns(self) -> set[str]:
        return {column for columns in self.columns.values() for column in columns}

    def _check_row(self, row: str, where: str) -> None:
        if row not in self.rows:
            raise ValueError(f"{where} must name one of the rows {', '.join(self.rows)}, got {row!r}")


def _check_seeds(seeds: tuple[int, ...], where: str) -> None:
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"{where}.seeds must list at least one seed, each once, got {list(seeds)}")


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


def _row(key: str, entry: Mapping[str, Any], scales: Iterable[str]) -> Row:
    for name in ("group", "group_label", "baseline"):
        if not isinstance(entry.get(name) or "", str):
            raise ValueError(f"rows.{key}.{name} must be a text, got {entry[name]!r}")
    mean_of = entry.get("mean_of") or ()
    if "mean_of" in entry and (not isinstance(mean_of, list | tuple) or not mean_of):
        raise ValueError(f"rows.{key}.mean_of must be a list of rows, got {entry['mean_of']!r}")
    if mean_of:
        for name in ("seeds", "overrides", "sweep", *scales):
            if entry.get(name):
                raise ValueError(f"rows.{key} must have no {name}, being the mean of other rows, got {entry[name]!r}")
    seeds = entry.get("seeds")
    return Row(
        key,
        entry.get("label") or key,
        None if seeds is None else tuple(seeds),
        group=entry.get("group") or key,
        group_label=entry.get("group_label") or "",
        mean_of=tuple(mean_of),
        baseline=entry.get("baseline"),
    )


def _with_seeds(row: Row, rows: Mapping[str, Row], scales: Mapping[str, Scale]) -> Row:
    """A row that is the mean of others, with their seeds."""
    where = f"rows.{row.key}.mean_of"
    for part in row.mean_of:
        if part not in rows or rows[part].mean_of:
            raise ValueError(f"{where} must name rows with runs of their own, got {part!r}")
    if len(set(row.mean_of)) < len(row.mean_of):
        raise ValueError(f"{where} must name each row once, got {list(row.mean_of)}")
    seeds = [rows[part].seeds for part in row.mean_of]
    for scale in scales.values():
        found = list(dict.fromkeys(scale.seeds if own is None else own for own in seeds))
        if len(found) > 1:
            told = " and ".join(str(list(own)) for own in found[:2])
            raise ValueError(f"{where} must join rows of the same seeds (scale {scale.key}), got {told}")
    return replace(row, seeds=seeds[0]) if row.mean_of else row


def _columns(entries: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Column]:
    """The columns of one scale; a derived one takes `better` and `percent` from those it is made of."""
    columns = {}
    for key, entry in entries.items():
        column = _entry(Column, {"label": key, **entry}, f"{where}.{key}", key=key)
        columns[key] = replace(column, mean_of=tuple(column.mean_of))
    for key, column in columns.items():
        if column.of or column.below:
            _check_drop(columns, column, f"{where}.{key}")
        elif bool(column.metric) == bool(column.mean_of):
            found = "both" if column.metric else "neither"
            raise ValueError(f"{where}.{key} must have one of metric and mean_of, got {found}")
        if column.metric and "/" not in column.metric:
            raise ValueError(f"{where}.{key}.metric must be 'task/metric name', got {column.metric!r}")
        if column.transform not in (None, "log"):
            raise ValueError(f"{where}.{key}.transform must be log or absent, got {column.transform!r}")
        if column.transform and (column.percent or column.mean_of or column.of):
            raise ValueError(f"{where}.{key}.transform must stand without percent and mean_of, got both")
        if column.better not in (None, "higher", "lower", "neither") or (column.metric and column.better is None):
            raise ValueError(f"{where}.{key}.better must be higher, lower or neither, got {column.better!r}")
        for part in column.mean_of:
            if part not in columns:
                raise ValueError(f"{where}.{key}.mean_of must name columns of the same scale, got {part!r}")
            if columns[part].of:
                raise ValueError(f"{where}.{key}.mean_of must name no drop (a mean can have one), got {part!r}")
    resolved: dict[str, Column] = {}
    for key in columns:
        _resolve(columns, key, resolved, (), where)
    return {key: resolved[key] for key in columns}


def _check_drop(columns: Mapping[str, Column], column: Column, where: str) -> None:
    if not (column.of and column.below):
        raise ValueError(f"{where} must have of and below together, got {'of' if column.of else 'below'} alone")
    if column.metric or column.mean_of:
        other = "metric" if column.metric else "mean_of"
        raise ValueError(f"{where} must have of and below without metric and mean_of, got {other} too")
    if column.of not in columns or columns[column.of].of:
        raise ValueError(f"{where}.of must name a column of the same scale that is no drop, got {column.of!r}")


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
                raise ValueError(f"{where}.{key}.mean_of must join columns of one {name}, got {' and '.join(found)}")
        percent = bool(parts[0].percent)
        if column.percent is not None and column.percent != percent:
            raise ValueError(f"{where}.{key}.percent must be that of its columns, {percent}, got {column.percent}")
        column = replace(column, better=column.better or parts[0].better, percent=percent)
    if column.of:
        base = _resolve(columns, column.of, resolved, (*above, key), where)
        if column.percent is not None and column.percent != bool(base.percent):
            given = f"{bool(base.percent)}, got {column.percent}"
            raise ValueError(f"{where}.{key}.percent must be that of {column.of}, {given}")
        # What is lost of a score should be little; what is lost of a loss, much.
        opposite = {"higher": "lower", "lower": "higher"}
        better = column.better or opposite.get(str(base.better), "neither")
        column = replace(column, better=better, percent=base.percent, transform=base.transform)
    resolved[key] = column
    return column
