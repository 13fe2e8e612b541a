"""`retable ... job=status`: how far every cell of a command is, from the runs' folders alone."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runners import checkpoints, record
from runners.compose import RunSpec
from runners.jobs.console import console
from runners.plan import Plan
from runners.sweep import check_all
from runners.tables.measurements import count

STYLES = {"done": "green", "running": "cyan", "failed": "bold red", "stale": "magenta", "missing": "dim"}


@dataclass(frozen=True)
class Line:
    """What is said of a cell, or of several cells of a row of which the same is to be said."""

    state: str
    words: str = ""
    seconds_left: float | None = None  # of a running one


def show(overrides: list[str]) -> None:
    """Print the state of every cell, table by table, then of parents that are not done, then a total."""
    out = console()
    found: dict[Path, Line] = {}
    tables = check_all(overrides)
    for plan, specs in tables:
        for spec in specs:
            if spec.folder not in found:
                found[spec.folder] = line_of(spec)
        _print(out, plan, specs, found)
    cells = list(found.values())
    parents = unfinished_parents([spec for _, specs in tables for spec in specs], set(found))
    if parents:
        grid = _grid("Parents, which run first")
        for spec in parents:
            line = line_of(spec)
            grid.add_row(spec.name, "", Text(line.state, STYLES[line.state]), line.words)
        out.print(grid)
    out.print(total(cells))


def total(lines: Sequence[Line]) -> str:
    """As in: 12 cells: 9 done, 1 running, 1 failed, 1 missing; about 4 min left for what is running."""
    counts = {state: sum(line.state == state for line in lines) for state in STYLES}
    text = f"{count(len(lines), 'cell')}: " + ", ".join(
        f"{number} {state}" for state, number in counts.items() if number
    )
    left = [line.seconds_left for line in lines if line.seconds_left is not None]
    return f"{text}; about {duration(max(left))} left for what is running" if left else text


def line_of(spec: RunSpec) -> Line:
    """What there is to say of one cell."""
    known = record.status(spec)
    if known.state == "running":
        words, left = _under_way(known.folder, datetime.now(UTC))
        return Line("running", "; ".join(part for part in (words, known.reason) if part), left)
    if known.state == "failed":
        last = _last_line(known.folder / "run.log")
        parts = [known.reason, last if last not in known.reason else ""]
        return Line("failed", "\n".join(part for part in parts if part))
    if known.state == "stale":
        return Line("stale", f"{known.reason}; rerun=stale runs it again")
    if known.state == "missing":
        return Line("missing", _interrupted(known.folder))
    return Line("done")


def unfinished_parents(specs: Iterable[RunSpec], cells: set[Path]) -> list[RunSpec]:
    """The parents that a cell which is not done waits for, each once, eldest first; those that are cells left out."""
    found: dict[Path, RunSpec] = {}

    def visit(spec: RunSpec) -> None:
        if record.status(spec).state == "done":
            return
        for parent in spec.needed:
            if parent.folder not in found and record.status(parent).state != "done":
                visit(parent)
                if parent.folder not in cells:
                    found[parent.folder] = parent

    for spec in specs:
        visit(spec)
    return list(found.values())


def _print(out: Console, plan: Plan, specs: Sequence[RunSpec], found: dict[Path, Line]) -> None:
    grid = _grid(f"{plan.experiment['name']}, scale {plan.scale}")
    rows: dict[str, dict[tuple[str, str], list[int]]] = {}
    for cell, spec in zip(plan.cells, specs, strict=True):
        line = found[spec.folder]
        rows.setdefault(cell.row, {}).setdefault((line.state, line.words), []).append(cell.seed)
    for row, said in rows.items():
        label = row
        for (state, words), seeds in sorted(said.items(), key=lambda item: list(STYLES).index(item[0][0])):
            text = Text(state if len(seeds) == 1 else f"{len(seeds)} {state}", STYLES[state])
            grid.add_row(label, ranges(seeds), text, words)
            label = ""
    out.print(grid)
    logs = {spec.folder / "run.log": cell for cell, spec in zip(plan.cells, specs, strict=True)
            if found[spec.folder].state == "failed"}  # fmt: skip
    for path, cell in logs.items():  # a path stays in one piece, so that it can be copied
        out.print(f"log of {cell.row} seed {cell.seed}: {path}", soft_wrap=True)


def _grid(title: str) -> Table:
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("", overflow="fold")
    grid.add_column("seed", overflow="fold", max_width=24)
    grid.add_column("state", no_wrap=True)
    grid.add_column("", overflow="fold")
    return grid


def ranges(seeds: Iterable[int]) -> str:
    """Seeds in short: 1-3, 7."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts)


def duration(seconds: float) -> str:
    """A time in the unit that suits it: 40 s, 4 min, 2.5 h."""
    if seconds < 90:
        return f"{max(math.ceil(seconds), 1)} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _under_way(folder: Path, now: datetime) -> tuple[str, float | None]:
    """Phase and progress of a run under way, and its seconds left; nothing of a file that is not (wholly) there."""
    try:
        told: dict[str, Any] = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        phase, done, all_ = str(told["phase"]), int(told["done"]), int(told["total"])
        ago = (now - datetime.fromisoformat(str(told["updated"]))).total_seconds()
        left = None if told.get("seconds_left") is None else max(float(told["seconds_left"]) - ago, 0.0)
    except (OSError, ValueError, KeyError, TypeError):
        return "", None
    words = f"{phase} {done} of {all_}"
    if left is not None:
        words += f", about {duration(left)} left"
    if ago > 300:
        words += f" (told {duration(ago)} ago)"
    return words, left


def _interrupted(folder: Path) -> str:
    """From where a run that was begun goes on; nothing of one that was not."""
    if not (folder / "environment.json").is_file():
        return ""
    if (folder / "method.json").is_file():
        return "interrupted; resumes with the evaluation"
    sealed = checkpoints.sealed(folder / "checkpoints")
    if not sealed:
        return "interrupted; starts anew"
    return f"interrupted; resumes after step {int(sealed[-1].name.removeprefix('step-'))}"


def _last_line(path: Path) -> str:
    """The last line of a log, by its end alone: logs can be long."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 4096, 0))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1] if lines else ""
