"""`hydra/launcher=slurm` and `hydra/launcher=ray`: a cell runs as a job of submitit's or a task of Ray's.

Hydra's own plugins give up all cells at the first that is lost (cancelled, out of memory, its node gone), ask every
cell for the same resources, and without Slurm's accounting wait forever for a cancelled job. Here each cell ends for
itself, asks for what its row says, and a command that is typed again waits for the jobs it has in the queue.
"""

from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from runners.errors import UserError


class Elsewhere(Launcher):
    """Runs cells in other processes."""

    plugin: Any  # Hydra's own launcher, which knows how a cell is run there
    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what a job needs. Hydra calls this before `launch`."""
        self.config = config
        self.plugin.setup(hydra_context=hydra_context, task_function=task_function, config=config)


def lost(text: str) -> JobReturn:
    """What stands for a cell that returned nothing."""
    returned = JobReturn(status=JobStatus.FAILED)
    returned.return_value = UserError(text)
    return returned


def plain(value: Any) -> Any:
    """A node of the configuration as plain containers."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
