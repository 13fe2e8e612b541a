"""What EM costs beside gradient steps: seconds and gradient evaluations of an iteration, and until the loss is reached.

    python scripts/bench_mixtures.py [--rounds 5] [--iterations 100] [--images] [--limit null]

EM, gradient EM and gradient descent on the same problems, in turns, each alone in this process: two linear experts on
drawn points, or (`--images`) two softmax experts on the inverted digits. An iteration of EM searches its M-step, so it
takes several gradients of gate and experts (and a Hessian for each step of Newton's method); the others take a fixed
number. Seconds are those of the iterations alone, not of measuring. "Reached" is the first iteration whose loss is at
most the threshold above the lowest loss of all three, with what was spent by then.
"""

import argparse
import statistics
import time
from typing import Any, NamedTuple

from methods.mixtures.base import MixtureFit
from methods.mixtures.data import InvertedImages, InvertedImagesConfig, SyntheticMixture, SyntheticMixtureConfig
from methods.mixtures.em import Em, EmConfig
from methods.mixtures.gradient_descent import GradientDescent, GradientDescentConfig
from methods.mixtures.gradient_em import GradientEm, GradientEmConfig
from methods.mixtures.mixture import MixtureData


class Trace(NamedTuple):
    """After each iteration: the loss, and what had been spent."""

    losses: list[float]
    seconds: list[float]
    gate: list[float]
    experts: list[float]


def main() -> None:
    """Fit in turns and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="problems, each of another seed")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--images", action="store_true", help="inverted digits in place of drawn points")
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--snr", type=float, default=2.0)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--d", type=int, default=10)
    parser.add_argument("--eta-beta", type=float, help="step size; default 1")
    parser.add_argument("--eta-w", type=float, help="step size of the gate; default that of the experts")
    parser.add_argument("--above", type=float, help="threshold; default 1e-5 for drawn points, 0.1 for images")
    options = parser.parse_args()
    rates = {"eta_beta": options.eta_beta or 1.0, "eta_w": options.eta_w}
    searched: dict[str, Any] = {}
    if options.images:
        searched = {"solver": "lbfgs", "tolerance": 1e-4, "limit": 100, "ridge": 1e-4}
    methods: dict[str, MixtureFit] = {
        "EM": Em(EmConfig(**searched)),
        "gradient EM": GradientEm(GradientEmConfig(**rates)),
        "gradient descent": GradientDescent(GradientDescentConfig(**rates)),
    }
    traces: dict[str, list[Trace]] = {name: [] for name in methods}
    for seed in range(options.rounds):
        (data,) = problem(options, seed)
        for name in list(methods) if seed % 2 == 0 else list(methods)[::-1]:
            traces[name].append(trace(methods[name], data, options.iterations))
    above = options.above or (0.1 if options.images else 1e-5)
    shape = data.x_ND.shape
    print(
        f"{options.rounds} problems of {shape[0]} points with {shape[1]} features, {options.iterations} iterations each"
    )
    for name, of_method in traces.items():
        report(name, of_method, traces, above, options.iterations)


def problem(options: argparse.Namespace, seed: int) -> list[MixtureData]:
    """One problem."""
    if options.images:
        return InvertedImages(InvertedImagesConfig(limit=options.limit)).load(seed)
    return SyntheticMixture(SyntheticMixtureConfig(snr=options.snr, n=options.n, d=options.d)).load(seed)


def trace(method: MixtureFit, data: MixtureData, iterations: int) -> Trace:
    """Fit, and note the loss and what was spent."""
    theta, found = data.start, Trace([], [], [], [])
    seconds = gate = experts = 0.0
    for _ in range(iterations):
        began = time.perf_counter()
        theta, work = method.iterate(data, theta)
        seconds, gate, experts = seconds + time.perf_counter() - began, gate + work.gate, experts + work.experts
        for values, value in zip(
            found, (data.mixture.nll(theta, data.x_ND, data.y_N), seconds, gate, experts), strict=True
        ):
            values.append(value)
    return found


def report(name: str, own: list[Trace], traces: dict[str, list[Trace]], above: float, iterations: int) -> None:
    """One line: what an iteration costs, and what was spent when the loss was reached."""
    lowest = [min(min(of_method[seed].losses) for of_method in traces.values()) for seed in range(len(own))]
    reached = []
    for one, target in zip(own, lowest, strict=True):
        reached.append(next((step for step, loss in enumerate(one.losses) if loss <= target + above), None))
    ends = {
        "ms": [1000 * one.seconds[-1] / iterations for one in own],
        "gate": [one.gate[-1] / iterations for one in own],
        "experts": [one.experts[-1] / iterations for one in own],
    }
    line = f"{name:<17} an iteration: {statistics.median(ends['ms']):8.2f} ms, gradients of the gate "
    line += f"{statistics.median(ends['gate']):6.2f}, of the experts {statistics.median(ends['experts']):6.2f};  "
    done = [(one, step) for one, step in zip(own, reached, strict=True) if step is not None]
    if len(done) < len(own):
        print(f"{line}within {above:g} of the lowest loss: {len(done)} of {len(own)}")
        return
    spent = [
        statistics.median(values)
        for values in (
            [step + 1 for _, step in done],
            [1000 * one.seconds[step] for one, step in done],
            [one.gate[step] for one, step in done],
            [one.experts[step] for one, step in done],
        )
    ]
    print(f"{line}within {above:g} of the lowest loss after {spent[0]:.0f} iterations, {spent[1]:.1f} ms, "
          f"{spent[2]:.0f} and {spent[3]:.0f} gradients")  # fmt: skip


if __name__ == "__main__":
    main()
