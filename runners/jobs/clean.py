"""`retable ... job=clean`: delete what `keep=` says need not stay of the command's runs, once they are done."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from runners import lock, record, retention
from runners.compose import RunSpec
from runners.jobs.console import console
from runners.sweep import check_all
from runners.tables.measurements import count


def show(overrides: list[str]) -> None:
    """Clean the folder of every run that the command means, and say what was freed."""
    specs = {spec.folder: spec for _, cells in check_all(overrides) for spec in cells}
    needed = who_needs_weights(specs.values())
    out = console()
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("run", overflow="fold")
    grid.add_column("deleted", overflow="fold")
    grid.add_column("MB", justify="right")
    notes, freed, cleaned = [], 0, 0
    for spec in specs.values():
        found = clean(spec, needed.get(spec.folder, ""))
        notes += [f"{spec.name}: {reason}" for reason in found.left]
        if found.freed:
            size = sum(found.freed.values())
            grid.add_row(spec.name, ", ".join(found.freed), f"{size / 1e6:.1f}")
            freed, cleaned = freed + size, cleaned + 1
    if grid.row_count:
        out.print(grid)
    for note in notes:
        out.print(note, soft_wrap=True)
    out.print(f"{freed / 1e6:.1f} MB freed in {count(cleaned, 'run')} of {len(specs)}")


def clean(spec: RunSpec, needed_by: str = "") -> retention.Cleaned:
    """Delete what need not stay of one run. Of a run that is at work or not done nothing is touched.

    Args:
        spec: the run; its `keep` decides.
        needed_by: the run that needs its final weights, if any.
    """
    if not spec.folder.is_dir():
        return retention.Cleaned()
    try:
        with lock.held(spec.folder, patience=0):
            if record.read_result(spec.folder) is None:
                return retention.Cleaned(left=["kept, as it is not done: it goes on from what is there"])
            return retention.tidy(spec, needed_by, former_too=True)
    except lock.BusyError as error:
        return retention.Cleaned(left=[f"kept: {error}"])


def who_needs_weights(specs: Iterable[RunSpec]) -> dict[Path, str]:
    """By a run's folder, a run that starts from it: another one of the command, or one on disk that is not done.

    They may know it by the name that it has in another experiment; its end is the same.
    """
    specs = list(specs)
    needed = {parent.identity[:8]: spec.name for spec in specs for parent in spec.needed}
    if any(spec.config["keep"] == "none" for spec in specs):
        for root in {Path(spec.config["outputs"]).expanduser() for spec in specs}:
            for child, parent in _unfinished_children(root):
                needed.setdefault(parent.rpartition("-")[2], child)
    return {spec.folder: needed[spec.identity[:8]] for spec in specs if spec.identity[:8] in needed}


def _unfinished_children(root: Path) -> Iterable[tuple[str, str]]:
    """Name and parent's name of every run below `root` that was begun and is not done."""
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if ".before-" not in name]
        if "environment.json" in files:
            folders.clear()
            if "result.json" not in files:
                try:
                    noted = json.loads((Path(place) / "environment.json").read_text(encoding="utf-8"))
                except ValueError:  # it is just being written by an older version
                    continue
                for parent in noted.get("needed") or [noted.get("parent")]:
                    if parent:
                        yield Path(place).name, parent
