"""Which runs a command means: the cells of a table, from its overrides, before anything is composed."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from runners.compose import explain
from runners.errors import UserError
from runners.expand import (
    config_roots,
    expand,
    load_experiment,
    parts_of,
    plugin_overrides,
    scale_of,
    seeds_of,
    value_of,
    without,
)

Assignment = tuple[str, str]  # key, value

# Overrides of an experiment that change where and how fast it runs, not what it measures.
_NO_OTHER_RESULT = (
    "engine=zero",
    "engine.zero_stage=",
    "engine.offload=",
    "engine.threads=",
    "engine.activation_checkpointing=",
    "evaluation.batch_size=",
    "evaluation.confirm_run_unsafe_code=",
    "evaluation.data_root=",
    "training.micro_batch_size=",
    "training.checkpoint_every=",
    "training.log_every=",
    "training.profile=",
)


# Root keys that say where things are kept, how much is run and by whom: they name no other table.
_NO_OTHER_TABLE = (
    "outputs",
    "plugins",
    "hydra.searchpath",
    "runs_from",
    "keep",
    "best_metric",
    "best_is",
    "rerun",
    "changed",
    "busy",
    "fail_fast",
    "processes",
    "gpus",
    "nodes",
)


@dataclass(frozen=True)
class Cell:
    """One run that the command means: a row of the table at one seed."""

    row: str
    seed: int
    overrides: list[str]  # complete: composing them gives the run


@dataclass(frozen=True)
class Plan:
    """The cells of one table, and the table's definition (an experiment's YAML, or one made up for a sweep)."""

    experiment: dict[str, Any]
    scale: str
    cells: list[Cell] = field(default_factory=list)
    variant: str = ""  # names what the user changed against the experiment; empty for the experiment itself


def plans(arguments: Sequence[str]) -> list[Plan]:
    """Split a command's overrides (with sweeps like `seed=1,2`) into cells, table by table.

    An experiment contributes its rows x its seeds, unless `row=` or `seed=` name them; other sweeps multiply
    that, each combination giving rows of its own. Without an experiment the cross product is the table.

    Raises:
        UserError: an override that cannot be parsed, an unknown experiment, row or scale.
    """
    combinations, swept = _split(plugin_overrides(without(list(arguments), "job")))
    found: dict[tuple[str, str], list[list[Assignment]]] = {}
    for combination in combinations:
        words = _words(combination)
        name = value_of(words, "experiment")
        if name is None:
            key = ("", value_of(words, "scale") or "mini")
        else:
            key = (name, scale_of(words, load_experiment(name, config_roots(words))))
        found.setdefault(key, []).append(combination)
    return [
        _experiment_plan(name, scale, own, swept) if name else _sweep_plan(scale, own, swept)
        for (name, scale), own in found.items()
    ]


def _split(arguments: list[str]) -> tuple[list[list[Assignment]], list[str]]:
    """The cross product of all sweeps among the overrides, and the keys that are swept."""
    hydra = GlobalHydra.instance()
    # `glob` needs to know the configuration's groups.
    parser = OverridesParser.create(hydra.config_loader() if hydra.is_initialized() else None)
    try:
        parsed = parser.parse_overrides(arguments)
    except HydraException as error:
        raise UserError(explain(error, arguments)) from error
    choices: dict[str, list[Assignment]] = {}
    for override in parsed:
        key = override.get_key_element()
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                raise UserError(f"{override.input_line}: only lists of values can be swept here (choice, range, glob)")
            choices[key] = [(key, str(value)) for value in override.sweep_string_iterator()]
            if not choices[key]:
                raise UserError(f"{override.input_line}: must stand for at least one value")
        else:
            choices[key] = [(key, override.get_value_element_as_str())]
    swept = [key for key, values in choices.items() if len(values) > 1]
    return [list(combination) for combination in itertools.product(*choices.values())], swept


def _words(combination: Sequence[Assignment]) -> list[str]:
    return [key if key.startswith("~") else f"{key}={value}" for key, value in combination]


def _suffix(combination: Sequence[Assignment], swept: Sequence[str], fixed: Sequence[str]) -> str:
    return " ".join(f"{key.lstrip('+')}={value}" for key, value in combination if key in swept and key not in fixed)


def _experiment_plan(name: str, scale: str, combinations: list[list[Assignment]], swept: list[str]) -> Plan:
    experiment = dict(load_experiment(name, config_roots(_words(combinations[0]))))
    fixed = ("experiment", "scale", "row", "seed")
    rows: dict[str, Any] = {}
    cells: dict[tuple[str, int], Cell] = {}
    changed: set[str] = set()
    for combination in combinations:
        words = _words(combination)
        suffix = _suffix(combination, swept, fixed)
        changed |= set(_what_is_measured(without(words, *fixed)))
        chosen = value_of(words, "row")
        for row in [chosen] if chosen else experiment["rows"]:
            definition = experiment["rows"].get(row) or {}
            key = f"{row} {suffix}".strip()
            label = definition.get("label") or row
            named = {**definition, "label": f"{label} ({suffix})" if suffix else label}
            if not chosen and (parts := parts_of(experiment, row)):
                rows[key] = {**named, "mean_of": [f"{part} {suffix}".strip() for part in parts]}
                continue  # nothing of its own to run
            expanded = expand([*without(words, "row"), f"row={row}"])
            if suffix and experiment.get("choose"):
                named = {"group": row, "group_label": label, **named}
            rows[key] = named
            seed = value_of(words, "seed")
            for number in (
                seeds_of(experiment, row, scale) if seed is None or definition.get("seeds") else [_number(seed)]
            ):
                cells[key, number] = Cell(key, number, [*without(expanded, "seed"), f"seed={number}"])
            if seed is not None and not definition.get("seeds"):
                rows[key]["seeds"] = None
    rows = {key: row for key, row in rows.items() if set(row.get("mean_of") or ()) <= set(rows)}
    experiment["rows"] = rows
    seeds = sorted({cell.seed for cell in cells.values() if not rows[cell.row].get("seeds")})
    if seeds:
        experiment["scales"] = {**experiment["scales"], scale: {**experiment["scales"][scale], "seeds": seeds}}
    _keep_what_fits(experiment, rows)
    if any(not word.startswith(_NO_OTHER_RESULT) for word in changed):
        # Published for the experiment as it stands: beside another setting it is shown, and not comparable.
        experiment["published"] = [
            {**entry, "scale": f"{entry.get('scale', 'full')}, unchanged"} for entry in experiment["published"]
        ]
    debug = sorted({value for combination in combinations if (value := value_of(_words(combination), "debug"))})
    if debug:  # whoever sees the table shall know at once that its numbers mean nothing
        experiment["title"] = f"{experiment['title']} (debug={','.join(debug)})"
    variant = hashlib.sha256(" ".join(sorted(changed)).encode()).hexdigest()[:8] if changed else ""
    return Plan(experiment, scale, list(cells.values()), variant)


def _what_is_measured(words: list[str]) -> list[str]:
    """The overrides that name another table: without those that say where things run and are kept."""
    return [word for word in without(words, *_NO_OTHER_TABLE) if not word.startswith(("tracker", "hydra/", "hydra."))]


def _keep_what_fits(experiment: dict[str, Any], rows: Mapping[str, Any]) -> None:
    """Leave out what is said of rows that this command does not show: published, claims, columns, curves, baseline."""
    gone = _columns_below(experiment, rows)
    if gone:
        experiment["columns"] = {
            scale: {key: column for key, column in columns.items() if key not in gone}
            for scale, columns in experiment["columns"].items()
        }
        experiment["plots"] = [p for p in experiment.get("plots") or [] if not gone & {p.get("x"), p.get("y")}]
        if (experiment.get("choose") or {}).get("column") in gone:
            experiment["choose"] = None
    for key in ("published", "claims"):
        experiment[key] = [
            entry
            for entry in experiment.get(key) or []
            if all(entry.get(role) in (None, *rows) for role in ("row", "minus", "over", "beats"))
            and entry.get("column") not in gone
        ]
    curves = experiment.get("curves") or []
    shown = [{**curve, "rows": [row for row in curve.get("rows") or rows if row in rows]} for curve in curves]
    experiment["curves"] = [curve for curve in shown if curve["rows"]]
    if experiment.get("baseline") not in rows:
        experiment["baseline"] = None
    experiment["rows"] = {  # a row whose own baseline is not shown is its own: it has no gap
        key: {**row, "baseline": key} if row.get("baseline") not in (None, *rows) else row
        for key, row in experiment["rows"].items()
    }


def _columns_below(experiment: Mapping[str, Any], rows: Mapping[str, Any]) -> set[str]:
    """The columns that state a drop below a row which is not shown."""
    return {
        key
        for columns in (experiment.get("columns") or {}).values()
        for key, column in columns.items()
        if column.get("below") not in (None, *rows)
    }


def _sweep_plan(scale: str, combinations: list[list[Assignment]], swept: list[str]) -> Plan:
    """A plain sweep: one row per combination of what varies (seeds aside); the columns come with the results."""
    rows: dict[str, Any] = {}
    cells: dict[tuple[str, int], Cell] = {}
    for combination in combinations:
        words = _words(combination)
        row = _suffix(combination, swept, ("seed",)) or value_of(words, "method") or "default"
        rows[row] = {"label": row}
        seed = _number(value_of(words, "seed") or "1")
        cells[row, seed] = Cell(row, seed, [*without(words, "seed"), f"seed={seed}"])
    commands = sorted(" ".join(_what_is_measured(cell.overrides)) for cell in cells.values())
    digest = hashlib.sha256(" ".join(commands).encode()).hexdigest()[:8]
    seeds = sorted({cell.seed for cell in cells.values()})
    definition = {
        "name": "runs",
        "title": "A sweep of your own",
        "rows": rows,
        "columns": {},
        "scales": {scale: {"setting": "ours", "seeds": seeds}},
    }
    return Plan(definition, scale, list(cells.values()), digest)


def _number(seed: str) -> int:
    try:
        return int(seed)
    except ValueError as error:
        raise UserError(f"seed={seed}: must be a whole number") from error


def numbers(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a result measured, as {task: {metric: value}}; a method's own `train/loss` is `loss` of `train`."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in result["method_metrics"].items():
        task, _, metric = name.rpartition("/")
        found.setdefault(task, {})[metric] = value
    return found | dict(result["metrics"])


def main_columns(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Columns for a sweep that has no experiment: each evaluated task's first metric, or else the training loss."""
    columns: dict[str, dict[str, Any]] = {}
    for result in results:
        higher = result["evaluation"].get("higher_is_better") or {}
        for task, values in result["metrics"].items():
            first = next((name for name in values if "_stderr" not in name and "," in name), None)
            if first is not None and task not in columns:
                metric = first.partition(",")[0]
                better = "lower" if (higher.get(task) or {}).get(metric) is False else "higher"
                columns[task] = {"label": f"{task} {metric}", "metric": f"{task}/{first}", "better": better}
    if not columns and any("train/loss" in result["method_metrics"] for result in results):
        columns["loss"] = {"label": "training loss", "metric": "train/loss", "better": "lower"}
    if not columns:  # of methods that train nothing and measure themselves
        for name in dict.fromkeys(name for result in results for name in result["method_metrics"]):
            columns[name.replace("/", "_")] = {"label": name, "metric": name, "better": "neither"}
    return columns
