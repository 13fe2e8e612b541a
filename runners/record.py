"""What a run leaves behind: its folder, read and written without torch.

config.yaml       resolved configuration          environment.json  commit, versions, hardware, fingerprints
metrics.jsonl     one line per logged step         result.json       written last, atomically: its presence means done
method.json       what the method reported, when it has ended; the evaluation is left
evaluation.jsonl  batches evaluated so far           progress.json     how far it is, for `job=status`
failure.json      why the last attempt ended       run.log           what was logged
checkpoints/ model/ samples/ wandb/
"""

import contextlib
import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from runners import checkpoints, lock
from runners.compose import RunSpec
from runners.errors import UserError

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 2.0


@dataclass(frozen=True)
class Status:
    """State of a run: done | stale | running | failed | missing.

    result: when done or stale. reason: why it is not done; of a running one, who works on it. folder: where what is
    known of it lies, its own or that of a copy in one of `runs_from`.
    """

    state: str
    folder: Path
    result: dict[str, Any] | None = None
    reason: str = ""


def status(spec: RunSpec) -> Status:
    """What is known of a run from its folder alone, or from its folder below one of `runs_from`."""
    results = [(folder, result) for folder in _places(spec) if (result := read_result(folder)) is not None]
    for folder, result in results:
        if result.get("source") == spec.source:
            return Status("done", folder, result)
    for folder, result in _elsewhere(spec):
        return Status("done", folder, result)
    if results:
        return Status("stale", *results[0], "the source of its method, evaluation or engine has changed")
    who = lock.holder(spec.folder)
    if who is not None:
        return Status("running", spec.folder, None, str(who))
    failure = spec.folder / "failure.json"
    if failure.is_file():
        return Status("failed", spec.folder, None, json.loads(failure.read_text())["error"])
    begun = (spec.folder / "environment.json").is_file()
    return Status("missing", spec.folder, None, "it was interrupted" if begun else "it has not run")


def _places(spec: RunSpec) -> list[Path]:
    """Where a run lies by its name: its folder, and those below `runs_from`."""
    return [spec.folder, *(spec.folder_below(root) for root in spec.config["runs_from"])]


def _elsewhere(spec: RunSpec) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The same run, done for another experiment: what decides it and its source are the same, its name is not."""
    ending = f"-{spec.identity[:8]}"
    for root in (spec.config["outputs"], *spec.config["runs_from"]):
        for folder in _experiments(Path(root).expanduser()):
            for name in _names(folder):
                if not name.endswith(ending) or folder / name == spec.folder:
                    continue
                result = read_result(folder / name)
                if result and (result.get("identity"), result.get("source")) == (spec.identity, spec.source):
                    yield folder / name, result


def _experiments(root: Path) -> list[Path]:
    """The folders below one like `outputs` that hold runs; an experiment's name has one part or two."""
    tops = [root / name for name in _names(root)]
    below = [top / name for top in tops for name in _names(top)]
    return [*tops, *(folder for folder in below if not (folder / "environment.json").exists())]


def _names(folder: Path) -> tuple[str, ...]:
    """The folders in a folder that are no hidden ones; none where another process has just moved it away."""
    try:
        return _names_then(folder, folder.stat().st_mtime_ns)
    except OSError:
        return ()


@lru_cache(maxsize=4096)
def _names_then(folder: Path, _modified: int) -> tuple[str, ...]:
    return tuple(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a done run, or None."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: must be a result as it was written, got {error}; delete it to run again") from error
    assert isinstance(result, dict)
    return result


def begun_by(folder: Path) -> str | None:
    """Source fingerprint of the attempt that a run's folder holds; None without one."""
    path = folder / "environment.json"
    return _read(path).get("source") if path.is_file() else None


def weights(spec: RunSpec) -> tuple[Path, str | None]:
    """The folder of a done run from which its final weights can be taken; and what is wrong where there is none.

    A run may be done here and in one of `runs_from`, and only one of them may hold its weights.
    """
    problems = []
    found = [(folder, read_result(folder)) for folder in _places(spec)]
    for folder, result in [*found, *_elsewhere(spec)]:
        if result is None or result.get("source") != spec.source:
            continue
        if not (folder / "model").is_dir():
            problems.append(f"{folder} holds no final weights (keep=none, or a copy without model/)")
            continue
        problem = checkpoints.damage(folder / "model", contents=False)
        if problem is None:
            return folder, None
        problems.append(f"{folder}/model: {problem}")
    return spec.folder, "; ".join(problems) or f"{spec.folder} is not done"


def _read(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


class Recorder:
    """Writes the files of one run under way; on a rank that does not write, every method does nothing."""

    def __init__(self, spec: RunSpec, *, writes: bool = True) -> None:
        self.spec = spec
        self.folder = spec.folder
        self._writes = writes

    def open(self, environment: Mapping[str, Any]) -> None:
        """Make the folder and write what is known before the run starts."""
        if not self._writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "checkpoints").is_dir() and self.method_ended() is None:
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)  # of an attempt that left nothing to continue from
        (self.folder / "failure.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "samples", ignore_errors=True)  # written when the evaluation has ended
        for path in self.folder.glob(".*"):  # files that were being written when the last attempt was killed
            if path.is_file():
                path.unlink()
        write_atomically(
            self.folder / "config.yaml", yaml.safe_dump(self.spec.config, sort_keys=False, allow_unicode=True)
        )
        path = self.folder / "environment.json"
        attempts = _read(path).get("attempts", []) if path.is_file() else []
        write_json(
            path,
            {
                **environment,
                "identity": self.spec.identity,
                "source": self.spec.source,
                "sources": self.spec.sources,
                "overrides": self.spec.overrides,
                "seed": self.spec.seed,
                "parent": self.spec.parent.name if self.spec.parent else None,
                "needed": [needed.name for needed in self.spec.needed],
                "started": now(),
                "attempts": [*attempts, {"started": now(), "host": platform.node(), "pid": os.getpid()}],
            },
        )

    def method_end(self, ended: Mapping[str, Any]) -> None:
        """Note that the method has ended, and what it reported."""
        if self._writes:
            write_json(self.folder / "method.json", {**ended, "weights": (self.folder / "model").is_dir()})

    def method_ended(self) -> dict[str, Any] | None:
        """What `method_end` noted in an earlier attempt; None when the method is to be run (again)."""
        path = self.folder / "method.json"
        try:
            ended = _read(path)
        except (OSError, ValueError):
            return None
        problem = checkpoints.damage(self.folder / "model") if ended["weights"] else None
        if problem:
            log.warning("%s: the saved weights are not used: %s", self.spec.name, problem)
            return None
        return ended

    def progress(self, phase: str) -> Callable[[int, int], None]:
        """A function of (done, total) that writes progress.json every few seconds, for `job=status`."""
        began: list[float] = []
        begun_at: list[int] = []
        written = 0.0

        def tell(done: int, total: int) -> None:
            nonlocal written
            clock = time.monotonic()
            if not began:
                began.append(clock)
                begun_at.append(done)
            if not self._writes or clock - written < _PROGRESS_SECONDS:
                return
            written = clock
            here = done - begun_at[0]
            left = (clock - began[0]) / here * (total - done) if here > 0 else None
            noted = {"phase": phase, "done": done, "total": total, "seconds_left": left, "updated": now()}
            with contextlib.suppress(OSError):  # it is only told
                write_json(self.folder / "progress.json", noted)

        return tell

    def metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Append one line to metrics.jsonl."""
        if not self._writes:
            return
        line = json.dumps({"step": step, **metrics})
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that will be done again: those after the checkpoint a run continues from."""
        path = self.folder / "metrics.jsonl"
        if self._writes and path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
            write_atomically(path, "".join(kept))

    def flush(self) -> None:
        """Have what was appended to metrics.jsonl on the disk."""
        path = self.folder / "metrics.jsonl"
        if self._writes and path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def samples(self, task: str, samples: list[dict[str, Any]]) -> None:
        """Write what the model answered to each item of a task."""
        if not self._writes:
            return
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        lines = "".join(json.dumps(sample, default=str, ensure_ascii=False) + "\n" for sample in samples)
        write_atomically(folder / f"{task}.jsonl", lines)

    def failure(self, error: BaseException) -> None:
        """Note why this attempt ended; the next one starts from what is there. An interruption is no failure."""
        if not self._writes or not isinstance(error, Exception):
            return
        lines = [line for line in str(error).splitlines() if line.strip()]
        text = lines[0] if lines else ""
        with contextlib.suppress(OSError):  # the disk may be what failed
            write_json(self.folder / "failure.json", {"error": f"{type(error).__name__}: {text}", "time": now()})

    def result(self, result: Mapping[str, Any]) -> None:
        """Write result.json: from now on the run is done."""
        if not self._writes:
            return
        (self.folder / "failure.json").unlink(missing_ok=True)
        write_json(
            self.folder / "result.json",
            {
                "name": self.spec.name,
                "experiment": self.spec.experiment,
                "row": self.spec.row,
                "scale": self.spec.scale,
                "seed": self.spec.seed,
                "method": self.spec.choices["method"],
                "identity": self.spec.identity,
                "source": self.spec.source,
                "parent": self.spec.parent.name if self.spec.parent else None,
                "finished": now(),
                **result,
            },
        )
        for name in ("progress.json", "evaluation.jsonl"):
            (self.folder / name).unlink(missing_ok=True)


def _step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite for one that a power cut has left in pieces."""
    try:
        return json.loads(line)["step"] or 0
    except (ValueError, KeyError, TypeError):
        return math.inf


def set_aside(folder: Path) -> Path:
    """Rename a done run's folder out of the way, so that a new attempt never overwrites it."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = folder.with_name(f"{folder.name}.before-{stamp}")
    while aside.exists():  # twice within a second
        aside = aside.with_name(f"{aside.name}-again")
    os.replace(folder, aside)
    return aside


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically. NaN and infinity become null: JSON has neither."""
    write_atomically(path, json.dumps(_finite(data), indent=1, default=str, ensure_ascii=False))


def write_atomically(path: Path, text: str) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new one, never half of one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    checkpoints.flush_names(path.parent)


def now() -> str:
    """The time, in UTC, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
