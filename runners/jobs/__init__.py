"""What `job=` chooses: one module for each, imported when it is asked for."""

import importlib
from pathlib import Path
from typing import Any

from runners import processes, record
from runners.compose import Composed, RunSpec, run_spec
from runners.errors import UserError
from runners.sweep import result_to_keep

# Each module has `show(overrides)`.
JOBS = {
    "table": "table",
    "list": "listing",
    "status": "status",
    "plan": "outlook",
    "diff": "difference",
    "export": "export",
    "clean": "clean",
}


def start(job: str, overrides: list[str], composed: Composed | None = None, *, in_sweep: bool = False) -> None:
    """Do one job for the overrides of a command; inside a sweep its table shows the results.

    Args:
        job: run, or one of `JOBS`.
        overrides: the command's, as they were typed; a run's with those of its row.
        composed: what Hydra has made of the overrides of a run.
        in_sweep: whether it is a cell of a sweep.

    Raises:
        UserError: whatever is wrong with what was asked for.
    """
    if job == "run":
        spec = run_spec(overrides, composed=composed)
        # Several ranks decide together, in `run`; one alone need not import torch for a run that is done.
        result = None if processes.given() else result_to_keep(spec)
        if result is None:
            from runners.run import run

            result = run(spec)
        if not in_sweep and processes.is_first():
            _print_result(spec, result, record.status(spec).folder)
    elif job in JOBS:
        importlib.import_module(f"runners.jobs.{JOBS[job]}").show(overrides)
    else:
        raise UserError(f"job={job}: must be one of run, {', '.join(JOBS)}")


def _print_result(spec: RunSpec, result: dict[str, Any], folder: Path) -> None:
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
        shown_value = "not a finite number" if value is None else f"{value:,.4g}"
        console.print(f"  {name}: {shown_value}", highlight=False)
    print(f"Result: {folder / 'result.json'}")
