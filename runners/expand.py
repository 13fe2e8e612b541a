"""From an experiment's name to the overrides of its rows, without composing anything.

A paper's table is a list of rows, not a cross product of choices. The experiment's YAML
(`conf/experiment/<paper>/<table>.yaml`) names the rows; a row is a list of Hydra overrides, on top of the
overrides of its scale. A preset (`debug=`, `conf/debug/<name>.yaml`) is a list of overrides too, on top of those. What
the user types comes last and wins.
"""

import importlib
import re
import sys
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from runners.errors import UserError, nearest

DEFAULT_SCALE = "mini"


def value_of(overrides: list[str], key: str, default: str | None = None) -> str | None:
    """The value the last `key=value` among `overrides` gives, or `default`."""
    for override in reversed(overrides):
        name, _, value = override.partition("=")
        if name.lstrip("+") == key:
            return None if value == "null" else value.strip("'\"")
    return default


def without(overrides: list[str], *keys: str) -> list[str]:
    """The overrides that set none of `keys`."""
    return [word for word in overrides if word.partition("=")[0].lstrip("+~") not in keys]


def config_roots(overrides: list[str]) -> list[Path]:
    """Folders that hold configuration groups: the package's own, then those of `plugins=PATH`."""
    roots = [Path(str(files("conf")))]
    return roots + [Path(path) / "conf" for path in _plugin_paths(overrides)]


def plugin_overrides(overrides: list[str]) -> list[str]:
    """Make `plugins=PATH[,PATH]` known to Hydra (PATH/conf) and to Python (PATH).

    Raises:
        UserError: a named folder does not exist.
    """
    paths = _plugin_paths(overrides)
    import_ours()
    for path in paths:
        if not path.is_dir():
            raise UserError(f"plugins={path}: must be an existing folder")
        if str(path) not in sys.path:
            sys.path.append(str(path))  # appended: the installed packages win over a plugin's folders
    search = [f"file://{path}/conf" for path in paths if (path / "conf").is_dir()]
    if not search or value_of(overrides, "hydra.searchpath"):
        return overrides
    return [f"hydra.searchpath=[{','.join(search)}]", *overrides]


def import_ours() -> None:
    """Import our packages while nobody else's folders are on the path: a plugin has a `conf` of its own.

    An editable install is found after everything on the path, even folders that are no packages.
    """
    for name in ("conf", "evals", "methods"):
        importlib.import_module(name)


def _plugin_paths(overrides: list[str]) -> list[Path]:
    value = value_of(overrides, "plugins")
    if not value:
        return []
    return [Path(word.strip()).expanduser().resolve() for word in value.strip("[]").split(",")]


def expand(overrides: list[str]) -> list[str]:
    """Put the overrides of the chosen experiment's row, then those of the preset, before the user's own.

    Without `experiment=` and `debug=` the overrides come back as they are; without `row=` the first row is taken.
    Expanding twice changes nothing.

    Raises:
        UserError: unknown experiment, row, scale or preset, with the nearest names; a row of no experiment.
    """
    name = value_of(overrides, "experiment")
    row = value_of(overrides, "row")
    if name is None:
        if row is not None:
            raise UserError(f"row={row}: only an experiment has rows; name one (experiment=...)")
        return [*preset(overrides), *overrides]
    experiment = load_experiment(name, config_roots(overrides))
    rows: dict[str, Any] = experiment["rows"]
    row = row or next(iter(rows))
    if row not in rows:
        raise UserError(f"row={row}: experiment {name} has no such row{nearest(row, rows)}; it has {', '.join(rows)}")
    scale = scale_of(overrides, experiment)
    own = rows[row]
    seeds = seeds_of(experiment, row, scale)
    return [
        f"scale={scale}",
        *experiment["scales"][scale].get("overrides", []),
        *own.get("overrides", []),
        *own.get(scale, []),
        f"seed={seeds[0]}",
        *preset(overrides),
        *without(overrides, "row"),
        f"row={row}",
    ]


def scale_of(overrides: list[str], experiment: dict[str, Any]) -> str:
    """The scale asked for, checked against those the experiment defines."""
    scale = value_of(overrides, "scale") or DEFAULT_SCALE
    if scale not in experiment["scales"]:
        known = ", ".join(experiment["scales"])
        raise UserError(f"scale={scale}: experiment {experiment['name']} defines only {known}")
    return scale


def seeds_of(experiment: dict[str, Any], row: str, scale: str) -> list[int]:
    """The seeds of a row: its own where it names them (a deterministic row), else those of the scale."""
    return list(experiment["rows"][row].get("seeds") or experiment["scales"][scale]["seeds"])


def preset(overrides: list[str]) -> list[str]:
    """The overrides of the preset that `debug=` names; none without one.

    Raises:
        UserError: unknown preset, with the nearest names; its file holds no list of overrides.
    """
    name = value_of(overrides, "debug")
    if name is None or _is_sweep(name):
        return []
    roots = config_roots(overrides)
    _check_choice("debug", name, roots)
    path = next(path for root in roots if (path := root / "debug" / f"{name}.yaml").is_file())
    return list(_read_preset(path, path.stat().st_mtime_ns))


def load_experiment(name: str, roots: list[Path]) -> dict[str, Any]:
    """The experiment's YAML as plain data (interpolations unresolved)."""
    for root in roots:
        path = root / "experiment" / f"{name}.yaml"
        if path.is_file():
            return _read(path, path.stat().st_mtime_ns)
    known = choices("experiment", roots)
    raise UserError(f"experiment={name}: no such experiment{nearest(name, known)}; `retable job=list` shows all")


@lru_cache(maxsize=256)
def _read(path: Path, _modified: int) -> dict[str, Any]:
    from omegaconf import OmegaConf

    data = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if not isinstance(data, dict) or not data.get("rows") or not data.get("scales"):
        raise UserError(f"{path}: an experiment needs `rows` and `scales`")
    return {str(key): value for key, value in data.items()}


@lru_cache(maxsize=64)
def _read_preset(path: Path, _modified: int) -> list[str]:
    from omegaconf import OmegaConf

    data = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    words = data.get("overrides") if isinstance(data, dict) else None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path}: a preset needs `overrides`, a list of key=value")
    return words


def check_choices(overrides: list[str]) -> None:
    """Every `group=choice` among the overrides names a file.

    Raises:
        UserError: it does not; with the nearest names.
    """
    roots = config_roots(overrides)
    known_groups = groups(roots)
    for override in overrides:
        key, _, value = override.partition("=")
        group = key.lstrip("+")
        if group not in known_groups:
            continue
        # A sweep's list (a,b) is checked choice by choice, once it is split into cells.
        if not _is_sweep(value):
            _check_choice(group, value, roots)


def _check_choice(group: str, value: str, roots: list[Path]) -> None:
    known = choices(group, roots)
    if value.strip("'\"") not in known:
        raise UserError(f"{group}={value}: no such choice{nearest(value, known)}; `retable job=list` shows all")


def _is_sweep(value: str) -> bool:
    """Whether a value is a list, for `-m` to split: a,b or choice(a,b)."""
    return re.search(r"[,(\[{]", value) is not None


def groups(roots: list[Path]) -> set[str]:
    """The names of our groups (Hydra's own aside)."""
    folders = [path for root in roots if root.is_dir() for path in root.iterdir() if path.is_dir()]
    return {path.name for path in folders if not path.name.startswith(("_", "."))} - {"hydra"}


def choices(group: str, roots: list[Path]) -> list[str]:
    """The names that can be chosen in a group, from the YAML files below it (`_base.yaml` holds defaults)."""
    found: list[str] = []
    for root in roots:
        folder = root / group
        found += [
            path.relative_to(folder).with_suffix("").as_posix()
            for path in folder.rglob("*.yaml")
            if not path.name.startswith("_")
        ]
    return sorted(set(found))
