"""Seconds that bandit algorithms need: by default UCB with 1,000 repetitions of 100,000 rounds of 10 arms.

    python scripts/bench_bandits.py [--methods ucb,thompson,...] [--arms 10] [--repetitions 1000] [--rounds 100000]
                                    [--kind standard|full|random]

Everything runs in this process, on one core (numpy's element-wise functions use one thread); the context is a stand-in
that keeps nothing. Wall seconds and CPU seconds of the whole run, and microseconds a round.
"""

import argparse
import importlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

METHODS = {
    "ucb": "Ucb",
    "ucb_n": "UcbN",
    "thompson": "Thompson",
    "lp_tracking": "LpTracking",
    "wu": "Wu",
}


class Alone:
    """What an algorithm asks of its run."""

    seed = 1

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def restore(self, method: Any) -> None:
        """There is nothing to go on from."""

    def checkpoint(self, method: Any, step: int) -> None:
        """Nothing is kept."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing is logged."""

    def steps(self, what: str, total: int) -> Iterator[int]:
        """Without a progress bar."""
        yield from range(total)


def main() -> None:
    """Run each algorithm once and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="ucb", help=f"by comma, of {', '.join(METHODS)}")
    parser.add_argument("--arms", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--kind", choices=("standard", "full", "random"), default="standard")
    options = parser.parse_args()
    from methods.bandits.environment import BanditConfig, GaussianBandit
    from runners.signatures import config_class

    means = tuple(1 - 0.1 * arm for arm in range(options.arms))
    random = options.kind == "random"
    config = BanditConfig(kind=options.kind, means=None if random else means, arms=options.arms if random else None,
                          horizon=options.rounds, repetitions=options.repetitions)  # fmt: skip
    bandit = GaussianBandit(config).load(0)
    print(f"{options.kind}, {options.arms} arms, {options.repetitions} repetitions of {options.rounds} rounds")
    for name in options.methods.split(","):
        class_ = getattr(importlib.import_module(f"methods.bandits.{name}"), METHODS[name])
        method = class_(config_class(class_)())
        wall, cpu = time.perf_counter(), time.process_time()
        found = method.run(Alone(bandit))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(
            f"  {name:<12} {wall:7.1f} s  CPU {cpu:7.1f} s  {1e6 * wall / options.rounds:7.1f} us/round  "
            f"regret {found['regret/mean']:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
