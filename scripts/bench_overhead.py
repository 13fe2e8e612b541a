"""What FLOW and TALR cost beside SFT: seconds per optimizer step, and FLOW's one pass before training.

    python scripts/bench_overhead.py [--size mini|10m] [--pairs 24] [--steps 12] [--methods flow talr] [--run-steps 300]

Each pair trains a block of steps with SFT and one with the method, in turns (AB, BA, AB, ...), through the run's own
loop, engine and batches: the mini model (1.0 million parameters) or one of 10 million, on the relabelled copy of the
mini world, 64 examples a step. Both sides see the same batches. The first step of each block is not counted. A pair
gives one ratio; printed are their median and its distribution-free 95% interval (order statistics), once by the clock
on the wall, once by the CPU time of the process, which what else runs on the machine disturbs less. The control is SFT
beside itself, in two engines: how far it is from 1 is noise.

FLOW's pass measures the base model's losses once, into an empty cache. It is compared with a run of `--run-steps` steps
of SFT; a run that finds the losses in the cache, since another one has measured them, pays nothing.
"""

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SIZES = {
    "mini": [],
    "10m": ["hidden_size=512", "intermediate_size=1376", "num_hidden_layers=3"],
}
METHODS = ("sft", "flow", "flow-token", "talr", "dft")


def main() -> None:
    """Measure each method beside SFT, then FLOW's pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--steps", type=int, default=12, help="of a block; the first is not counted")
    parser.add_argument("--methods", nargs="+", choices=METHODS[1:], default=["flow", "talr"])
    parser.add_argument("--run-steps", type=int, default=300, help="of the run that FLOW's pass is compared with")
    parser.add_argument("--passes", type=int, default=5, help="how often FLOW's pass is measured")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; several wait for each other")
    options = parser.parse_args()
    if options.pairs < 6 or options.steps < 2:
        parser.error("an interval needs at least 6 pairs, a block 2 steps")
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.size, options.steps)
        print(
            f"{bench.parameters / 1e6:.1f} million parameters, {options.pairs} pairs of {options.steps - 1} steps, "
            f"{bench.tokens:.0f} target tokens a step, {options.threads} of {os.cpu_count()} cores, "
            f"load before: {os.getloadavg()[0]:.1f}"
        )
        sft = bench.side("sft")
        walls: list[float] = []
        for name in ("sft", *options.methods):
            pairs = in_turns(sft, bench.side(name), options.pairs)
            walls += [a.wall for a, _ in pairs]
            report("sft, the control" if name == "sft" else name, pairs)
        step = statistics.median(walls)
        passes = [bench.flow_pass(number) for number in range(options.passes)]
        once = statistics.median(passes)
        print(
            f"FLOW's pass over {bench.examples} examples: {once:.2f} s ({min(passes):.2f} to {max(passes):.2f}), "
            f"as long as {once / step:.0f} steps of SFT: {100 * once / (options.run_steps * step):.1f}% of "
            f"{options.run_steps} steps"
        )


class Seconds(NamedTuple):
    """Per optimizer step, by both clocks."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Seconds":
        return cls(time.perf_counter(), time.process_time())


Block = Callable[[], Seconds]  # trains some more steps


def in_turns(first: Block, second: Block, count: int) -> list[tuple[Seconds, Seconds]]:
    """Seconds per step of both sides, pair by pair; which of them begins alternates."""
    first(), second()  # warm: what is allocated in the first block is reused later
    pairs = []
    for number in range(count):
        if number % 2 == 0:
            a, b = first(), second()
        else:
            b, a = second(), first()
        pairs.append((a, b))
    return pairs


def interval_of_median(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """The narrowest pair of order statistics, symmetric in rank, that holds the median with probability `level`."""
    n = len(values)
    below, rank = 0.0, 0
    while below + math.comb(n, rank) / 2**n <= (1 - level) / 2:
        below += math.comb(n, rank) / 2**n
        rank += 1
    ordered = sorted(values)
    return ordered[max(rank - 1, 0)], ordered[n - max(rank, 1)]


def report(name: str, pairs: list[tuple[Seconds, Seconds]]) -> None:
    """Print the ratio of the second side to the first, by both clocks."""
    print(f"  {name}")
    for clock in Seconds._fields:
        ours, theirs = ([getattr(side, clock) for side in sides] for sides in zip(*pairs, strict=True))
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        low, high = interval_of_median(ratios)
        print(
            f"    {clock:<4} {1000 * statistics.median(theirs):8.2f} ms a step, SFT "
            f"{1000 * statistics.median(ours):8.2f} ms; ratio {statistics.median(ratios):.4f} "
            f"(95%: {low:.4f} to {high:.4f})",
            flush=True,
        )


class Bench:
    """Data and models of the bench, as a run makes them."""

    def __init__(self, folder: Path, size: str, steps: int) -> None:
        from hydra import initialize_config_module

        from runners import processes
        from runners.batches import make_batches
        from runners.compose import run_spec
        from runners.data import load_rows, tokenize
        from runners.models import context_length, load_model, load_tokenizer

        processes.join(folder / "run")
        with initialize_config_module(config_module="conf", version_base="1.3"):
            changes = [f"model.architecture.{change}" for change in SIZES[size]]
            self._spec = run_spec(
                ["model=mini_random", "dataset=relabelled_copy", "evaluation=none", "tracker=none", *changes]
            )
        config = self._spec.config
        self._folder, self._model = folder, config["model"]
        self._tokenizer = load_tokenizer(self._model, None)
        longest = context_length(self._model, None)
        examples = tokenize(
            load_rows(config["dataset"]), config["dataset"], self._tokenizer, max_length=longest, too_long="error"
        )
        self._config = {**config, "training": {**config["training"], "steps": steps, "epochs": None}}
        assert isinstance(self._tokenizer.pad_token_id, int)
        self._batches = make_batches(
            examples,
            self._config["training"],
            pad_token=self._tokenizer.pad_token_id,
            max_length=longest,
            seed=self._spec.seed,
        )
        self.examples = len(examples)
        self.parameters = sum(
            value.numel() for value in load_model(self._model, None, len(self._tokenizer)).parameters()
        )
        counts = [batch.target_count for step in range(1, steps) for batch in self._batches.of_step(step)]
        self.tokens = sum(counts) / (steps - 1)

    def _load(self) -> Any:
        from runners.models import load_model

        return load_model(self._model, None, len(self._tokenizer))

    def side(self, name: str) -> Block:
        """A model with its engine and objective; each call trains one more block and returns its seconds per step."""
        from runners import training
        from runners.engine import TrainingEngine

        config = self._config
        engine = TrainingEngine(self._load(), config["optimizer"], config["engine"], config["training"]["clip_norm"])
        method = self._method(name, engine.engine)
        ended: list[Seconds] = []
        method.after_step = lambda step: ended.append(Seconds.now())

        def block() -> Seconds:
            ended.clear()
            training.train(
                method,
                engine,
                {"policy": engine.engine},
                self._batches,
                config["training"],
                lambda metrics, step: None,
                lambda progress: None,
            )
            counted = len(ended) - 1
            return Seconds(*((last - first) / counted for first, last in zip(ended[0], ended[-1], strict=True)))

        return block

    def _method(self, name: str, model: Any) -> Any:
        from methods.finetune.dft import Dft, DftConfig
        from methods.finetune.flow import Flow, FlowConfig
        from methods.finetune.sft import Sft, SftConfig
        from methods.finetune.talr import Talr, TalrConfig
        from methods.kinds.causal import Causal

        made: dict[str, Any] = {
            "sft": Sft(SftConfig()),
            "flow": Flow(FlowConfig()),
            "flow-token": Flow(FlowConfig(granularity="token")),
            "talr": Talr(TalrConfig()),
            "dft": Dft(DftConfig()),
        }
        method = made[name]
        method.kind = Causal()
        method.prepare(_Context(self._batches, self._start(model, f"cache-{name}")))
        return method

    def _start(self, model: Any, cache: str) -> Any:
        from dataclasses import replace

        from runners.start import Start

        spec = replace(self._spec, config={**self._spec.config, "outputs": str(self._folder / cache)})
        return Start(spec, lambda: model, lambda phase: lambda done, total: None, 0, 1)

    def flow_pass(self, number: int) -> float:
        """Seconds of FLOW's pass over the data, with an empty cache."""
        from methods.finetune.flow import Flow, FlowConfig
        from methods.kinds.causal import Causal

        model = self._load()
        method = Flow(FlowConfig())
        method.kind = Causal()
        context: Any = _Context(self._batches, self._start(model, f"pass-{number}"))
        began = time.perf_counter()
        method.prepare(context)
        return time.perf_counter() - began


class _Context:
    """What `prepare` asks of a run's context."""

    def __init__(self, batches: Any, start: Any) -> None:
        self.examples = batches.examples
        self._batches, self._start = batches, start

    def measure(self, what: str, values: Any, per: str = "example") -> Any:
        return self._start.measure(what, self._batches, values, per)


if __name__ == "__main__":
    main()
