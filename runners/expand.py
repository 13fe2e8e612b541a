"""From an experiment's name to the overrides of its rows, without composing anything.

A paper's table is a list of rows, not a cross product of choices. The experiment's YAML
(`conf/experiment/<paper>/<table>.yaml`) names the rows; a row is a list of Hydra overrides, on top of the
overrides of its scale. A preset (`debug=`, `conf/debug/<name>.yaml`) is a list of overrides too, on top of those; its
`limits` count where the chosen method, penalty or mix has such a key. What the user types comes last and wins.

A row with a `sweep` (keys to lists of values, each as it would stand after `key=`) is read as one row per combination:
`sft` with `sweep: {optimizer.lr: [1e-4, 3e-4]}` as `sft-lr-1e-4` and `sft-lr-3e-4`, both of the group `sft`.
"""

import importlib
import itertools
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
    row = row or next((key for key in rows if not parts_of(experiment, key)), next(iter(rows)))
    if row not in rows:
        raise UserError(f"row={row}: experiment {name} has no such row{nearest(row, rows)}; it has {', '.join(rows)}")
    if parts := parts_of(experiment, row):
        raise UserError(f"row={row}: must be a row with runs of its own; this is the mean of {', '.join(parts)}")
    scale = scale_of(overrides, experiment)
    of_row = [
        f"scale={scale}",
        *experiment["scales"][scale].get("overrides", []),
        *rows[row].get("overrides", []),
        *rows[row].get(scale, []),
        f"seed={seeds_of(experiment, row, scale)[0]}",
    ]
    return [
        *of_row,
        *preset([*of_row, *overrides]),
        *without(overrides, "row"),
        f"row={row}",
    ]


_OF_A_ROW = ("method", "dataset", "model", "adapter", "penalty", "mix")  # groups whose keys depend on the choice


def first_row(overrides: list[str]) -> list[str]:
    """What the first row of a sweep's experiment sets, where the user's own words name keys that only rows have.

    Hydra composes these words once before any row is known, and would refuse `method.epochs=2` as its default method
    has no such key. Whether every row has it is checked with the rows.
    """
    words = [word.partition("=")[0] for word in overrides]
    name = value_of(overrides, "experiment")
    asked = any(word.partition(".")[0] in _OF_A_ROW and "." in word for word in words)
    if name is None or "," in name or not asked or set(words) & {*_OF_A_ROW, "hydra/sweeper"}:
        return []
    row = (value_of(overrides, "row") or "").split(",")[0]
    scale = (value_of(overrides, "scale") or DEFAULT_SCALE).split(",")[0]
    named = [f"experiment={name}", f"scale={scale}", *([f"row={row}"] if row else [])]
    try:
        expanded = expand([*named, *(word for word in overrides if word.startswith("plugins="))])
    except UserError:  # told where the rows are checked
        return []
    return without(expanded, "experiment", "scale", "row", "seed", "plugins")


def scale_of(overrides: list[str], experiment: dict[str, Any]) -> str:
    """The scale asked for, checked against those the experiment defines."""
    scale = value_of(overrides, "scale") or DEFAULT_SCALE
    if scale not in experiment["scales"]:
        known = ", ".join(experiment["scales"])
        raise UserError(f"scale={scale}: experiment {experiment['name']} defines only {known}")
    return scale


def seeds_of(experiment: dict[str, Any], row: str, scale: str) -> list[int]:
    """The seeds of a row: its own where it names them (a deterministic row), else those of the scale.

    None for a row that is the mean of others: it is never run.
    """
    if parts_of(experiment, row):
        return []
    return list(experiment["rows"][row].get("seeds") or experiment["scales"][scale]["seeds"])


def parts_of(experiment: dict[str, Any], row: str) -> list[str]:
    """The rows that a row is the mean of (`mean_of`); none for a row with runs of its own."""
    return list(experiment["rows"][row].get("mean_of") or [])


def preset(overrides: list[str]) -> list[str]:
    """The overrides of the preset that `debug=` names, for the run that `overrides` mean; none without one.

    Its limits are among them where they apply. A merger's model is that of its runs, which are small, and a data set
    that is no text has settings of its own.

    Raises:
        UserError: unknown preset, with the nearest names; its file holds no list of overrides.
    """
    name = value_of(overrides, "debug")
    if name is None or _is_sweep(name):
        return []
    roots = config_roots(overrides)
    _check_choice("debug", name, roots)
    path = next(path for root in roots if (path := root / "debug" / f"{name}.yaml").is_file())
    words, limits = _read_preset(path, path.stat().st_mtime_ns)
    small = _is_of_its_own_size(value_of(overrides, "model"), roots) or (
        value_of(overrides, "method") or ""
    ).startswith("merging/")

    def applies(word: str) -> bool:
        group, _, _ = word.partition(".")
        of_class = group == "dataset" and _has_key(overrides, "dataset._target_", roots)
        return not (small and group == "model") and (not of_class or _has_key(overrides, word.partition("=")[0], roots))

    return [
        *filter(applies, words),
        *(word for word in limits if _has_key(overrides, word.partition("=")[0], roots)),
    ]


def _is_of_its_own_size(model: str | None, roots: list[Path]) -> bool:
    """Whether a choice of `model=` is no language model, whose size a preset may change."""
    path = next((path for root in roots if (path := root / "model" / f"{model}.yaml").is_file()), None)
    return path is not None and re.search(r"^kind: (none|image)$", path.read_text(), re.MULTILINE) is not None


def _has_key(overrides: list[str], key: str, roots: list[Path]) -> bool:
    """Whether what `overrides` choose in a group has a key (`mix.samples`)."""
    group, _, name = key.partition(".")
    chosen = value_of(overrides, group)
    path = next((path for root in roots if (path := root / group / f"{chosen}.yaml").is_file()), None)
    return path is not None and name in _keys(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _keys(path: Path, _modified: int) -> frozenset[str]:
    """The keys of a choice, and those inside of them (`preference.prompts`)."""
    from omegaconf import OmegaConf

    data: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    inner = {f"{key}.{name}" for key, value in data.items() if isinstance(value, dict) for name in value}
    return frozenset({*map(str, data), *inner})


def load_experiment(name: str, roots: list[Path]) -> dict[str, Any]:
    """The experiment's YAML as plain data (interpolations unresolved), its sweeps as rows.

    Raises:
        UserError: unknown experiment, with the nearest names; a `sweep` that is no mapping of keys to lists of values,
            or that makes a row which is there already.
    """
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
    if any("sweep" in row for row in data["rows"].values() if isinstance(row, dict)):
        data["rows"] = _swept_rows(path, data["rows"], list(data["scales"]))
    return {str(key): value for key, value in data.items()}


def _swept_rows(path: Path, rows: dict[str, Any], scales: list[str]) -> dict[str, Any]:
    """The rows, with one for each combination of values in the place of a row that has a `sweep`."""
    written = _as_written(path)["rows"]
    found: dict[str, Any] = {}
    for key, row in rows.items():
        own = {key: row}
        if isinstance(row, dict) and "sweep" in row:
            own = _combinations(f"{path}: rows.{key}", str(key), row, written[str(key)]["sweep"], scales)
        for name, definition in own.items():
            if name in found:
                raise UserError(f"{path}: rows must have different keys after their sweeps, got {name} twice")
            found[name] = definition
    return found


def _combinations(
    where: str, key: str, row: dict[str, Any], written: dict[str, Any], scales: list[str]
) -> dict[str, Any]:
    """One row per combination of the values of a row's `sweep`. `written`: the sweep as its YAML spells it."""
    sweep = row["sweep"]
    if not isinstance(sweep, dict) or not sweep or not all(isinstance(name, str) for name in sweep):
        raise UserError(f"{where}.sweep must map keys to lists of values, got {sweep!r}")
    if row.get("mean_of"):
        raise UserError(f"{where}.sweep must stand in a row with runs of its own, got one with mean_of")
    words: dict[str, list[str]] = {}
    for name, values in sweep.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}.sweep.{name} must be a list of at least one value, got {values!r}")
        if any(isinstance(value, list | dict) for value in values):
            raise UserError(f"{where}.sweep.{name} must hold plain values, got {values!r}")
        if len(set(map(str, values))) < len(values):
            raise UserError(f"{where}.sweep.{name} must hold each value once, got {values!r}")
        for scale in scales:
            if without(row.get(scale) or [], name.lstrip("+")) != (row.get(scale) or []):  # it would win
                raise UserError(f"{where}.sweep.{name} must not be set by {scale} of the row too, got {row[scale]!r}")
        words[name] = [_word(value, text) for value, text in zip(values, written[name], strict=True)]
    label = str(row.get("label") or key)
    kept = {name: value for name, value in row.items() if name != "sweep"}
    if not row.get("group"):
        kept |= {"group": key, "group_label": label}
    found: dict[str, Any] = {}
    for chosen in itertools.product(*words.values()):
        told = [f"{name} {word}" for name, word in zip(_short_names(list(words)), chosen, strict=True)]
        overrides = [f"{name}={word}" for name, word in zip(words, chosen, strict=True)]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([key, *told]).replace("+", "")).strip("-")
        if name in found:
            raise UserError(f"{where}.sweep must give rows of different keys, got {name} twice")
        changes = {"label": ", ".join([label, *told]), "overrides": [*(row.get("overrides") or []), *overrides]}
        found[name] = kept | changes
    return found


def _word(value: Any, written: str) -> str:
    """A value of a sweep as an override has it: numbers as they are written, 1e-4 and not 0.0001."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else written


def _short_names(keys: list[str]) -> list[str]:
    """The last part of each key (`lr` of `optimizer.lr`); the whole key where two would be the same."""
    whole = [key.lstrip("+") for key in keys]
    last = [key.rpartition(".")[2] for key in whole]
    return [short if last.count(short) == 1 else key for key, short in zip(whole, last, strict=True)]


def _as_written(path: Path) -> dict[str, Any]:
    """A YAML file with its scalars as they are written: which numbers are read of 1e-4 depends on the loader."""
    import yaml

    class AsWritten(yaml.SafeLoader):
        """Reads every scalar as text."""

    # Of what a scalar may stand for, only a merge (<<) is kept.
    AsWritten.yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}
    return dict(yaml.load(path.read_text(encoding="utf-8"), AsWritten))


@lru_cache(maxsize=64)
def _read_preset(path: Path, _modified: int) -> tuple[list[str], list[str]]:
    """Overrides and limits."""
    from omegaconf import OmegaConf

    data = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    words = data.get("overrides") if isinstance(data, dict) else None
    limits = data.get("limits", []) if isinstance(data, dict) else []
    for key, found in (("overrides", words), ("limits", limits)):
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise UserError(f"{path}: a preset needs `{key}`, a list of key=value")
    return list(words or []), list(limits)


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
