"""Fingerprints: of configurations, of source, of the data and models a run reads."""

import ast
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from evals.local_data import local_copy, reader
from evals.task_index import OWN_TASKS, task_folders
from runners import signatures
from runners.errors import UserError
from runners.signatures import imported_modules, module_path

log = logging.getLogger(__name__)

# What every result goes through, besides its method: their source makes a done run stale when it changes.
ENGINE_MODULES = (
    "runners.run",
    "runners.models",
    "runners.data",
    "runners.batches",
    "runners.engine",
    "runners.training",
    "evals.harness",
    "evals.mini_world",
)
# Modules that these import but that cannot change a number.
_NEUTRAL = frozenset(
    {
        "runners.errors",
        "runners.tracker",
        "runners.record",
        "runners.lock",
        "runners.preemption",
        "runners.failures",
        "runners.retention",
        "runners.sweep",
        "runners.progress",
        "runners.compose",
        "runners.expand",
        "runners.fingerprint",
        "runners.signatures",
        "runners.schema",
    }
)
_OURS = ("runners", "methods", "evals")


def of_data(data: Any) -> str:
    """SHA-256 (hex, 16 characters) of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def of_sources(roots: list[str], folders: Iterable[Path] = ()) -> str:
    """Fingerprint of modules, of all modules of ours that they import, and of the tasks in `folders`.

    Everything is read, nothing imported. Comments, docstrings and layout do not count: only what can change a
    result does.
    """
    return of_data(sources(roots, folders))


def sources(roots: list[str], folders: Iterable[Path] = ()) -> dict[str, str]:
    """What `of_sources` is made of: a fingerprint for each module and each file of a task."""
    seen: dict[str, str] = {}
    queue = list(roots)
    while queue:
        module = queue.pop()
        if module in seen or module in _NEUTRAL:
            continue
        path = module_path(module)
        if path is None:
            continue  # a name inside a module, or something built in
        seen[module] = _of_module(path, path.stat().st_mtime_ns)
        ours = (*_OURS, *{root.split(".")[0] for root in roots})
        queue += [name for name in imported_modules(module) if name.split(".")[0] in ours]
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            seen[path.relative_to(folder.parent).as_posix()] = _of_yaml(path, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*.py")):
            seen[path.relative_to(folder.parent).as_posix()] = _of_module(path, path.stat().st_mtime_ns)
    return seen


def task_sources(evaluation: Mapping[str, Any]) -> list[Path]:
    """Folders of the tasks that `evaluation:` asks for, of ours and of the user's (lm-eval's have its version)."""
    names = [task["name"] for task in evaluation["tasks"]]
    if not names:
        return []
    roots = [OWN_TASKS, *(Path(folder).expanduser().resolve() for folder in evaluation["include_path"])]
    return [
        folder
        for folder in task_folders(names, evaluation["include_path"])
        if any(folder.is_relative_to(root) for root in roots)
    ]


@lru_cache(maxsize=1024)
def _of_yaml(path: Path, _modified: int) -> str:
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    return hashlib.sha256(yaml.serialize(node).encode()).hexdigest() if node else ""


@lru_cache(maxsize=1024)
def _of_module(path: Path, _modified: int) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = body[1:] or [ast.Pass()]
    return hashlib.sha256(_written(tree).encode()).hexdigest()


def _written(node: Any) -> str:
    """A syntax tree as text that is the same in every version of Python: what is empty is left out, as new fields are.

    `ast.dump` of Python 3.12 shows that a function has no type parameters, which would make every result stale.
    """
    if isinstance(node, list):
        return f"[{','.join(map(_written, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
    # `None` as a constant is what the source says, not a field that is not there.
    if isinstance(node, ast.Constant):
        fields = [("value", node.value)]
    if isinstance(node, ast.JoinedStr):  # an f-string, in which 3.12 puts an empty constant after a nested format
        parts = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
        fields = [("values", parts)]
    return f"{type(node).__name__}({','.join(f'{name}={_written(value)}' for name, value in fields)})"


@lru_cache(maxsize=1024)
def _of_bytes(path: Path, _modified: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def of_inputs(config: dict[str, Any]) -> dict[str, str]:
    """What a run reads: local models and data by content, hub ones by resolved revision."""
    model = config["model"]
    found = {group: content for group, dataset in data_sets(config) if (content := _of_data_set(group, dataset))}
    for key in ("id", "tokenizer"):
        name = model[key]
        if name is None or name == "bytes":
            continue
        found[f"model.{key}"] = (
            _of_path(Path(name))
            if Path(name).is_dir()
            else _hub_revision(name, model["revision"] if key == "id" else None, "model")
        )
    found |= {key: _of_path(Path(path)) for key, path in files(config)}
    others = [(f"{key}.model", reward.get("model")) for key, reward in [*rewards(config), *graders(config)]]
    embedding = (config["evaluation"].get("mauve") or {}).get("embedding")
    others.append(("evaluation.mauve.embedding", None if embedding == "terms" else embedding))
    for key, name in others:
        if name is not None:
            found[key] = _of_path(Path(name)) if Path(name).is_dir() else _hub_revision(name, None, "model")
    return found


def data_sets(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The data sets of a run: the one it is about, that of a mix which has one, those of its evaluation."""
    others = [("mix.dataset", config.get("mix", {}).get("dataset"))]
    for name in ("preference", "judge", "mauve", "thoughts"):
        asked = config.get("evaluation", {}).get(name) or {}
        others.append((f"evaluation.{name}.dataset", asked.get("dataset")))
    others += [(f"{key}.dataset", asked.get("dataset")) for _, key, asked in problem_sets(config)]
    others.append(("evaluation.accuracy.source", (config.get("evaluation", {}).get("accuracy") or {}).get("source")))
    return [("dataset", config["dataset"]), *((name, data) for name, data in others if isinstance(data, dict))]


def files(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Files that the method reads, with their keys: those that its class names in `files`."""
    named = signatures.read(config["method"]["_target_"]).attributes.get("files") or ()
    return [(f"method.{key}", config["method"][key]) for key in named if config["method"].get(key) is not None]


def rewards(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The rewards of a run (`evals.rewards.load`), with their keys: that of its method, that of its evaluation."""
    found = [("method.reward", config["method"].get("reward"))]
    found.append(("evaluation.preference.reward", (config["evaluation"].get("preference") or {}).get("reward")))
    return [(key, reward) for key, reward in found if isinstance(reward, dict)]


def graders(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Rewards with options (`evals.rewards.load.load_grader`), with their keys: of the method, of the evaluation."""
    listed = [("method.rewards", config["method"].get("rewards"))]
    asked = problem_sets(config)
    listed += [(f"{key}.rewards", problems.get("rewards")) for _, key, problems in asked]
    shown = [(f"{key}.feedback", problems["feedback"]) for _, key, problems in asked if problems.get("feedback")]
    return [(f"{key}[{place}]", one) for key, found in listed for place, one in enumerate(found or ())] + shown


def environments(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Dotted paths of the functions that tell what is allowed, with their keys: of the method, of the evaluation."""
    found = [("method.environment", config["method"].get("environment"))]
    found += [(f"{key}.environment", asked.get("environment")) for _, key, asked in problem_sets(config)]
    return [(key, path) for key, path in found if path]


def problem_sets(config: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """The sets of problems that an evaluation asks of: name of the task, key, settings."""
    evaluation = config.get("evaluation", {})
    if evaluation.get("problem_sets"):
        return [(name, f"evaluation.problem_sets.{name}", own) for name, own in evaluation["problem_sets"].items()]
    return [("problems", "evaluation.problems", evaluation["problems"])] if evaluation.get("problems") else []


def _of_data_set(group: str, dataset: dict[str, Any]) -> str | None:
    tested = dataset.get("test_split")  # of images
    if dataset.get("source") == "file":
        content = _of_path(Path(dataset["path"]))
        # What is tested on decides too; where it is missing, loading says so.
        return of_data([content, _of_path(Path(tested))]) if tested and Path(tested).is_file() else content
    if dataset.get("source") != "hub":
        return None  # generated, by source that is fingerprinted elsewhere
    copy = local_copy(dataset["path"], dataset.get("data_root"), dataset.get("data_dir"))
    if not copy:
        return _hub_revision(dataset["path"], dataset.get("revision"), "dataset")
    if dataset["split"] not in copy:
        raise UserError(
            f"{group}.split={dataset['split']}: the local copy of {dataset['path']} below "
            f"{dataset['data_root']} has only {', '.join(copy)}"
        )
    content = _of_path(copy[dataset["split"]])
    return of_data([content, _of_path(copy[tested])]) if tested in copy else content


def check_files(config: dict[str, Any]) -> None:
    """Files and folders that the configuration names exist.

    Raises:
        UserError: one does not.
    """
    model = config["model"]
    for group, dataset in data_sets(config):
        if dataset.get("source") == "file":
            if not Path(dataset["path"]).is_file():
                raise UserError(f"{group}.path={dataset['path']}: no such file")
            try:
                reader(Path(dataset["path"]))
            except ValueError as error:
                raise UserError(str(error)) from error
    for key, path in files(config):
        if not Path(path).is_file():
            raise UserError(f"{key}={path}: no such file")
    for key, name in (("model.id", model["id"]), ("model.tokenizer", model["tokenizer"])):
        # A hub id is `name` or `owner/name`; anything else can only be a folder.
        if name and not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise UserError(f"{key}={name}: neither a hub id nor an existing folder")
    folders = [("evaluation.data_root", config["evaluation"]["data_root"])]
    folders += [(f"{group}.data_root", dataset.get("data_root")) for group, dataset in data_sets(config)]
    folders += [("evaluation.include_path", folder) for folder in config["evaluation"]["include_path"]]
    folders += [("runs_from", folder) for folder in config["runs_from"]]
    for key, folder in folders:
        if folder is not None and not Path(folder).expanduser().is_dir():
            raise UserError(f"{key}={folder}: no such folder")


def _of_path(path: Path) -> str:
    """Fingerprint of what a file or folder holds, wherever it lies and whatever it is called."""
    if path.is_file():
        return of_data(_of_bytes(path, path.stat().st_mtime_ns))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return of_data([[file.relative_to(path).as_posix(), _of_bytes(file, file.stat().st_mtime_ns)] for file in files])


@lru_cache(maxsize=256)
def _hub_revision(name: str, revision: str | None, kind: str) -> str:
    """The commit a hub id stands for; the asked name itself when the hub cannot be reached."""
    wanted = revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", wanted):
        return wanted
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().repo_info(name, revision=wanted, repo_type=kind, timeout=5)
            return str(info.sha)
        except Exception as error:  # of whatever HTTP library the hub's client uses
            # No network, or a gated set: what the cache holds is what will be loaded.
            log.debug("%s: its revision could not be looked up: %s", name, error)
    folder = f"{kind}s--{name.replace('/', '--')}"
    reference = Path(constants.HF_HUB_CACHE) / folder / "refs" / wanted
    return reference.read_text().strip() if reference.is_file() else wanted


# Whose versions a result depends on.
_PACKAGES = (
    "datasets",
    "deepspeed",
    "hydra-core",
    "lm_eval",
    "numpy",
    "omegaconf",
    "peft",
    "retable",
    "tokenizers",
    "torch",
    "transformers",
    "wandb",
)


def environment() -> dict[str, Any]:
    """Versions, hardware and commit, for environment.json."""
    import platform
    import subprocess
    from importlib.metadata import PackageNotFoundError, version

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:  # no git here
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    # An installed copy may lie inside somebody else's repository.
    tracked = git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    commit, dirty = (git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))) if tracked else (None, False)
    processor = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    return {
        "git": {"commit": commit, "dirty": dirty},
        "python": platform.python_version(),
        "packages": packages,
        "hardware": {
            "processor": processor or platform.processor(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "system": platform.platform(),
            "host": platform.node(),
        },
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
