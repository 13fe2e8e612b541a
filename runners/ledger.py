"""The ledger of a table: with which configuration each of its cells runs, so that a resumed sweep is the same sweep.

`outputs/<experiment>/table-<scale>[-variant]/cells.json` is written before the first cell starts. A command typed again
after the experiment's YAML or a default has changed would fill one table from two configurations; the ledger tells
which cells, and which keys.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners import lock, record
from runners.compose import RunSpec, run_spec
from runners.differences import Change, changes
from runners.errors import UserError
from runners.expand import without
from runners.plan import Cell, Plan
from runners.tables.measurements import seed_list

log = logging.getLogger(__name__)

_FILE = "cells.json"
_MOST_KEYS = 12  # named in a message


@dataclass(frozen=True)
class Changed:
    """A cell that has run with another configuration than the command's."""

    row: str
    seed: int
    changes: tuple[Change, ...]


def folder_of(plan: Plan, spec: RunSpec) -> Path:
    """Where a plan's table is kept."""
    name = f"table-{plan.scale}-{plan.variant}" if plan.variant else f"table-{plan.scale}"
    return Path(spec.config["outputs"]).expanduser() / plan.experiment["name"] / name


def check(plan: Plan, specs: Sequence[RunSpec]) -> None:
    """Refuse a command whose cells have run with another configuration, unless it says `changed=accept`.

    Raises:
        UserError: naming rows, seeds and the keys that differ.
    """
    path = folder_of(plan, specs[0]) / _FILE
    different = _different(_read(path), plan, specs) if specs[0].config["changed"] == "refuse" else []
    if different:
        raise UserError(
            f"changed=refuse: cells of {plan.experiment['name']} have run with another configuration: "
            f"{'; '.join(_told(different))}; changed=accept goes on with the new one (the ledger {path} is kept as "
            "cells.before-<time>.json), or delete those runs, or choose another outputs="
        )


def enter(plan: Plan, specs: Sequence[RunSpec]) -> None:
    """Enter the cells of a command that is about to run; what is there of other rows and seeds stays.

    Where the configuration has changed, the former ledger is kept as `cells.before-<time>.json`, and what it has of
    the rows that have changed is dropped.
    """
    path = folder_of(plan, specs[0]) / _FILE
    with lock.held(path, patience=600):
        book = _read(path)
        different = _different(book, plan, specs)
        if different:
            kept = path.with_name(f"cells.before-{time.strftime('%Y%m%d-%H%M%S')}.json")
            shutil.copyfile(path, kept)
            log.warning("changed=accept: %s; the former ledger is kept in %s", "; ".join(_told(different)), kept)
            for row in {cell.row for cell in different}:
                book["cells"].pop(row)
        _write(path, book, plan, specs)


def changed_lines(plan: Plan, specs: Sequence[RunSpec]) -> list[str]:
    """One line for each kind of change between what has run and what the table shows now."""
    different = _different(_read(folder_of(plan, specs[0]) / _FILE), plan, specs)
    return [f"ran with another configuration, left out: {told}" for told in _told(different)]


def _different(book: Mapping[str, Any], plan: Plan, specs: Sequence[RunSpec]) -> list[Changed]:
    """The cells that have a result of another configuration than the command's."""
    found = []
    for row, seed, spec in _cells(book, plan, specs):
        entry = book["cells"].get(row, {}).get(str(seed))
        if entry is None or entry["identity"] == spec.identity or not _has_result(entry["folder"], spec):
            continue
        old = _whole(entry["identity"], book["configurations"])
        new = _whole(spec.identity, _configurations(spec))
        told = changes(old, new) or [Change("identity", entry["identity"], spec.identity)]
        found.append(Changed(row, seed, tuple(told)))
    return found


def _cells(book: Mapping[str, Any], plan: Plan, specs: Sequence[RunSpec]) -> Iterator[tuple[str, int, RunSpec]]:
    """The cells of the command; and for each row of which other seeds have run, one of those, as it would run now.

    A command for new seeds alone would else put them into a mean with seeds of another configuration.
    """
    rows: dict[str, dict[int, tuple[Cell, RunSpec]]] = {}
    for cell, spec in zip(plan.cells, specs, strict=True):
        rows.setdefault(cell.row, {})[cell.seed] = cell, spec
        yield cell.row, cell.seed, spec
    for row, own in rows.items():
        cell, spec = next(iter(own.values()))
        entered = book["cells"].get(row, {}).items()
        others = (int(seed) for seed, entry in entered if int(seed) not in own and _has_result(entry["folder"], spec))
        seed = next(others, None)
        if seed is not None:
            yield row, seed, run_spec([*without(cell.overrides, "seed"), f"seed={seed}"])


def _has_result(name: str, spec: RunSpec) -> bool:
    """Whether the run of that folder name has ever been done, here or in one of `runs_from`."""
    folders = [spec.folder, *(spec.folder_below(root) for root in spec.config["runs_from"])]
    return any((folder.with_name(name) / "result.json").is_file() for folder in folders)


def _told(different: Sequence[Changed]) -> list[str]:
    """As in: sft seeds 1, 2 (optimizer.lr 0.0003 -> 0.001)."""
    grouped: dict[tuple[Change, ...], dict[str, list[int]]] = {}
    for cell in different:
        grouped.setdefault(cell.changes, {}).setdefault(cell.row, []).append(cell.seed)
    lines = []
    for keys, rows in grouped.items():
        who = ", ".join(f"{row} {seed_list(sorted(seeds))}" for row, seeds in rows.items())
        left_out = len(keys) - _MOST_KEYS
        what = ", ".join(map(str, keys[:_MOST_KEYS])) + (f" and {left_out} more keys" if left_out > 0 else "")
        lines.append(f"{who} ({what})")
    return lines


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"cells": {}, "configurations": {}}
    try:
        book = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(book["cells"], dict) or not isinstance(book["configurations"], dict):
            raise ValueError("no mapping of cells and configurations")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: must be a ledger as it was written, got {error!r}; delete it to go on") from error
    return dict(book)


def _write(path: Path, book: dict[str, Any], plan: Plan, specs: Sequence[RunSpec]) -> None:
    known = dict(book["configurations"])
    for cell, spec in zip(plan.cells, specs, strict=True):
        row = book["cells"].setdefault(cell.row, {})
        row[str(cell.seed)] = {"identity": spec.identity, "folder": spec.name}
        if spec.identity not in known:
            known |= _configurations(spec)
    used = {entry["identity"] for row in book["cells"].values() for entry in row.values()}
    configurations: dict[str, Any] = {}
    while used:  # the cells', then their parents'
        configurations |= {identity: known[identity] for identity in used if identity in known}
        parents = {
            parent for identity in used if identity in configurations for parent in _parents(configurations[identity])
        }
        used = {parent for parent in parents if parent not in configurations}
    written = {"cells": book["cells"], "configurations": configurations}
    record.write_json(path, written)


def _configurations(spec: RunSpec) -> dict[str, Any]:
    """What decides the run's result and its parents', by identity, as JSON has it."""
    own = json.loads(json.dumps(spec.what_decides(), default=str))
    parents: dict[str, Any] = {}
    for parent in spec.named:
        parents |= _configurations(parent)
    return {**parents, spec.identity: own}


def _parents(configuration: Mapping[str, Any]) -> list[str]:
    """The identities that stand in a configuration for the runs that it names."""
    model, dataset = configuration.get("model", {}), configuration.get("dataset", {})
    one = model.get("from_run")
    several = [one] if one is not None else list(model.get("from_runs") or ())
    others = model.get("reference_run"), dataset.get("select_run")
    return several + [identity for identity in others if identity is not None]


def _whole(identity: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in which the parent's stands instead of the parent's identity."""
    found = known.get(identity)
    if found is None:
        return {"identity": identity}
    parents = [_whole(parent, known) for parent in _parents(found)]
    if not parents:
        return dict(found)
    without = {
        group: {key: value for key, value in found[group].items() if key not in keys}
        for group, keys in {"model": ("from_run", "from_runs", "reference_run"), "dataset": ("select_run",)}.items()
    }
    named = {"parent": parents[0]} if len(parents) == 1 else {"parents": {str(n): p for n, p in enumerate(parents)}}
    return {**found, **without, **named}
