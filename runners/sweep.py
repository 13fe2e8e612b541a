"""The cells of a command, composed and checked; which of them are left to run."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runners import ledger, lock, record
from runners.compose import Parents, RunSpec, run_spec
from runners.errors import UserError
from runners.plan import Cell, Plan, plans
from runners.progress import progress
from runners.tables.experiment import Experiment
from runners.tables.measurements import count, seed_list

log = logging.getLogger(__name__)

_FEW = 5  # cells that are skipped with a line each
_LATER = {"failed": 1, "running": 2}  # states of runs whose turn comes after the others

Checked = list[tuple[Plan, list[RunSpec]]]


def check_all(arguments: list[str]) -> Checked:
    """Compose and check every cell of a command before the first one starts.

    Raises:
        UserError: naming every cell that cannot run (each problem once), or what does not fit together in the
            definition of an experiment's table.
    """
    checked: Checked = []
    problems: dict[str, int] = {}
    parents: Parents = {}
    for plan in plans(arguments):
        specs = []
        with progress("checking", len(plan.cells)) as advance:
            for cell in plan.cells:
                try:
                    specs.append(run_spec(cell.overrides, parents=parents))
                except UserError as error:
                    problems[str(error)] = problems.get(str(error), 0) + 1
                advance()
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


def outputs_of(checked: Checked) -> Path:
    """The folder below which the runs of a command are kept."""
    return Path(checked[0][1][0].config["outputs"]).expanduser()


def left_to_run(checked: Checked) -> list[RunSpec]:
    """The cells to run, each once, entered in the ledgers of their tables; what is skipped is told.

    Raises:
        UserError: cells have run with a configuration that has changed since (`changed=accept` goes on).
    """
    starts = {needed.folder for _, specs in checked for spec in specs for needed in spec.needed}
    for _, specs in checked:
        for spec in specs:
            if spec.folder in starts and spec.config["keep"] == "none":
                raise UserError(
                    f"keep=none: other cells start from {spec.name}; take keep=last, then job=clean keep=none"
                )
    for plan, specs in checked:
        ledger.check(plan, specs)
    for plan, specs in checked:
        ledger.enter(plan, specs)
    distinct: dict[Path, tuple[Cell, RunSpec]] = {}
    for plan, specs in checked:
        for cell, spec in zip(plan.cells, specs, strict=True):
            distinct.setdefault(spec.folder, (cell, spec))
    known = [(cell, spec, record.status(spec)) for cell, spec in distinct.values()]
    skipped = [(cell, spec, state) for cell, spec, state in known if is_skipped(spec, state)]
    _tell_skipped(skipped, len(known))
    due = [(spec, state) for _, spec, state in known if not is_skipped(spec, state)]
    former = [spec for spec, state in due if state.state == "done" and state.folder == spec.folder]
    for spec in former:  # before the first starts: else a sweep interrupted in the middle would redo what it has done
        with contextlib.suppress(lock.BusyError), lock.held(spec.folder, patience=0):
            record.set_aside(spec.folder)
    if former:
        log.warning("rerun=all: %s put aside; if this is interrupted, go on without it", count(len(former), "result"))
    # Those that failed or that another process is at work on come last: meanwhile the others get done.
    return [spec for spec, _ in sorted(due, key=lambda item: _LATER.get(item[1].state, 0))]


def result_to_keep(spec: RunSpec) -> dict[str, Any] | None:
    """The result of a run that is not due, with a line that says why; None when it is due."""
    known = record.status(spec)
    if not is_skipped(spec, known):
        return None
    if known.state == "stale":
        log.warning("skipped: %s is stale (%s); rerun=stale runs it again", spec.name, known.reason)
    else:
        _tell_done(spec, known)
    return known.result


def is_skipped(spec: RunSpec, known: record.Status) -> bool:
    """Whether a run in this state is left as it is."""
    again = spec.config["rerun"]
    return (known.state == "stale" and again == "missing") or (known.state == "done" and again != "all")


def _tell_skipped(skipped: Sequence[tuple[Cell, RunSpec, record.Status]], total: int) -> None:
    """A line for each cell that is done, or one for all where they are many; one that names every stale cell."""
    done = [(spec, known) for _, spec, known in skipped if known.state == "done"]
    if len(done) > _FEW:
        log.info("skipped: %d of %d cells are done", len(done), total)
    else:
        for spec, known in done:
            _tell_done(spec, known)
    stale: dict[str, dict[str, list[int]]] = {}  # reason -> row -> seeds
    for cell, _, known in skipped:
        if known.state == "stale":
            stale.setdefault(known.reason, {}).setdefault(cell.row, []).append(cell.seed)
    for reason, rows in stale.items():
        names = "; ".join(f"{row} {seed_list(sorted(seeds))}" for row, seeds in rows.items())
        count = sum(len(seeds) for seeds in rows.values())
        log.warning(
            "skipped: %d of %d cells are stale (%s): %s; rerun=stale runs them again", count, total, reason, names
        )


def _tell_done(spec: RunSpec, known: record.Status) -> None:
    log.info("skipped: %s is done (%s)", spec.name, known.folder / "result.json")
