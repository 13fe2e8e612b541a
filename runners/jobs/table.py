"""`retable ... job=table`: the table from what has run so far, on the terminal and in files."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from runners import ledger, record
from runners.compose import RunSpec
from runners.errors import UserError
from runners.plan import Plan, main_columns, numbers
from runners.sweep import check_all
from runners.tables.measurements import CellRun
from runners.tables.table import Table, build_table

log = logging.getLogger(__name__)


def show(overrides: list[str]) -> None:
    """Build and print every table that a command means.

    Raises:
        UserError: no run of a sweep that has no columns of its own is done.
    """
    for plan, specs in check_all(overrides):
        for line in ledger.changed_lines(plan, specs):
            log.warning(line)
        if build(plan, specs) is None:
            raise UserError(f"job=table: no run of {plan.experiment['name']} is done and measured")


def build(plan: Plan, specs: list[RunSpec]) -> Table | None:
    """Build a plan's table from what has run, print it, write its files, mirror it.

    None, and nothing is written, for a sweep of which no run has been measured: it has no columns yet.
    """
    from runners.tables import render

    runs, results = [], []
    for cell, spec in zip(plan.cells, specs, strict=True):
        known = record.status(spec)
        measured = numbers(known.result) if known.result else None
        runs.append(CellRun(cell.row, cell.seed, known.state, measured, str(known.folder), known.reason))
        if known.result and known.state == "done":
            results.append(known.result)
    experiment = dict(plan.experiment)
    if not experiment["columns"]:
        columns = main_columns(results)
        if not columns:
            log.warning("no table: none of the runs is done and measured")
            return None
        experiment["columns"] = {plan.scale: columns}
    built = build_table(experiment, plan.scale, runs)
    render.render_terminal(built)
    folder = ledger.folder_of(plan, specs[0])
    folder.mkdir(parents=True, exist_ok=True)
    paths = render.write_files(built, folder)
    page = next((path for path in paths if path.suffix == ".html"), folder)
    print(f"Table written to {folder} (open {page})")
    _mirror(built, specs[0], folder)
    return built


def _mirror(built: Table, spec: RunSpec, folder: Path) -> None:
    from runners.tables.formats import as_rows
    from runners.tracker import open_tracker

    columns, rows = as_rows(built)
    # The same table is sent once, however often it is printed.
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    seen = folder / ".mirrored"
    if seen.is_file() and seen.read_text() == digest:
        return
    settings: dict[str, Any] = spec.config["tracker"]
    with open_tracker(
        settings,
        folder=folder,
        name=f"{spec.experiment}-table-{spec.scale}",
        group=spec.experiment,
        job_type="table",
        config={"experiment": spec.experiment, "scale": spec.scale},
    ) as tracker:
        tracker.table("table", columns, rows)
    if not tracker.failed:  # or the next time the table is printed it is sent
        record.write_atomically(seen, digest)
