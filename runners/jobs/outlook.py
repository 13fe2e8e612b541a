"""`retable ... job=plan`: what a command would run, what that needs and where it stands, before anything starts.

Looks at folders, at the hub's cache and, unless HF_HUB_OFFLINE is set, asks the hub. Loads nothing. Memory and disk are
estimates (`runners/estimate.py`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evals import task_index
from evals.local_data import local_copy
from runners import estimate, fingerprint, ledger, record, signatures
from runners.compose import RunSpec
from runners.errors import UserError
from runners.estimate import gigabytes
from runners.jobs.console import console
from runners.jobs.hub import Hub
from runners.jobs.status import ranges, unfinished_parents
from runners.sweep import Checked, check_all, is_skipped
from runners.tables.measurements import count

# Tokens of a training row where nothing says how long the examples are; ours.
_GUESSED_TOKENS = 512
_SEQUENCES = {"pair": 2, "groups": 4, "ranked": 4}  # of an example of these types; of the last two a guess
_MINI_WORLD_TOKENS = {"word_problems": 90}  # bytes of its longest items; those of the other skills have 18


def show(overrides: list[str]) -> None:
    """Print the cells that would run, their parents, models, data and tasks, and what they are estimated to need."""
    out = console()
    tables = check_all(overrides)
    for plan, specs in tables:
        try:
            ledger.check(plan, specs)
        except UserError as error:
            out.print(f"The command would be refused: {error}", soft_wrap=True, style="bold red")
    known = {spec.folder: record.status(spec) for _, specs in tables for spec in specs}
    due = {spec.folder: spec for _, specs in tables for spec in specs if not is_skipped(spec, known[spec.folder])}
    _print_cells(out, tables, known)
    parents = unfinished_parents(due.values(), set(known))
    if parents:
        grid = _grid("Parents, which run first")
        for spec in parents:
            grid.add_row(spec.name, f"{record.status(spec).state}; {_length(spec)}")
        out.print(grid)
    wanted = [*parents, *due.values()]
    if wanted:
        hub = Hub()
        _print_needs(out, "Models", dict(_models(wanted)), hub)
        _print_needs(out, "Data", dict(_data(wanted)), hub)
        _print_needs(out, "Data of lm-eval's tasks", dict(_task_data(wanted)), hub)
        sizes = [size_of(spec, hub) for spec in wanted]
        _print_memory(out, wanted, sizes)
        _print_disk(out, wanted, sizes)
    text = f"{len(due)} of {count(len(known), 'cell')} would run"
    out.print(f"{text}, and {count(len(parents), 'parent')} first" if parents else text)


def _print_cells(out: Console, tables: Checked, known: dict[Path, record.Status]) -> None:
    for plan, specs in tables:
        grid = _grid(f"{plan.experiment['name']}, scale {plan.scale}", "seed", "")
        rows: dict[str, dict[str, list[int]]] = {}
        for cell, spec in zip(plan.cells, specs, strict=True):
            rows.setdefault(cell.row, {}).setdefault(_would(spec, known[spec.folder]), []).append(cell.seed)
        for row, said in rows.items():
            label = row
            for what, seeds in said.items():
                grid.add_row(label, ranges(seeds), what)
                label = ""
        out.print(grid)


def _would(spec: RunSpec, known: record.Status) -> str:
    if is_skipped(spec, known):
        return "skipped: done" if known.state == "done" else "skipped: stale; rerun=stale runs it again"
    if known.state == "running":
        return f"waits for {known.reason}" if spec.config["busy"] == "wait" else f"fails: {known.reason} is at work"
    before = {"done": " again", "stale": " again, as it is stale", "failed": " again, as it failed"}
    return f"runs{before.get(known.state, '')}; {_length(spec)}"


def _length(spec: RunSpec) -> str:
    """How long its training is."""
    if not _roles(spec, "trained"):
        return "no training"
    training = spec.config["training"]
    length = count(training["steps"], "step") if training["steps"] else f"{training['epochs']:g} epochs"
    return f"{length} of {training['batch_size']} examples"


# What is needed ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """A model or a data set. `where`: what is known without the hub; `kind`: model or dataset, to ask it for."""

    where: str = ""
    kind: str = ""
    revision: str | None = None


def _models(specs: Iterable[RunSpec]) -> Iterable[tuple[str, Need]]:
    for spec in specs:
        model = spec.config["model"]
        if model["architecture"] is not None:
            yield f"random {model['architecture']['model_type']}", Need("made here, nothing to download")
        for name in (model["id"], model["tokenizer"]):
            if name is None or name == "bytes":
                continue
            local = Path(name).is_dir()
            revision = model["revision"] if name == model["id"] else None
            yield name, Need("local folder") if local else Need(kind="model", revision=revision)


def _data(specs: Iterable[RunSpec]) -> Iterable[tuple[str, Need]]:
    for spec in specs:
        if not _roles(spec, "trained") and spec.config["model"]["kind"] != "none":
            continue
        for _, data in fingerprint.data_sets(spec.config):
            if data.get("source") == "mini_world":
                yield f"mini world, {data['skill']}", Need("made here, nothing to download")
            elif data.get("path") is None:
                yield signatures.read(data["_target_"]).doc, Need("made here, nothing to download")
            elif data["source"] == "file":
                yield data["path"], Need("local file")
            else:
                copy = local_copy(data["path"], data.get("data_root"), data.get("data_dir")).get(data["split"])
                where = f"local copy {copy}" if copy else ""
                yield data["path"], Need(where, "" if copy else "dataset", data.get("revision"))


def _task_data(specs: Iterable[RunSpec]) -> Iterable[tuple[str, Need]]:
    for spec in specs:
        evaluation = spec.config["evaluation"]
        roots = task_index._roots(evaluation["include_path"])
        for task in evaluation["tasks"]:
            for path, config in task_index._leaves(task["name"], roots):
                name = config.get("dataset_path")
                if "custom_dataset" in config:
                    ours = path.is_relative_to(task_index.OWN_TASKS)
                    made = Need("made here, nothing to download" if ours else "made by the task's own code")
                    yield "mini world" if ours else task["name"], made
                elif name in ("json", "csv", "parquet", "text"):
                    yield task["name"], Need("files that the task names")
                elif name:
                    copy = local_copy(name, evaluation["data_root"])
                    where = f"local copy {next(iter(copy.values())).parent}" if copy else ""
                    yield name, Need(where, "" if copy else "dataset")


def _print_needs(out: Console, title: str, needs: dict[str, Need], hub: Hub) -> None:
    if not needs:
        return
    grid = _grid(title)
    for name, need in needs.items():
        grid.add_row(name, need.where or hub.where(name, need.kind, need.revision))
    out.print(grid)


# Estimates -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """A run's model: its parameters and configuration, as far as they are known."""

    parameters: int | None
    architecture: dict[str, Any]


def size_of(spec: RunSpec, hub: Hub) -> Size:
    """From `model.architecture`, a local folder, the hub's cache, what the hub has told, or the parent's."""
    model = spec.config["model"]
    if model["kind"] == "none":
        return Size(0, {})
    if model["architecture"] is not None:
        return Size(estimate.parameters(model["architecture"]), model["architecture"])
    if spec.parent is not None:
        return size_of(spec.parent, hub)
    folder = Path(model["id"]) if Path(model["id"]).is_dir() else Hub.snapshot(model["id"], "model", model["revision"])
    if folder is None:
        return Size(hub.parameters.get(model["id"]), {})
    return Size(estimate.parameters_in(folder), estimate.read_json(folder / "config.json") or {})


def memory_of(spec: RunSpec, size: Size) -> tuple[estimate.Memory, str] | None:
    """Memory of each process of a run, and what was assumed of the length of a row; None for an unknown size."""
    if size.parameters is None:
        return None
    config = spec.config
    engine, training = config["engine"], config["training"]
    workers = max(config["gpus"], config["processes"]) * config["nodes"]
    trained = _roles(spec, "trained")
    frozen = [*_roles(spec, "frozen"), *_roles(spec, "frozen", of="penalty")]
    assumed, activations = "", 0
    if trained:
        context = size.architecture.get("max_position_embeddings") or size.architecture.get("n_positions")
        likely = _GUESSED_TOKENS
        if config["dataset"]["source"] == "mini_world":
            likely = _MINI_WORLD_TOKENS.get(config["dataset"]["skill"], 20)
        tokens = training["max_length"] or min(likely, context or likely)
        examples = min(training["micro_batch_size"], math.ceil(training["batch_size"] / workers))
        rows = examples * _SEQUENCES.get(config["dataset"]["type"], 1)
        found = estimate.activation_bytes(
            size.architecture,
            rows=rows,
            tokens=tokens,
            half=engine["precision"] != "fp32",
            checkpointing=engine["activation_checkpointing"],
            logits_chunk=engine["logits_chunk"],
        )
        activations = found or 0
        assumed = f"{rows} x {tokens} tokens" if training["max_length"] else f"{rows} x {tokens} tokens (a guess)"
        if found is None:
            assumed = "without activations, the architecture is not known"
    needed = estimate.memory(
        size.parameters,
        engine,
        world=workers,
        optimizer=config["optimizer"]["_target_"],
        trained=len(trained),
        frozen=len(frozen),
        activations=activations,
    )
    return needed, assumed


def disk_of(spec: RunSpec, size: Size) -> estimate.Disk | None:
    """Disk of a run; None for an unknown size. Checkpoints by the clock are not counted."""
    if size.parameters is None:
        return None
    if not _roles(spec, "trained"):
        return estimate.Disk(0, 0)
    config, training = spec.config, spec.config["training"]
    every = training["checkpoint_every"]
    steps = training["steps"]
    # Of epochs the number of steps is not known before the data is: as many as are kept while it runs.
    written = 0 if every is None else 2 if steps is None else steps // every
    return estimate.disk(
        size.parameters,
        config["engine"],
        optimizer=config["optimizer"]["_target_"],
        keep=config["keep"],
        checkpoints=written,
    )


def _print_memory(out: Console, specs: Sequence[RunSpec], sizes: Sequence[Size]) -> None:
    lines: dict[tuple[str, ...], dict[str, None]] = {}
    unknown: dict[str, None] = {}
    for spec, size in zip(specs, sizes, strict=True):
        found = memory_of(spec, size)
        who = spec.row or spec.choices["method"]
        if found is None:
            unknown[who] = None
            continue
        needed, assumed = found
        parts = (needed.weights, needed.gradients, needed.optimizer, needed.activations, needed.total)
        more = f"and {gigabytes(needed.offloaded)} in CPU memory" if needed.offloaded else ""
        key = (f"{size.parameters:,}", *map(gigabytes, parts), "; ".join(part for part in (assumed, more) if part))
        lines.setdefault(key, {})[who] = None
    heads = ("parameters", "weights", "gradients", "optimizer", "activations", "total", "")
    grid = _grid(
        "Memory of each process while it trains (estimate, without the few hundred MB of PyTorch itself)", *heads
    )
    for column in grid.columns[1:7]:
        column.justify, column.no_wrap = "right", True
    for key, names in lines.items():
        grid.add_row(", ".join(names), *key)
    if lines:
        out.print(grid)
    if unknown:
        out.print(
            f"[bold]Memory (estimate):[/bold] unknown for {', '.join(unknown)}: the model's size is not known here"
        )


def _print_disk(out: Console, specs: Sequence[RunSpec], sizes: Sequence[Size]) -> None:
    found = [disk_of(spec, size) for spec, size in zip(specs, sizes, strict=True)]
    known = [disk for disk in found if disk is not None]
    unknown = len(found) - len(known)
    parts = []
    if known:
        parts.append(f"{gigabytes(sum(disk.done for disk in known))} when all is done")
        most = max(disk.running - disk.done for disk in known)
        if most > 0:
            parts.append(f"up to {gigabytes(most)} more for each run under way")
    if unknown:
        parts.append(f"unknown for {count(unknown, 'run')} whose model's size is not known here")
    out.print(f"[bold]Disk (estimate):[/bold] {'; '.join(parts)}")
    if any(spec.config["training"]["checkpoint_minutes"] and _roles(spec, "trained") for spec in specs):
        out.print("  checkpoints by the clock (training.checkpoint_minutes) come on top, two of each run under way")


def _roles(spec: RunSpec, which: str, of: str = "method") -> tuple[str, ...]:
    target = spec.config[of]["_target_"]
    return tuple(signatures.read(target).attributes.get(which) or ()) if target else ()


def _grid(title: str, *heads: str) -> Table:
    grid = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        show_header=any(heads),
    )
    grid.add_column("", overflow="fold", min_width=12)
    for head in heads or ("",):
        grid.add_column(head, overflow="fold")
    return grid
