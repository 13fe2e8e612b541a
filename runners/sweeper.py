"""`retable -m`: check every cell, skip what is done, run the rest through Hydra's launcher, print the table."""

import hashlib
import logging
import math
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from runners import preemption, processes
from runners.errors import FailedCells, UserError, nearest
from runners.expand import expand, value_of

if TYPE_CHECKING:
    from runners.compose import RunSpec
    from runners.sweep import Checked

log = logging.getLogger(__name__)

_known: list[str] = []  # see `register`


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

        arguments = arguments[len(_known) :]
        job = value_of(arguments, "job", "run")
        if job != "run":
            return jobs.start(str(job), arguments)
        checked = sweep.check_all(arguments)
        if processes.given():
            processes.join(sweep.outputs_of(checked) / "sweep")
        with preemption.listening():
            todo = processes.first_decides(lambda: sweep.left_to_run(checked))
            failed = self._run(todo, checked)
        try:
            if processes.is_first():
                for plan, specs in checked:
                    table.build(plan, specs)
        finally:  # whatever becomes of the table, the failed cells are named
            if failed:
                count = sum("(log: " in line for line in failed)
                raise FailedCells("\n".join([f"{count} of {len(todo)} cells failed:", *failed]))

    def _run(self, todo: list["RunSpec"], checked: "Checked") -> list[str]:
        """Launch the cells; a line for each that failed, told at once and returned."""
        if not todo:
            return []
        log.info("%d of %d cells to run", len(todo), sum(len(plan.cells) for plan, _ in checked))
        fail_fast = bool(todo[0].config["fail_fast"])
        # By name: Hydra loads its plugins anew, so the class that one imports need not be the one it made.
        if type(self.launcher).__name__ != "BasicLauncher":
            if fail_fast:
                raise UserError("fail_fast=true: this launcher starts all cells at once; only Hydra's own can stop")
            returns = self.launcher.launch([spec.overrides for spec in todo], initial_job_idx=0)
            return [line for spec, returned in zip(todo, returns, strict=True) if (line := _failure(spec, returned))]
        failed: list[str] = []
        for number, spec in enumerate(todo):
            if preemption.requested():
                raise preemption.stop(f"after {number} of {len(todo)} cells")
            (returned,) = self.launcher.launch([spec.overrides], initial_job_idx=number)
            line = _failure(spec, returned)
            del returned  # its exception holds the frames, and they the model
            if line:
                failed.append(line)
                left = len(todo) - number - 1
                if left and (fail_fast or processes.given()):  # other ranks may still wait in the failed cell
                    why = "fail_fast=true" if fail_fast else "several ranks; type the command again"
                    failed.append(f"  {left} cells were not started ({why})")
                if fail_fast or processes.given():
                    break
                if number + 1 < len(todo):
                    log.error("failed:%s", line)
        return failed


class OptunaSweeper(Sweeper):
    """Hydra's Optuna sweeper over our runs: it optimises a number of their results, and continues its study."""

    def __init__(self, metric: str, **settings: Any) -> None:
        try:
            from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
        except ImportError as error:
            raise UserError(f"hydra/sweeper=optuna: {error}; pip install 'retable[optuna]'") from error
        self.metric = metric
        self.sweeper: Any = OptunaSweeperImpl(**settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher that `hydra/launcher` chooses. Hydra calls this before `sweep`."""
        configure_log(config.hydra.job_logging, config.hydra.verbose)
        self.sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config.copy())
        self.sweeper.launcher = self.measuring = _Measuring(self.sweeper.launcher, self.metric)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials that the study lacks. Hydra calls this once per command."""
        from runners import jobs, lock, processes

        job = value_of(arguments, "job", "run")
        if job != "run":
            return jobs.start(str(job), arguments)
        if processes.given():
            raise UserError("hydra/sweeper=optuna: is started once; its runs start their own workers (processes=N)")
        sweeper = self.sweeper
        if sweeper.study_name is None:
            # A study of other runs, or of another number, is another study: their values do not compare.
            told = hashlib.sha256("\n".join([self.metric, *sorted(arguments)]).encode()).hexdigest()
            method = sweeper.config.hydra.runtime.choices.method
            sweeper.study_name = f"{method.replace('/', '_')}-{told[:8]}"
        folder = Path(sweeper.config.outputs) / "studies"
        (folder / sweeper.study_name).mkdir(parents=True, exist_ok=True)
        sweeper.config.hydra.sweep.dir = str(folder / sweeper.study_name)  # where it writes what it has found
        busy = value_of(arguments, "busy", "wait")
        with lock.held(folder / sweeper.study_name, patience=math.inf if busy == "wait" else 0), preemption.listening():
            self._continue(arguments)

    def _continue(self, arguments: list[str]) -> None:
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sweeper = self.sweeper
        study = optuna.create_study(
            study_name=sweeper.study_name,
            storage=sweeper.storage,
            directions=sweeper._get_directions(),
            load_if_exists=True,
        )
        for trial in study.get_trials(states=(TrialState.RUNNING,)):  # interrupted: their runs are continued
            study.tell(trial.number, state=TrialState.FAIL)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.enqueue_trial(trial.params)
        ended = len(study.get_trials(states=(TrialState.COMPLETE,)))
        missing = max(sweeper.n_trials - ended, 0)
        log.info("study %s: %d of %d trials to run", study.study_name, missing, sweeper.n_trials)
        if missing:
            sweeper.n_trials = missing
            try:
                sweeper.sweep(arguments)
            except (ValueError, RuntimeError):  # it misses a best trial; or a grid's last trial has failed
                if not self.measuring.failed:
                    raise
        if study.get_trials(states=(TrialState.COMPLETE,)):
            best = study.best_trial
            values = (f"{key}={value}" for key, value in best.params.items())
            print(f"Best {self.metric}: {best.value:.6g} with", *values)
        if failed := self.measuring.failed:
            raise FailedCells("\n".join([f"{len(failed)} trials failed:", *failed]))


class _Measuring:
    """A launcher whose jobs return what their runs have measured."""

    def __init__(self, launcher: Launcher, metric: str) -> None:
        self.launcher, self.metric = launcher, metric
        self.failed: list[str] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from runners import record
        from runners.compose import run_spec

        specs = [run_spec(expand(list(overrides))) for overrides in job_overrides]
        if preemption.requested():
            raise preemption.stop("between two trials")
        returns = self.launcher.launch([spec.overrides for spec in specs], initial_job_idx=initial_job_idx)
        for spec, returned in zip(specs, returns, strict=True):
            line = _failure(spec, returned)
            result = record.read_result(spec.folder)
            if line is None and result is not None:
                returned.return_value = _measured(result, self.metric)
            else:
                self.failed.append(line or f"  {spec.name}: has no result")
        return returns


def _measured(result: dict[str, Any], name: str) -> float:
    """The number that `name` (TASK/METRIC, or one of the method's own) means in a result."""
    known = dict(result["method_metrics"])
    for task, values in result["metrics"].items():
        known |= {f"{task}/{key}": value for key, value in values.items() if "_stderr" not in key}
    # lm-eval names a metric with its filter: acc,none. Where there is one, it need not be typed.
    found = [key for key in known if key == name] or [key for key in known if key.partition(",")[0] == name]
    numbers = [key for key in found if isinstance(known[key], int | float)]
    if len(numbers) != 1:
        raise UserError(f"hydra.sweeper.metric={name}: must be one of {', '.join(known)}{nearest(name, known)}")
    return float(known[numbers[0]])


def _failure(spec: "RunSpec", returned: JobReturn) -> str | None:
    """One line on a cell that failed; None when it ended well."""
    problem = _problem(returned)
    return f"  {spec.name}: {problem} (log: {spec.folder / 'run.log'})" if problem else None


def _problem(returned: JobReturn) -> str | None:
    """One line on why a cell failed; None when it ended well."""
    if returned.status == JobStatus.COMPLETED:
        return None
    error = returned._return_value
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def register(known: list[str]) -> None:
    """Make the sweeper known to Hydra, which accepts plugins from the namespace `hydra_plugins` only.

    `known`: words that stand before the user's own for Hydra alone, and are no part of the sweep.

    Our top level is fixed, so the namespace gets a module made here instead of a folder on disk.
    """
    from runners.launchers.ray import RayLauncher
    from runners.launchers.slurm import SlurmLauncher

    global _known
    _known = known
    plugins = Plugins.instance()
    module = types.ModuleType("hydra_plugins.retable")
    ours = (RowsSweeper, OptunaSweeper, SlurmLauncher, RayLauncher)
    for plugin in ours:
        plugin.__module__ = module.__name__
        vars(module)[plugin.__name__] = plugin
    namespace = sys.modules.setdefault("hydra_plugins", types.ModuleType("hydra_plugins"))
    vars(namespace)["retable"] = sys.modules[module.__name__] = module
    for plugin in ours:
        plugins.register(plugin)
    # Ours of these names stand alone; Hydra would hold the plugins' own against them as schemas, and warn of it.
    for group, name in (("launcher", "ray"), ("sweeper", "optuna")):
        ConfigStore.instance().repo["hydra"].get(group, {}).pop(f"{name}.yaml", None)
