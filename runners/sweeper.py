"""`retable -m`: check every cell, skip what is done, run the rest through Hydra's launcher, print the table."""

import logging
import sys
import types
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from runners.errors import FailedCells, UserError
from runners.expand import value_of

log = logging.getLogger(__name__)


class RowsSweeper(Sweeper):
    """Launches the cells of a table where Hydra's own sweeper launches a cross product."""

    launcher: Launcher

    def __init__(self, **_settings: Any) -> None:
        """`_settings` are those of Hydra's own sweeper, which mean nothing here."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher that `hydra/launcher` chooses. Hydra calls this before `sweep`."""
        configure_log(config.hydra.job_logging, config.hydra.verbose)  # cells that are skipped get their line too
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run what `arguments` mean. Hydra calls this once per command."""
        from runners import jobs, sweep
        from runners.jobs import table

        job = value_of(arguments, "job", "run")
        if job != "run":
            return jobs.start(str(job), arguments)
        checked = sweep.check_all(arguments)
        todo = sweep.left_to_run(checked)
        failed: list[str] = []
        if todo:
            log.info("%d of %d cells to run", len(todo), sum(len(plan.cells) for plan, _ in checked))
            returns = self.launcher.launch([spec.overrides for spec in todo], initial_job_idx=0)
            failed = [
                f"  {spec.name}: {problem} (log: {spec.folder / 'run.log'})"
                for spec, problem in zip(todo, map(_problem, returns), strict=True)
                if problem
            ]
        try:
            for plan, specs in checked:
                table.build(plan, specs)
        finally:  # whatever becomes of the table, the failed cells are named
            if failed:
                raise FailedCells("\n".join([f"{len(failed)} of {len(todo)} cells failed:", *failed]))


def _problem(returned: JobReturn) -> str | None:
    """One line on why a cell failed; None when it ended well."""
    if returned.status == JobStatus.COMPLETED:
        return None
    error = returned._return_value
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def register() -> None:
    """Make the sweeper known to Hydra, which accepts plugins from the namespace `hydra_plugins` only.

    Our top level is fixed, so the namespace gets a module made here instead of a folder on disk.
    """
    plugins = Plugins.instance()
    module = types.ModuleType("hydra_plugins.retable")
    RowsSweeper.__module__ = module.__name__
    vars(module)["RowsSweeper"] = RowsSweeper
    namespace = sys.modules.setdefault("hydra_plugins", types.ModuleType("hydra_plugins"))
    vars(namespace)["retable"] = sys.modules[module.__name__] = module
    plugins.register(RowsSweeper)
