"""`retable <words of a run> job=export to=FOLDER`: its model as others load it, with a card that says what it is.

`runs=[FOLDER]` names the run by its folder instead.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from runners import checkpoints, record
from runners.compose import run_spec
from runners.errors import UserError
from runners.expand import config_roots, value_of, without
from runners.jobs.difference import check_folder
from runners.jobs.listing import describe
from runners.jobs.words import listed
from runners.plan import numbers
from runners.tables.experiment import Paper


def show(overrides: list[str]) -> None:
    """Write the model of one done run to the folder that `to=` names.

    Raises:
        UserError: no `to=`, or it is not empty; a run that is not done or holds no final weights; several runs.
    """
    to = value_of(overrides, "to")
    if to is None:
        raise UserError("to=null: job=export needs the folder to write (to=FOLDER)")
    target = Path(to).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"to={to}: must be a new or an empty folder")
    folder = _run_folder(overrides)
    if not (folder / "result.json").is_file():
        raise UserError(f"job=export: the run {folder} is not done")
    if not (folder / "model").is_dir():
        raise UserError(f"job=export: {folder} holds no final weights (nothing was trained, or keep=none)")
    problem = checkpoints.damage(folder / "model")
    if problem is not None:
        raise UserError(f"job=export: {folder}/model: {problem}; run it again with rerun=all")
    beside = target.with_name(f"{target.name}.writing")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(folder / "model", beside, ignore=shutil.ignore_patterns(checkpoints.SEAL))
    (beside / "README.md").write_text(card(folder), encoding="utf-8")
    if target.is_dir():
        target.rmdir()
    os.replace(beside, target)
    print(f"Model written to {target} (from {folder})")


def _run_folder(overrides: list[str]) -> Path:
    named = listed(overrides, "runs")
    if not named:
        known = record.status(run_spec(without(overrides, "to", "runs")))
        if known.result is None:
            raise UserError(f"job=export: the run {known.folder} is not done: {known.reason}")
        return known.folder
    if len(named) > 1:
        raise UserError(f"runs={named}: job=export writes one run")
    folder = Path(named[0]).expanduser()
    check_folder(folder)
    return folder


def card(folder: Path) -> str:
    """The model card of a run, from its own files: Markdown with YAML front matter."""
    result = record.read_result(folder)
    assert result is not None
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    made = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    overrides = [str(word) for word in made["overrides"]]
    base = _base_model(config, made, folder.parents[len(Path(result["experiment"]).parts)])
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base:
        front["base_model"] = base
    front["tags"] = ["retable", result["method"].replace("/", "-"), f"scale-{result['scale']}"]
    if config["dataset"].get("source") == "hub":
        front["datasets"] = [config["dataset"]["path"]]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {result['name']}",
        _what_it_is(result, config, base),
        _facts(result, config, made, _method_line(result["method"], overrides)),
        _metrics(result),
        f"## Made by\n\n```\nretable {' '.join(map(_quoted, overrides))}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what_it_is(result: Mapping[str, Any], config: Mapping[str, Any], base: str | None) -> str:
    begun = f"`{base}`" if base else "a run of its own (see Parent)" if result["parent"] else "random weights"
    text = f"A causal language model trained by `retable` with the method `{result['method']}`, starting from {begun}."
    if result["scale"] == "mini":
        text += (
            "\n\n**This is a miniature**: a small setting that runs in minutes, made to test a method's claims. "
            "It is not the paper's model, and its numbers are not the paper's."
        )
    experiment = config.get("experiment")
    if experiment:
        row = experiment["rows"].get(result["row"]) or {}
        text += f"\n\nRow *{row.get('label') or result['row']}* of the table *{experiment['title']}*"
        text += f" (`{experiment['name']}`, scale `{result['scale']}`)."
        paper = Paper(**{key: str((experiment.get("paper") or {}).get(key) or "") for key in Paper.__annotations__})
        arxiv = f"arXiv:{paper.arxiv}" if paper.arxiv else ""
        cited = ". ".join(part.rstrip(".") for part in (paper.authors, paper.title, arxiv, paper.table) if part)
        text += f"\n\nPaper: {cited}." if cited else ""
    return text


def _facts(result: Mapping[str, Any], config: Mapping[str, Any], made: Mapping[str, Any], method: str) -> str:
    data = config["dataset"]
    versions = ", ".join(f"{name} {version}" for name, version in (made.get("packages") or {}).items())
    commit = (made.get("git") or {}).get("commit")
    facts = {
        "Method": method,
        "Data": data["path"] or f"{data['source']}: {data['skill']}, {data['size']} items",
        "Parent run": f"`{result['parent']}`" if result["parent"] else "none",
        "Seed": str(result["seed"]),
        "Identity": f"`{result['identity']}` (hash of the configuration)",
        "Source": f"`{result['source']}` (fingerprint of method, evaluation and engine)",
        "Commit": f"`{commit}`" if commit else "",
        "Finished": result["finished"],
        "Versions": versions,
    }
    lines = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value]
    return "\n".join(["| | |", "|---|---|", *lines])


def _metrics(result: Mapping[str, Any]) -> str:
    lines = [
        f"| {_cell(task)} | {_cell(name)} | {value:.4g} |"
        for task, values in numbers(result).items()
        for name, value in values.items()
        if isinstance(value, int | float) and "_stderr" not in name
    ]
    return "\n".join(["## Measured", "", "| task | metric | value |", "|---|---|---|", *lines]) if lines else ""


def _base_model(config: Mapping[str, Any], made: Mapping[str, Any], root: Path) -> str | None:
    """The hub model at the beginning of the chain of runs; None for a local folder, random weights or a lost parent.

    Args:
        config: the run's.
        made: its environment.json.
        root: the folder below which runs are kept.
    """
    roots = [root, *(Path(other).expanduser() for other in config["runs_from"])]
    model = config["model"]
    while model["from_run"] is not None or model.get("from_runs") is not None:  # of a soup: the first run's
        # A run's folder lies in its experiment's, whose name has one part or two.
        found = (path for top in roots for depth in ("*", "*/*") for path in top.glob(f"{depth}/{made['parent']}"))
        folder = next((path for path in found if (path / "environment.json").is_file()), None)
        if folder is None:
            return None
        model = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["model"]
        made = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return None if model["id"] is None or Path(model["id"]).is_dir() else str(model["id"])


def _method_line(method: str, overrides: list[str]) -> str:
    """The method's name and the line on it (with its paper) that `job=list` shows."""
    try:
        return f"`{method}`: {describe('method', method, config_roots(overrides))}"
    except StopIteration:  # a plugin that is not here
        return f"`{method}`"


def _quoted(word: str) -> str:
    return f"'{word}'" if any(sign in word for sign in ' "[]{}()*$<>|&;') else word


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
