"""`retable job=diff runs=[A,B]`: two runs side by side, what they are made of and what they measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from runners.differences import Change, changes
from runners.errors import UserError
from runners.jobs.console import console
from runners.jobs.words import listed
from runners.plan import numbers
from runners.record import read_result


def show(overrides: list[str]) -> None:
    """Print what differs between two runs, done or not.

    Raises:
        UserError: not exactly two folders, or one that holds no run.
    """
    folders = [Path(name).expanduser() for name in listed(overrides, "runs")]
    if len(folders) != 2:
        raise UserError(f"runs={[str(folder) for folder in folders]}: job=diff compares exactly two folders of runs")
    for folder in folders:
        check_folder(folder)
    out = console()
    for letter, folder in zip("AB", folders, strict=True):
        out.print(f"{letter}  {folder}", soft_wrap=True)
    (config_a, config_b), (made_a, made_b) = map(_configuration, folders), map(_environment, folders)
    _print(out, "Configuration", changes(config_a, config_b))
    _print(out, "Source", _source(made_a, made_b))
    for title, part in (("Packages", _packages), ("Hardware", _hardware), ("Git", _git)):
        _print(out, title, changes(part(made_a), part(made_b)))
    _print_metrics(out, *(read_result(folder) for folder in folders))


def check_folder(folder: Path) -> None:
    """Raise a UserError unless the folder is a run's."""
    if not (folder / "config.yaml").is_file():
        what = "holds no run (no config.yaml)" if folder.is_dir() else "no such folder"
        raise UserError(f"runs={folder}: {what}")


def _configuration(folder: Path) -> dict[str, Any]:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    experiment = config.get("experiment")
    # Of the experiment only which one it is: what decides of its definition stands in the other groups.
    return {**config, "experiment": experiment["name"] if experiment else None}


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    assert isinstance(found, dict)
    return found


def _source(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Change]:
    """The fingerprint, and the modules whose own has changed where both runs tell."""
    found = changes({"fingerprint": one.get("source")}, {"fingerprint": other.get("source")})
    if found and one.get("sources") and other.get("sources"):
        found += [
            Change(change.key, change.old[:8], change.new[:8])
            for change in changes({"": one["sources"]}, {"": other["sources"]})
        ]
    return [Change(change.key.removeprefix("."), change.old, change.new) for change in found]


def _packages(made: Mapping[str, Any]) -> dict[str, Any]:
    return {"python": made.get("python"), **(made.get("packages") or {})}


def _hardware(made: Mapping[str, Any]) -> dict[str, Any]:
    return {**(made.get("hardware") or {}), **{key: made.get(key) for key in ("device", "processes", "threads")}}


def _git(made: Mapping[str, Any]) -> dict[str, Any]:
    return dict(made.get("git") or {})


def _print(out: Console, title: str, found: Sequence[Change]) -> None:
    if not found:
        out.print(f"[bold]{title}[/bold]  the same")
        return
    grid = _grid(title)
    for column in ("A", "B"):
        grid.add_column(column, overflow="fold")
    for change in found:
        grid.add_row(change.key, change.old, change.new)
    out.print(grid)


def _print_metrics(out: Console, one: dict[str, Any] | None, other: dict[str, Any] | None) -> None:
    missing = [letter for letter, result in zip("AB", (one, other), strict=True) if result is None]
    if one is None or other is None:
        out.print(f"[bold]Metrics[/bold]  {' and '.join(missing)}: no result yet")
        return
    before, after = _flat(one), _flat(other)
    grid = _grid("Metrics")
    for column in ("A", "B", "B - A", "relative"):
        grid.add_column(column, justify="right", no_wrap=True)
    for key in dict.fromkeys([*before, *after]):
        a, b = before.get(key), after.get(key)
        difference = relative = ""
        if a is not None and b is not None:
            difference = f"{b - a:+.4g}"
            relative = f"{(b - a) / abs(a):+.1%}" if a else ""
        grid.add_row(key, *("" if value is None else f"{value:.4g}" for value in (a, b)), difference, relative)
    out.print(grid)


def _flat(result: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{task}/{name}" if task else name: float(value)
        for task, values in numbers(result).items()
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    } | {"seconds": float(result["seconds"])}


def _grid(title: str) -> Table:
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("", overflow="fold")
    return grid
