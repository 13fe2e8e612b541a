"""Kills a run at random moments, types its command again each time, and compares with an uninterrupted run.

    .venv/bin/python scripts/kill_and_resume.py                      # 20 kills of a run of one process
    .venv/bin/python scripts/kill_and_resume.py --processes 2        # any process of the run is killed

The moments are spread over training, the writing of checkpoints and evaluation. Weights must be equal byte for byte,
metrics to the last digit; else the exit code is 1.
"""

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# FLOW, because it has a state of its own; a model small enough for a minute, slow enough to be hit.
WORDS = [
    "model=mini_random",
    "model.architecture.num_hidden_layers=2",
    "method=finetune/flow",
    "dataset.size=512",
    "training.steps=40",
    "training.checkpoint_every=5",
    "training.log_every=1",
    "training.batch_size=32",
    "evaluation.batch_size=32",
    "evaluation.limit=64",
    "tracker=none",
]
STEPS, BATCHES = 40, 18


@dataclass(frozen=True)
class Moment:
    """When to kill: how far the run is (training, then evaluation), how, and what to wait for beyond that."""

    place: float  # steps of training, then STEPS + batches of evaluation
    number: int  # of the signal
    writing: bool  # while a checkpoint is being written

    def __str__(self) -> str:
        where = f"step {self.place:.0f}" if self.place < STEPS else f"batch {self.place - STEPS:.0f} of the evaluation"
        when = "while writing a checkpoint after" if self.writing else "at"
        return f"{signal.Signals(self.number).name} {when} {where}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--engine", default="default")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        words = [*WORDS, f"processes={arguments.processes}", f"engine={arguments.engine}"]
        start(words, Path(folder) / "straight").wait()
        expected = outcome(Path(folder) / "straight")
        left, attempts, hits = moments(arguments.kills, generator), 0, 0
        while left:  # more than once only where a run ended before all its moments came
            attempts += 1
            killed = Path(folder) / f"killed-{attempts}"
            missed = []
            while left:
                moment = left.pop(0)
                process = start(words, killed)
                code = kill(process, killed, moment, generator)
                if code == 0:
                    missed = [moment, *left]
                    break
                hits += 1
                print(f"{moment}: exit code {code}", flush=True)
            check(words, killed, expected)
            left = missed
    print(f"killed {hits} times; equal: weights, metrics and the record of every step")


def check(words: list[str], killed: Path, expected: dict[str, Any]) -> None:
    """Type the command a last time, and compare."""
    last = start(words, killed)
    if last.wait() != 0:
        sys.exit(f"the last attempt failed with exit code {last.returncode}")
    log = next(killed.rglob("run.log")).read_text()
    continued, evaluating = log.count("continuing from"), log.count("ended in an earlier attempt")
    print(f"continued {continued} times from a checkpoint, {evaluating} times within the evaluation", flush=True)
    found = outcome(killed)
    different = [name for name in expected if found[name] != expected[name]]
    if different:
        sys.exit(f"DIFFERENT: {different}")


def moments(count: int, generator: random.Random) -> list[Moment]:
    """Sorted, since a run only goes forward; a third of them while a checkpoint is written, a third in evaluation."""
    found = []
    for number in range(count):
        kind = ("training", "writing", "evaluation")[number % 3]
        number_of = signal.SIGTERM if number % 5 == 4 else signal.SIGKILL
        if kind == "evaluation":
            found.append(Moment(STEPS + generator.uniform(0, BATCHES), number_of, False))
        else:
            place = generator.uniform(1, STEPS - (6 if kind == "writing" else 0))
            found.append(Moment(place, signal.SIGKILL if kind == "writing" else number_of, kind == "writing"))
    return sorted(found, key=lambda moment: moment.place)


def start(words: list[str], outputs: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "runners.main", *words, f"outputs={outputs}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(process: subprocess.Popen[bytes], outputs: Path, moment: Moment, generator: random.Random) -> int:
    """Wait for the moment, then kill: the command itself, or one of its workers. Returns the command's exit code."""
    if place(outputs) >= moment.place:  # an earlier attempt came further: then somewhere on the way there
        time.sleep(generator.uniform(0, 15))
    wait_for(lambda: place(outputs) >= moment.place or process.poll() is not None)
    if moment.writing:
        wait_for(lambda: is_writing(outputs) or process.poll() is not None)
    time.sleep(generator.uniform(0, 0.005 if moment.writing else 0.05))
    if process.poll() is None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        # Python's helper for shared memory is no part of the run: it may die unnoticed.
        family = [member for member in family if "resource_tracker" not in " ".join(member.cmdline())]
        victim = family[0] if moment.number == signal.SIGTERM else generator.choice(family)
        victim.send_signal(moment.number)
        process.wait(timeout=120)
        _, alive = psutil.wait_procs(family[1:], timeout=10)
        if alive:
            sys.exit(f"{len(alive)} processes outlived the command: {[member.cmdline() for member in alive]}")
    return process.wait()


def is_writing(outputs: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # renamed while we looked
        return any(outputs.glob("runs/*/checkpoints/writing-step-*"))
    return False


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            sys.exit(f"nothing to kill came within {seconds:.0f} s")
        time.sleep(0.001)


def place(outputs: Path) -> float:
    """How far the run is: lines of metrics.jsonl, then of the evaluation's journal (less its header)."""
    lines = []
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        counts = [0]
        for path in outputs.glob(f"runs/*/{name}"):
            with contextlib.suppress(FileNotFoundError), path.open() as file:  # deleted when the run is done
                counts.append(sum(1 for _ in file))
        lines.append(sum(counts))
    return lines[0] + max(lines[1] - 1, 0)


def outcome(outputs: Path) -> dict[str, Any]:
    """What must be equal: the weights, the result but for times, the logged steps but for speeds."""
    (folder,) = (path.parent for path in outputs.glob("runs/*/result.json"))
    result = json.loads((folder / "result.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": (folder / "model" / "model.safetensors").read_bytes(),
        "metrics": result["metrics"],
        "samples": {path.name: path.read_text() for path in (folder / "samples").iterdir()},
        "method_metrics": {key: value for key, value in result["method_metrics"].items() if "seconds" not in key},
        "steps": [{key: value for key, value in row.items() if "per_second" not in key} for row in rows],
    }


if __name__ == "__main__":
    main()
