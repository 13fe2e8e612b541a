"""Every result as a row of a pandas DataFrame, for notebooks."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from runners.differences import dotted
from runners.errors import UserError
from runners.plan import numbers
from runners.record import read_result

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "experiment",
    "row",
    "scale",
    "seed",
    "method",
    "identity",
    "source",
    "name",
    "folder",
    "finished",
    "seconds",
)
"""The columns that every frame has; behind them come `task/metric` and `config.<dotted.key>`."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(
    outputs: str | Path | Sequence[str | Path] = "outputs", experiment: str | None = None, scale: str | None = None
) -> "pandas.DataFrame":
    """One row for each run that has a result, stale ones included (compare `source`); former results are left out.

    Args:
        outputs: the folder in which runs are kept, or several.
        experiment: only its runs; `runs` for those of no experiment.
        scale: only runs of that scale.

    Raises:
        UserError: a folder that is not there, a result that cannot be read.

    Example:
        >>> from runners import results
        >>> runs = results.load("outputs", experiment="flow/language", scale="mini")
        >>> runs.groupby("row")["mini_world_general/acc,none"].agg(["mean", "std", "count"])
        >>> runs.pivot_table("train/loss", index="config.optimizer.lr", columns="row")
    """
    import pandas

    roots = [outputs] if isinstance(outputs, str | Path) else list(outputs)
    rows = []
    for root in roots:
        if not Path(root).expanduser().is_dir():
            raise UserError(f"outputs={root}: no such folder")
        for folder in run_folders(Path(root).expanduser()):
            result = read_result(folder)
            assert result is not None
            if experiment in (None, result["experiment"]) and scale in (None, result["scale"]):
                rows.append(_row(folder, result))
    frame = pandas.DataFrame(rows, columns=None if rows else list(COLUMNS))
    frame["finished"] = pandas.to_datetime(frame["finished"], utc=True)
    # The fixed columns first, the configuration last, whatever the first run happened to measure.
    measured = [name for name in frame.columns if name not in COLUMNS and not name.startswith("config.")]
    configured = [name for name in frame.columns if name.startswith("config.")]
    return frame[[*COLUMNS, *measured, *configured]]


def run_folders(root: Path) -> Iterator[Path]:
    """The folders below `root` that hold a result, by name; not those that were put aside (`.before-`)."""
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if ".before-" not in name)
        if "result.json" in files:
            folders.clear()
            yield Path(place)


def _row(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    row = {name: result.get(name) for name in COLUMNS if name != "folder"} | {"folder": str(folder)}
    for task, values in numbers(result).items():
        row |= {f"{task}/{name}" if task else name: value for name, value in values.items()}
    path = folder / "config.yaml"
    if path.is_file():
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        # The experiment's whole definition, rows and claims, is no setting of the run.
        row |= {f"config.{key}": value for key, value in dotted({**config, "experiment": None}).items()}
        del row["config.experiment"]
    return row
