"""How many programs a second the sandbox judges, each in a fresh one, and whether it judges known ones rightly.

    .venv/bin/python scripts/bench_sandbox.py [--programs 200] [--workers 3] [--sandbox bubblewrap] [--data FOLDER]

Runs short programs with one test each and prints programs per second (goal: 50 on two idle cores), beside what the same
machine does with nothing but an empty Python in bubblewrap, started over and over. With `--data` (a folder with
humaneval/HumanEval.jsonl.gz and mbpp/mbpp.jsonl) it runs every reference solution of HumanEval and MBPP against its own
tests, names those that fail, and runs for each a program that returns None, which must not pass. Exit code 1 if the
goal is missed or something was judged wrongly.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evals.rewards.code import humaneval_reference, mbpp_reference, unit_tests
from evals.sandbox import Job, Sandbox

GOAL = 50.0
_PROGRAM = "def add(a, b):\n    return a + b\n"


def main() -> None:
    """Run, print, leave with 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=200, help="short programs (default: 200)")
    parser.add_argument("--workers", type=int, default=3, help="at once (default: 3)")
    parser.add_argument("--sandbox", default="bubblewrap", help="bubblewrap or unsafe (default: bubblewrap)")
    parser.add_argument("--data", type=Path, help="folder of HumanEval and MBPP")
    given = parser.parse_args()
    per_second = _speed(given.programs, given.workers, given.sandbox)
    if given.sandbox == "bubblewrap":
        print(f"empty Python in bubblewrap: {_bare_speed(given.programs, given.workers):.0f}/s")
    right = given.data is None or all([_humaneval(given), _mbpp(given)])
    sys.exit(per_second < GOAL or not right)


def _speed(programs: int, workers: int, kind: str) -> float:
    with Sandbox(kind, workers=workers) as sandbox:
        jobs = [Job(_PROGRAM, (f"assert add({n}, 1) == {n + 1}",), "add") for n in range(programs)]
        begun = time.perf_counter()
        outcomes = sandbox.run_all(jobs)
        per_second = programs / (time.perf_counter() - begun)
    if not all(outcome.passed for outcome in outcomes):
        sys.exit("a right program failed")
    print(f"{kind}: {per_second:.0f} programs/s with {workers} workers (goal: {GOAL:.0f})")
    return per_second


def _bare_speed(programs: int, workers: int) -> float:
    isolation = ["bwrap", "--ro-bind", "/", "/", "--proc", "/proc", "--tmpfs", "/tmp", "--die-with-parent"]
    command = [*isolation, "--unshare-all", sys.executable, "-I", "-S", "-c", "1"]
    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: subprocess.run(command, check=True), range(programs)))
    return programs / (time.perf_counter() - begun)


def _humaneval(given: argparse.Namespace) -> bool:
    with gzip.open(given.data / "humaneval" / "HumanEval.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    references = [humaneval_reference(row) for row in rows]
    return _judged("HumanEval", given, rows, references, [row["canonical_solution"] for row in rows])


def _mbpp(given: argparse.Namespace) -> bool:
    with (given.data / "mbpp" / "mbpp.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    references = [mbpp_reference(row) for row in rows]
    return _judged("MBPP", given, rows, references, [f"```python\n{row['code']}\n```" for row in rows])


def _judged(name: str, given: argparse.Namespace, rows: list, references: list[str], solutions: list[str]) -> bool:
    begun = time.perf_counter()
    found = unit_tests(solutions, solutions, references, sandbox=given.sandbox, workers=given.workers, wall_seconds=60)
    seconds = time.perf_counter() - begun
    failed = [(row["task_id"], one.feedback) for row, one in zip(rows, found, strict=True) if one.score < 1]
    print(f"{name}: {len(rows) - len(failed)} of {len(rows)} solutions pass, {len(rows) / seconds:.0f}/s")
    for task, feedback in failed:
        print(f"  {task}: {feedback}")
    functions = [json.loads(reference)["entry_point"].split(",")[0] for reference in references]
    nothing = [f"```python\ndef {function}(*_):\n    return None\n```" for function in functions]
    graded = unit_tests(nothing, nothing, references, sandbox=given.sandbox, workers=given.workers, score="all")
    passed = [row["task_id"] for row, one in zip(rows, graded, strict=True) if one.score == 1]
    print(f"{name}: {len(passed)} pass with a function that returns None {passed or ''}")
    return not failed and not passed


if __name__ == "__main__":
    main()
