"""The cells of a command, composed and checked; which of them are left to run."""

import logging

from runners import lock, record
from runners.compose import RunSpec, run_spec
from runners.errors import UserError
from runners.plan import Plan, plans
from runners.tables.experiment import Experiment

log = logging.getLogger(__name__)

Checked = list[tuple[Plan, list[RunSpec]]]


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
    due = [spec for spec in distinct.values() if is_due(spec)]
    # Those that another process is at work on come last: meanwhile the others get done.
    return sorted(due, key=lambda spec: lock.holder(spec.folder) is not None)


def is_due(spec: RunSpec) -> bool:
    """Whether a run is due; when it is not, a line says why."""
    known = record.status(spec)
    again = spec.config["rerun"]
    if known.state == "stale" and again == "missing":
        log.warning("skipped: %s is stale (%s); rerun=stale runs it again", spec.name, known.reason)
        return False
    if known.state == "done" and again != "all":
        log.info("skipped: %s is done (%s)", spec.name, known.folder / "result.json")
        return False
    return True
