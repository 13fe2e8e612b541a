"""Finds lm-eval tasks by name, and checks what a run asks of them, before a model or any data is loaded.

lm-eval's own `TaskManager()` parses its 14,000 YAML files each time, which takes over ten seconds. Here a
scan of their text finds the names in about one, is kept in the user's cache, and tells the `TaskManager`
which few folders to read.

Imports neither torch nor lm-eval: lm-eval's folder is located, not imported. Names are those of
`TaskManager`: tasks, groups (tasks scored together) and tags (a short name for several tasks).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

OWN_TASKS = Path(__file__).resolve().parent / "tasks"

# What a request may change in the data of the project's own tasks.
OWN_METADATA = ("split", "count", "seed")

# Below one folder: each name and its YAML files. A task or group has one file, a tag those of all its tasks.
Names: TypeAlias = dict[str, list[str]]

# Further folders with tasks.
IncludePath: TypeAlias = str | Path | Sequence[str | Path] | None


@dataclass(frozen=True)
class TaskRequest:
    """One task, group or tag to evaluate, and how it differs from its own YAML.

    Attributes:
        name: lm-eval's name of it.
        num_fewshot: examples in the prompt; None keeps the task's own number (5 for gsm8k, 0 for most
            others).
        limit: only this many of its first items (of each member, for a group); None for all.
        metadata: options for the code that makes the task's data; the project's own tasks take
            `OWN_METADATA`.

    Raises:
        ValueError: an empty name, `num_fewshot` below 0, `limit` below 1, or metadata that is no mapping of
            names.
    """

    name: str
    num_fewshot: int | None = None
    limit: int | None = None
    metadata: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"evaluation.tasks: a task's name must be a non-empty string, got {self.name!r}")
        key = f"evaluation.tasks.{self.name}"
        if self.num_fewshot is not None and (not _is_int(self.num_fewshot) or self.num_fewshot < 0):
            raise ValueError(f"{key}.num_fewshot must be a whole number >= 0, got {self.num_fewshot!r}")
        if self.limit is not None and (not _is_int(self.limit) or self.limit < 1):
            raise ValueError(f"{key}.limit must be a whole number >= 1, got {self.limit!r}")
        if self.metadata is not None and not (
            isinstance(self.metadata, Mapping) and all(isinstance(option, str) for option in self.metadata)
        ):
            raise ValueError(f"{key}.metadata must be a mapping of names to values, got {self.metadata!r}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_requests(
    requests: Sequence[TaskRequest],
    include_path: IncludePath = None,
    *,
    confirm_run_unsafe_code: bool = False,
) -> None:
    """Checks everything about `requests` that can be known from the YAML files.

    Raises:
        ValueError: no request, an unknown task, a task that two requests ask for, metadata that the task
            would not use, or a task that executes what the model writes without `confirm_run_unsafe_code`.
    """
    if not requests:
        raise ValueError("evaluation.tasks must name at least one task, got none")
    check_tasks([request.name for request in requests], include_path)
    roots = _roots(include_path)
    asked_by: dict[str, str] = {}
    for request in requests:
        leaves = list(_leaves(request.name, roots))
        for _, config in leaves:
            leaf = config["task"]
            if leaf in asked_by:
                twice = f"{leaf} in {asked_by[leaf]} and {request.name}"
                raise ValueError(f"evaluation.tasks: each task must be asked for once, got {twice}")
            asked_by[leaf] = request.name
            if config.get("unsafe_code") and not confirm_run_unsafe_code:
                what = f"for {leaf}, which executes what the model writes"
                raise ValueError(f"evaluation.confirm_run_unsafe_code must be true {what}, got false")
        _check_metadata(request, leaves)


def _check_metadata(request: TaskRequest, leaves: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    if not request.metadata:
        return
    key = f"evaluation.tasks.{request.name}.metadata"
    if all(path.is_relative_to(OWN_TASKS) and "custom_dataset" in config for path, config in leaves):
        for option in request.metadata:
            if option not in OWN_METADATA:
                raise ValueError(f"{key} must have keys out of {', '.join(OWN_METADATA)}, got {option!r}")
    elif not any("custom_dataset" in config for _, config in leaves):
        raise ValueError(f"{key} must be left out: the task's data takes no options, got {dict(request.metadata)}")


def check_tasks(names: Iterable[str], include_path: IncludePath = None) -> None:
    """Raises a ValueError that names the first unknown task of `names` and the nearest known ones."""
    roots = _roots(include_path)
    for name in names:
        if not _files(name, roots):
            known = [known for root in roots for known in root.names()]
            nearest = difflib.get_close_matches(name, known, n=5, cutoff=0.75)
            hint = f" (nearest: {', '.join(nearest)})" if nearest else ""
            raise ValueError(f"evaluation.tasks: unknown lm-eval task {name!r}{hint}")


def find_task(name: str, include_path: IncludePath = None) -> Path:
    """The folder whose YAML defines a task or group; for a tag, that of its first task.

    Looked up in `include_path`, then in the project's own tasks, then in lm-eval's.

    Raises:
        ValueError: no such task; the message has the nearest names.
    """
    check_tasks([name], include_path)
    return _files(name, _roots(include_path))[0].parent


def task_folders(names: Iterable[str], include_path: IncludePath = None) -> list[Path]:
    """The folders that `TaskManager(include_path=..., include_defaults=False)` needs to build `names`.

    These hold the tasks and groups themselves and all members of groups and tags. lm-eval lets later folders
    win, so the order is lm-eval's folders, the project's own, the user's. A folder inside another one of the
    list is left out.

    Raises:
        ValueError: an unknown task; the message has the nearest names.
    """
    names = list(names)
    check_tasks(names, include_path)
    roots = _roots(include_path)
    folders = {path.parent for name in names for path in _all_files(name, roots)}
    outermost = [folder for folder in folders if not any(other in folder.parents for other in folders)]
    rank = {folder: _rank(folder, roots) for folder in outermost}
    return sorted(outermost, key=lambda folder: (-rank[folder], str(folder)))


def _rank(folder: Path, roots: Sequence[_Root]) -> int:
    return next(rank for rank, root in enumerate(roots) if folder.is_relative_to(root.folder))


# Where tasks are looked up ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Root:
    """A folder with tasks; `cached` when its scan is worth keeping between processes."""

    folder: Path
    cached: bool = False

    @functools.cached_property
    def scanned(self) -> Names:
        return scan(self.folder)

    def names(self, *, fresh: bool = False) -> Names:
        return _cached_scan(self.folder, fresh=fresh) if self.cached else self.scanned


def _roots(include_path: IncludePath) -> list[_Root]:
    """Where names are looked up, the first place first."""
    given = [include_path] if isinstance(include_path, str | Path) else include_path or []
    folders = [Path(folder).expanduser().resolve() for folder in given]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"evaluation.include_path must name existing folders, got {folder}")
    return [*map(_Root, folders), _Root(OWN_TASKS), _Root(_lm_eval_tasks(), cached=True)]


@functools.cache
def _lm_eval_tasks() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("lm-eval is not installed", name="lm_eval")
    return (Path(spec.submodule_search_locations[0]) / "tasks").resolve()


def _files(name: str, roots: Sequence[_Root]) -> list[Path]:
    """The YAML files of a name in the first root that knows it; none if no root does."""
    for root in roots:
        for fresh in (False, True) if root.cached else (False,):
            # A name that is not there, or whose file is gone, may mean that the cached scan is older than the
            # folder.
            files = [root.folder / file for file in root.names(fresh=fresh).get(name, [])]
            if files and all(file.is_file() for file in files):
                return files
    return []


def _all_files(name: str, roots: Sequence[_Root]) -> Iterator[Path]:
    """The YAML files of a name and, for groups and tags, of everything in it."""
    for path in _files(name, roots):
        yield path
        for member in _members(_read_yaml(path), roots):
            yield from _all_files(member, roots)


def _leaves(name: str, roots: Sequence[_Root]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """YAML file and configuration of each single task that a name stands for."""
    for path in _files(name, roots):
        config = _read_yaml(path)
        if "group" not in config:
            yield path, config
        for member in _members(config, roots):
            yield from _leaves(member, roots)


def _members(config: Mapping[str, Any], roots: Sequence[_Root]) -> Iterator[str]:
    """The names in a group's `task:` list that have a YAML file; tasks written out in it have none."""
    members = config.get("task") if "group" in config else None
    for member in members if isinstance(members, list) else []:
        name = member if isinstance(member, str) else member.get("group", member.get("task"))
        if isinstance(name, str) and _files(name, roots):
            yield name
        elif isinstance(member, Mapping):
            yield from _members(member, roots)


class _YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads lm-eval's YAML without importing what its `!function` tags name."""


_YamlLoader.add_constructor("!function", lambda loader, node: str(node.value))


def _read_yaml(path: Path) -> dict[str, Any]:
    """A task's configuration with the files it includes; its own keys win."""
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_YamlLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"evaluation.tasks: {path} must be readable YAML, got {reason}") from error
    if type(config) is not dict:
        raise ValueError(f"evaluation.tasks: {path} must hold a mapping, got {config!r}")
    merged: dict[str, Any] = {}
    for included in _as_list(config.pop("include", None)):
        merged |= _read_yaml(path.parent / included)
    return merged | config


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


# The scan ---------------------------------------------------------------------------------------------------

# A top-level key and what follows it on its line; for lists, the lines below that start with a dash.
_KEY = re.compile(
    r"""^["']?(task|group|tag|include|class)["']?[ \t]*:[ \t]*(.*)$((?:\n[ \t]*(?:-[ \t]+.*|\#.*)?$)*)""",
    re.MULTILINE,
)
_ITEM = re.compile(r"^[ \t]*-[ \t]+(.*)$", re.MULTILINE)
_SKIPPED_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}


def scan(folder: Path) -> Names:
    """All names below `folder`, with their files relative to it, as lm-eval would index them.

    Only the lines that name things are read: a file that is no valid YAML is therefore listed all the same.
    """
    read: dict[str, dict[str, list[str]]] = {}
    single: Names = {}
    tags: Names = {}
    for file in _yaml_files(folder):
        keys = _naming_keys(os.path.join(folder, file), read)
        # As in lm-eval: `group` wins over `task` unless there is a `class`, and of two files with one name
        # the first.
        is_group = "group" in keys and "class" not in keys
        names = keys.get("group" if is_group else "task", [])
        if len(names) != 1 or names[0] in single:
            continue
        single[names[0]] = [file]
        if not is_group:
            for tag in keys.get("tag", []):
                tags.setdefault(tag, []).append(file)
    return tags | single


def _yaml_files(folder: Path) -> list[str]:
    """Sorted paths relative to `folder`. They are strings, because `Path` would double the scan's time."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        inside = os.path.relpath(parent, folder).replace(os.sep, "/")
        files += [name if inside == "." else f"{inside}/{name}" for name in names if name.endswith(".yaml")]
    return sorted(files)


def _naming_keys(path: str, read: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    """`_KEY`'s keys and values in a file and those it includes; its own win. `read` keeps what was read."""
    if path not in read:
        read[path] = {}  # ends a cycle of includes
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError):
            return {}
        own = {key: _values(inline, block) for key, inline, block in _KEY.findall(text)}
        included: dict[str, list[str]] = {}
        for name in own.pop("include", []):
            included |= _naming_keys(os.path.normpath(os.path.join(os.path.dirname(path), name)), read)
        read[path] = included | own
    return read[path]


def _values(inline: str, block: str) -> list[str]:
    inline = _plain(inline)
    if inline.startswith("["):
        return [_plain(item) for item in inline.strip("[]").split(",") if item.strip()]
    return [inline] if inline else [_plain(item) for item in _ITEM.findall(block)]


def _plain(value: str) -> str:
    """A YAML scalar without its quotes and comment."""
    value = value.strip()
    if value[:1] in ("'", '"'):
        return value[1 : value.find(value[0], 1)]
    return re.split(r"(?:^|\s)#", value, maxsplit=1)[0].strip()


# The cache --------------------------------------------------------------------------------------------------

_memory: dict[Path, Names] = {}
_scanned: set[Path] = set()  # in this process, so no cached scan can be older than they are


def _cached_scan(folder: Path, *, fresh: bool) -> Names:
    """`scan(folder)`, kept in memory and in the user's cache; `fresh` scans if this process has not yet."""
    if folder not in _memory or (fresh and folder not in _scanned):
        names = None if fresh else _read_cache(folder)
        if names is None:
            names = scan(folder)
            _scanned.add(folder)
            _write_cache(folder, names)
        _memory[folder] = names
    return _memory[folder]


def _cache_file(folder: Path) -> Path:
    """Named after lm-eval's version and the folder, because one user may have several environments."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return cache / "retable" / f"lm_eval-{importlib.metadata.version('lm_eval')}-tasks-{place}.json"


def _read_cache(folder: Path) -> Names | None:
    # RuntimeError: there is no home folder.
    with suppress(OSError, RuntimeError, ValueError):
        names = json.loads(_cache_file(folder).read_text(encoding="utf-8"))
        if isinstance(names, dict):
            return names
    return None


def _write_cache(folder: Path, names: Names) -> None:
    """Writes the cache in one step, so that nobody reads half of it. If that cannot be, nothing is lost."""
    with suppress(OSError, RuntimeError):
        file = _cache_file(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as temporary:
            json.dump(names, temporary)
        os.replace(temporary.name, file)
