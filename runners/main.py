"""The one entry point: `retable ...`.

Imports nothing but Hydra (and the standard library) at the top, so that `--help`, `--cfg job` and tab
completion cost little more than an empty Hydra app; everything else is imported when a job starts.
"""

import os
import sys
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from runners.errors import UserError
from runners.expand import check_choices, expand, first_row, plugin_overrides, value_of
from runners.preemption import EXIT_RESUMABLE, Preempted


def main() -> None:
    """Run the command line. Exit code 0 only when everything asked for ended well.

    A user's mistake is one line on stderr, naming key, value and rule; a defect keeps its traceback. Told to stop, it
    leaves a checkpoint and ends with `EXIT_RESUMABLE`.
    """
    # Threads that wait by spinning make training many times slower when anything else wants their core. The
    # OpenMP runtime reads this once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Hydra would shorten every exception to a message of several lines; we print one, or the traceback.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        sys.argv[1:] = _arguments(sys.argv[1:])
        _run_hydra()
    except UserError as error:
        _stop(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        from runners.compose import explain

        _stop(explain(error, sys.argv[1:]))
    except OSError as error:
        if error.filename is None:
            raise
        _stop(f"{error.filename}: {error.strerror}")  # a full disk, a folder that cannot be written
    except Preempted as stopped:
        _stop(str(stopped), code=EXIT_RESUMABLE)
    except KeyboardInterrupt:
        _stop("interrupted; the same command continues what is missing", code=130)
    finally:
        if "RANK" in os.environ and "runners.processes" in sys.modules:
            # Started by torchrun: threads of a group that is still open may abort a process that ends.
            sys.modules["runners.processes"].leave()


def _arguments(argv: list[str]) -> list[str]:
    """argv with the overrides of the named experiment's row put before the user's own, which win."""
    if any(word.startswith(("-sc", "--shell")) for word in argv):
        from runners.completion import install

        install()
        return argv
    if "--help" in argv or "-h" in argv:
        _list_groups_at_once()
    flags = [word for word in argv if word.startswith("-") or "=" not in word]
    overrides = [word for word in argv if word not in flags]
    overrides = plugin_overrides(overrides)
    if "-m" in argv or "--multirun" in argv:
        from runners.sweeper import register

        known = first_row(overrides)
        register(known)
        overrides = [*known, *overrides]
    else:
        if value_of(overrides, "job") not in ("table", "status"):  # these have all rows
            overrides = expand(overrides)
        check_choices(overrides)
    return flags + overrides


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _run_hydra(config: DictConfig) -> None:
    """One job inside Hydra: a single run, a cell of a sweep, a table or a listing."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from runners.jobs import start

    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    choices = {str(group): str(choice) for group, choice in hydra_config.runtime.choices.items()}
    try:
        start(config.job, list(hydra_config.overrides.task), (config, choices), in_sweep=in_sweep)
    except UserError as error:
        if in_sweep:
            raise  # the sweep goes on with its other cells
        _stop(str(error))


def _list_groups_at_once() -> None:
    """For `--help`, Hydra asks for the options of a hundred groups, and copies all it has read before each answer.

    That is half of the command's time. The repository itself gives the same answers.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.object_type import ObjectType

    def get_group_options(
        self: ConfigLoaderImpl, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG, **_: object
    ) -> list[str]:
        return self.repository.get_group_options(group_name, results_filter)

    ConfigLoaderImpl.get_group_options = get_group_options  # type: ignore[method-assign, assignment]


def _stop(message: str, code: int = 1) -> None:
    sys.stdout.flush()
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
