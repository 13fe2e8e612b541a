"""Ray: cells as tasks that share the GPUs and CPUs of a node or a cluster."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, open_dict

from runners import preemption
from runners.errors import UserError
from runners.launchers import Elsewhere, lost, plain


class RayLauncher(Elsewhere):
    """The cells share the GPUs and CPUs that Ray has; each asks for what its row says."""

    def __init__(self, ray: DictConfig) -> None:
        try:
            from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher as Plugin
        except ImportError as error:
            raise UserError(f"hydra/launcher=ray: {error}; pip install 'retable[ray]'") from error
        self.plugin = Plugin(ray)
        self.settings: Mapping[str, Any] = plain(ray)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run the cells, as many at a time as there is room for."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
        import ray

        from runners.compose import run_spec

        ray.init(**self.settings["init"])
        try:
            pending: dict[Any, int] = {}
            for number, overrides in enumerate(job_overrides):
                spec = run_spec(list(overrides))
                config = self.plugin.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
                with open_dict(config):
                    config.hydra.job.id = spec.name
                    config.hydra.job.num = initial_job_idx + number
                gpus, cpus = spec.config["gpus"], spec.config["processes"]
                asked = {"num_gpus": gpus, "num_cpus": max(cpus, gpus), **self.settings["remote"]}
                run = ray.remote(**asked)(_run_in)
                context, task, state = self.plugin.hydra_context, self.plugin.task_function, Singleton.get_state()
                pending[run.remote(os.getcwd(), context, config, task, state)] = number
            ended: dict[int, JobReturn] = {}
            while pending:
                if preemption.requested():
                    raise preemption.stop(f"after {len(ended)} of {len(job_overrides)} cells")
                done, _ = ray.wait(list(pending), timeout=1)
                for reference in done:
                    number = pending.pop(reference)
                    try:
                        ended[number] = ray.get(reference)
                    except ray.exceptions.RayError as error:  # its process died
                        ended[number] = lost(f"{type(error).__name__}: {str(error).splitlines()[0]}")
            return [ended[number] for number in sorted(ended)]
        finally:
            ray.shutdown()


def _run_in(folder: str, *arguments: Any) -> JobReturn:
    """Run a cell in the folder where the command was typed; a cluster's processes start elsewhere."""
    from hydra_plugins.hydra_ray_launcher._launcher_util import _run_job

    os.chdir(folder)
    returned: JobReturn = _run_job(*arguments)
    return returned
