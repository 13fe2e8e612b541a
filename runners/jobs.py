"""What `job=` chooses: run, table, list."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from runners import record
from runners.compose import Composed, RunSpec, run_spec
from runners.errors import UserError
from runners.experiment import Experiment
from runners.measurements import CellRun
from runners.plan import Plan, main_columns, numbers, plans
from runners.table import Table, build_table

log = logging.getLogger(__name__)

Checked = list[tuple[Plan, list[RunSpec]]]


def start(job: str, overrides: list[str], composed: Composed | None = None, *, in_sweep: bool = False) -> None:
    """Do one job for the overrides of a command; inside a sweep its table shows the results.

    Args:
        job: run, table or list.
        overrides: the command's, as they were typed; a run's with those of its row.
        composed: what Hydra has made of the overrides of a run.
        in_sweep: whether it is a cell of a sweep.

    Raises:
        UserError: whatever is wrong with what was asked for.
    """
    if job == "list":
        from runners.listing import show

        show(overrides)
    elif job == "table":
        for plan, specs in check_all(overrides):
            if table(plan, specs) is None:
                raise UserError(f"job=table: no run of {plan.experiment['name']} is done and measured")
    elif job == "run":
        spec = run_spec(overrides, composed=composed)
        result = record.read_result(spec.folder)
        if result is None or _runs(spec):
            from runners.run import run

            result = run(spec)
        if not in_sweep:
            _print_result(spec, result)
    else:
        raise UserError(f"job={job}: must be one of run, table, list")


def check_all(arguments: list[str]) -> Checked:
    """Compose and check every cell of a command before the first one starts.

    Raises:
        UserError: naming every cell that cannot run (each problem once), or what does not fit together in the
            definition of an experiment's table.
    """
    checked: Checked = []
    problems: dict[str, int] = {}
    for plan in plans(arguments):
        specs = []
        for cell in plan.cells:
            try:
                specs.append(run_spec(cell.overrides))
            except UserError as error:
                problems[str(error)] = problems.get(str(error), 0) + 1
        checked.append((plan, specs))
        try:
            if plan.experiment["columns"]:
                Experiment.from_config(plan.experiment)
        except ValueError as error:
            problems[f"experiment={plan.experiment['name']}: {error}"] = 1
    if problems:
        lines = [f"{text}{f' ({count} cells)' if count > 1 else ''}" for text, count in problems.items()]
        raise UserError("; ".join(lines))
    return checked


def left_to_run(checked: Checked) -> list[RunSpec]:
    """The cells to run, each once; a line for every one that is skipped."""
    distinct = {spec.folder: spec for _, specs in checked for spec in specs}
    return [spec for spec in distinct.values() if _runs(spec)]


def _runs(spec: RunSpec) -> bool:
    """Whether a run is due; when it is not, a line says why."""
    known = record.status(spec)
    again = spec.config["rerun"]
    if known.state == "stale" and again == "missing":
        log.warning("skipped: %s is stale (%s); rerun=stale runs it again", spec.name, known.reason)
        return False
    if known.state == "done" and again != "all":
        log.info("skipped: %s is done (%s)", spec.name, spec.folder / "result.json")
        return False
    return True


def table(plan: Plan, specs: list[RunSpec]) -> Table | None:
    """Build a plan's table from what has run, print it, write its files, mirror it.

    None, and nothing is written, for a sweep of which no run has been measured: it has no columns yet.
    """
    from runners import render

    runs, results = [], []
    for cell, spec in zip(plan.cells, specs, strict=True):
        known = record.status(spec)
        measured = numbers(known.result) if known.result else None
        runs.append(CellRun(cell.row, cell.seed, known.state, measured, str(spec.folder), known.reason))
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
    folder = Path(specs[0].config["outputs"]) / experiment["name"] / f"table-{plan.scale}"
    if plan.variant:
        folder = folder.with_name(f"{folder.name}-{plan.variant}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = render.write_files(built, folder)
    page = next((path for path in paths if path.suffix == ".html"), folder)
    print(f"Table written to {folder} (open {page})")
    _mirror(built, specs[0], folder)
    return built


def _mirror(built: Table, spec: RunSpec, folder: Path) -> None:
    from runners.formats import as_rows
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
    record.write_atomically(seen, digest)


def _print_result(spec: RunSpec, result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    shown = RichTable("task", "metric", "value", "± stderr", "items", title=spec.name, title_justify="left")
    for task, values in result["metrics"].items():
        for name, value in values.items():
            if "_stderr" in name or not isinstance(value, int | float):
                continue
            metric, _, kept = name.partition(",")
            error = values.get(f"{metric}_stderr,{kept}")
            count = (result["samples"].get(task) or {}).get("effective", "")
            shown.add_row(task, name, f"{value:.4f}", f"{error:.4f}" if isinstance(error, float) else "", str(count))
    console = Console()
    if shown.row_count:
        console.print(shown)
    for name, value in result["method_metrics"].items():
        console.print(f"  {name}: {value:,.4g}", highlight=False)
    print(f"Result: {spec.folder / 'result.json'}")
