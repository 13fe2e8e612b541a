"""Start-up of the command line, beside an empty Hydra app in the same environment with the same plugins.

    .venv/bin/python scripts/bench_startup.py [--runs 10]

The four commands take turns, so that a busy machine is busy for all of them. Prints the median seconds of
each, the ratio to the empty app (goal: at most 1.5), and whether torch was imported; exit code 1 if it was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

GOAL = 1.5
FLAGS = (["--help"], ["--cfg", "job"])
EMPTY_APP = """
import hydra


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config):
    pass


main()
"""


def main() -> None:
    """Time, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="runs of each command (default: 10)")
    runs = parser.parse_args().runs
    if runs < 1:
        parser.error(f"--runs must be >= 1, got {runs}")
    retable = Path(sys.executable).with_name("retable")
    if not retable.is_file():
        sys.exit(f"{retable}: not there; run this with the interpreter that the project is installed for")

    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder, "app.py")
        app.write_text(EMPTY_APP)
        Path(folder, "conf").mkdir()
        Path(folder, "conf", "config.yaml").write_text("{}\n")
        compare([str(app)], [str(retable)], folder, runs)
        imported = [" ".join(flags) for flags in FLAGS if imports_torch([str(retable), *flags], folder)]
    print("torch imported by: " + (", ".join(imported) or "none of them"))
    sys.exit(1 if imported else 0)


def compare(app: list[str], retable: list[str], folder: str, runs: int) -> None:
    """Print the medians and ratios of `runs` interleaved runs, after one of each that warms the caches."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for run in range(runs + 1):
        for flags in FLAGS:
            for name, command in (("empty app", app), ("retable", retable)):
                start = time.perf_counter()
                execute([*command, *flags], folder)
                if run > 0:
                    seconds.setdefault((" ".join(flags), name), []).append(time.perf_counter() - start)
    print(f"{'':12}{'empty app':>12}{'retable':>12}{'ratio':>8}   (median of {runs} runs, seconds; goal {GOAL})")
    for flags in FLAGS:
        empty, own = (median(seconds[" ".join(flags), name]) for name in ("empty app", "retable"))
        print(f"{' '.join(flags):12}{empty:12.3f}{own:12.3f}{own / empty:8.2f}")


def imports_torch(command: list[str], folder: str) -> bool:
    """Whether `command` imports torch, by Python's own record of what it imports."""
    record = execute(["-X", "importtime", *command], folder).stderr
    return any(line.rpartition("|")[2].strip() == "torch" for line in record.splitlines())


def execute(arguments: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in `folder`; stop with its error output if it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)} ended with exit code {done.returncode}:\n{done.stderr}")
    return done


if __name__ == "__main__":
    main()
