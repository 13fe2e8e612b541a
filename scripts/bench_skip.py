"""How long a sweep takes of which every cell is done: composing, checking, skipping and the table.

    .venv/bin/python scripts/bench_skip.py [--cells 200] [--runs 3]

Writes made-up results for FLOW's language table in miniature (the pre-trained row, then two rows at as many seeds as
give the number of cells; all start from one parent), then times the command that a user would type again. Prints the
median seconds (goal: under 15) and whether torch was imported; exit code 1 if the goal is missed or torch was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from hydra import initialize_config_module

from runners.compose import RunSpec
from runners.record import Recorder
from runners.sweep import check_all

GOAL = 15.0
METRICS = {
    f"mini_world_{task}": {"acc,none": 0.5, "acc_stderr,none": 0.01, "nll,none": 1.5}
    for task in ("copy", "general", "relabelled_copy", "relabelled_copy_easy", "relabelled_copy_hard")
}


def main() -> None:
    """Make the results, time the command, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=200, help="cells of the sweep (default: 200)")
    parser.add_argument("--runs", type=int, default=3, help="runs of the command (default: 3)")
    given = parser.parse_args()
    retable = Path(sys.executable).with_name("retable")
    if not retable.is_file():
        sys.exit(f"{retable}: not there; run this with the interpreter that the project is installed for")
    words = ["experiment=flow/language", f"seed=range(1,{given.cells // 2 + 1})", "tracker=none"]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        count = make_results(words)
        seconds = []
        for _ in range(given.runs):
            start = time.perf_counter()
            execute([str(retable), "-m", *words])
            seconds.append(time.perf_counter() - start)
        record = execute(["-X", "importtime", str(retable), "-m", *words]).stderr
    torch = any(line.rpartition("|")[2].strip() == "torch" for line in record.splitlines())
    middle = median(seconds)
    print(f"skipping {count} done cells and their table: {middle:.2f} s (median of {given.runs} runs; goal {GOAL:g})")
    print("each run: " + ", ".join(f"{value:.2f}" for value in seconds))
    print(f"torch imported: {'yes' if torch else 'no'}")
    sys.exit(1 if torch or middle > GOAL else 0)


def make_results(words: list[str]) -> int:
    """Leave a result of every cell that `words` mean, and of their parents, in the working directory."""
    with initialize_config_module(config_module="conf", version_base="1.3"):
        ((_, cells),) = check_all(words)
    specs: dict[Path, RunSpec] = {}
    for cell in cells:
        spec: RunSpec | None = cell
        while spec is not None:
            specs[spec.folder] = spec
            spec = spec.parent
    for spec in specs.values():
        recorder = Recorder(spec)
        recorder.open({})
        recorder.result(
            {
                "metrics": METRICS,
                "samples": {},
                "cut_prompts": {},
                "evaluation": {"higher_is_better": {}},
                "method_metrics": {"train/loss": 1.0 + spec.seed / 1000},
                "seconds": 1.0,
            }
        )
    return len(cells)


def execute(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run this interpreter; stop with its error output if it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)} ended with exit code {done.returncode}:\n{done.stderr}")
    return done


if __name__ == "__main__":
    main()
