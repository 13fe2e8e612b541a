"""GM Matching's speed: the whole selection, and its steps beside the authors' sort at every step, in one run.

    python scripts/bench_selection.py [--points 50000] [--dimensions 512] [--keep 0.1] [--compare 300] [--rounds 3]

The reference is written from the description of the authors' code (anishacharya/GM-Matching): at every step the inner
products of all points, a sort of them, and the first of the sorted that is not in the list of those taken. Both sides
get the same points, geometric median and first theta, take turns, and must pick the same points. `--compare` is the
number of picks for that; the reference gets slower with every pick (its list grows), ours does not, so that few picks
favour the reference. `--data mixture` has a hundred clusters, `decaying` directions of very different variance. Ends
with 1 where the picks differ.
"""

import argparse
import os
import resource
import statistics
import sys
import time

import numpy as np

from methods.selection import gm_matching
from methods.selection.geometric_median import weiszfeld
from methods.selection.herding import match, step_by_step
from methods.selection.points import Array


def main() -> None:
    """Time the whole selection, then both sides in turns; print seconds, ratio and whether the picks are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--compare", type=int, default=300, help="picks for the ratio")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", choices=("normal", "mixture", "decaying"), default="normal")
    parser.add_argument("--bad", type=float, default=0.2, help="share of the points that are moved away")
    options = parser.parse_args()
    points_ND = drawn(options)
    k = round(options.keep * options.points)
    print(
        f"{k} of {options.points:,} points, {options.dimensions} dimensions, {options.data}, {options.bad:g} of them "
        f"bad; {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"
    )
    before = _peak()
    start = time.perf_counter()
    target_D = weiszfeld(points_ND)
    print(f"  geometric median      {time.perf_counter() - start:8.1f} s")
    start = time.perf_counter()
    whole = gm_matching.select(points_ND, k)
    print(f"  the whole selection   {time.perf_counter() - start:8.1f} s, the median included")
    square = options.points**2 * 8 / 2**20
    print(f"  memory on top of the points {_peak() - before:.0f} MB (an n x n matrix: {square:.0f} MB)")
    compared = min(options.compare, k)
    is_same = True
    times: dict[str, list[float]] = {"sort at every step": [], "maximum at every step": [], "ours": []}
    for number in range(options.rounds):
        picks = {}
        for side in list(times)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            picks[side] = picked(side, points_ND, target_D, compared)
            times[side].append(time.perf_counter() - start)
        wrong = [side for side, found in picks.items() if found != whole[:compared].tolist()]
        is_same = is_same and not wrong
        said = f"DIFFERENT ({', '.join(wrong)})" if wrong else "identical"
        print(f"  round {number + 1}: the first {compared} picks are {said}")
    for side, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["sort at every step"], seconds, strict=True))
        print(f"  {side:<22} {1000 * statistics.median(seconds) / compared:8.2f} ms a pick, {ratio:.2f} times as fast")
    if not is_same:
        sys.exit(1)


def drawn(options: argparse.Namespace) -> Array:
    """Points, of which a share is moved away."""
    random = np.random.default_rng(0)
    points_ND = random.standard_normal((options.points, options.dimensions))
    if options.data == "mixture":
        points_ND += random.standard_normal((100, options.dimensions))[random.integers(0, 100, options.points)]
    if options.data == "decaying":
        points_ND /= np.sqrt(np.arange(1, options.dimensions + 1))
    points_ND[: round(options.bad * options.points), -1] += 20
    return points_ND


def picked(side: str, points_ND: Array, target_D: Array, k: int) -> list[int]:
    """The first k picks of one side."""
    if side == "ours":
        return [int(pick) for pick in match(points_ND, target_D, k)]
    if side == "maximum at every step":
        return [int(pick) for pick in step_by_step(points_ND, target_D, k, target_D, np.zeros(len(points_ND)))]
    return per_step_sort(points_ND, target_D, k)


def per_step_sort(points_ND: Array, target_D: Array, k: int) -> list[int]:
    """Herding with a sort at every step and a list of the taken."""
    theta_D = target_D.copy()
    taken: list[int] = []
    for _ in range(k):
        order_N = np.argsort(points_ND @ theta_D)[::-1]
        pick = next(int(index) for index in order_N if index not in taken)
        taken.append(pick)
        theta_D = theta_D + target_D - points_ND[pick]
    return taken


def _peak() -> float:
    """Peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
