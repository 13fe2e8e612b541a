"""The command line inside this process: what `retable ...` prints and how it ends, without its start-up time."""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

from runners import compose, main, signatures

# A run that trains in a second; without tracker and evaluation.
TINY = (
    "model=mini_random",
    "model.architecture.hidden_size=32",
    "model.architecture.intermediate_size=32",
    "model.architecture.num_hidden_layers=1",
    "training.steps=2",
    "dataset.size=64",
    "evaluation=none",
    "tracker=none",
)
# A run that only loads such a model.
UNTRAINED = (*TINY, "method=untrained")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line on stderr, without the program's name."""
        lines = self.err.strip().splitlines()
        return lines[-1].removeprefix("retable: ") if lines else ""


def retable(*words: str) -> Ended:
    """Run `retable words...` in the current directory; an exception that would print a traceback is raised."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with _undisturbed(["retable", *words]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _undisturbed(argv: list[str]) -> Iterator[None]:
    """Put back what a command changes in its process."""
    root = logging.getLogger()
    before = sys.argv, list(sys.path), list(root.handlers), root.level
    GlobalHydra.instance().clear()
    sys.argv = argv
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before[0], before[1]
        root.handlers[:], root.level = before[2], before[3]
        GlobalHydra.instance().clear()


def forget_sources() -> None:
    """Drop what was read of source files: a test has edited them, or made a module of a name used before."""
    for read in (signatures.module_path, signatures._tree, signatures._dataclass, compose._compose):
        read.cache_clear()


METHOD = '''"""A private method."""

from dataclasses import dataclass

from pydantic import PositiveFloat

from methods.finetune.sft import Sft
from methods.forward import Forward
from methods.objective import Loss


@dataclass(frozen=True, kw_only=True)
class MineConfig:
    """scale: what the loss is multiplied with."""

    scale: PositiveFloat = 1.0


class Mine(Sft):
    """Mine: supervised fine-tuning, scaled."""

    config: MineConfig

    def loss(self, forward: Forward) -> Loss:
        """The scaled loss."""
        return Loss(self.config.scale * super().loss(forward).sum)
'''

EXPERIMENT = """# @package experiment
name: tried/table
title: A table of three rows
baseline: plain
rows:
  plain: {label: Plain, seeds: [0], overrides: [method=untrained]}
  sft: {label: SFT, overrides: [method=finetune/sft], mini: [optimizer.lr=2e-3]}
  flow: {label: FLOW, overrides: [method=finetune/flow]}
scales:
  mini:
    setting: ours
    seeds: [1, 2]
    overrides:
      - model=mini_random
      - model.architecture.hidden_size=32
      - model.architecture.intermediate_size=32
      - model.architecture.num_hidden_layers=1
      - training.steps=1
      - dataset.size=8
      - evaluation=none
  full:
    seeds: [1, 2, 3]
    overrides: [model=qwen3_0_6b, dataset=metamath_qa, evaluation=gsm8k]
columns:
  mini: {loss: {label: Loss, metric: train/loss, better: lower}}
  full: {target: {label: GSM8K, metric: "gsm8k/exact_match,strict-match", better: higher, percent: true}}
published:
  - {row: flow, minus: sft, column: target, value: 1.0, scale: full, source: made up}
claims:
  - {text: FLOW ends lower, row: flow, beats: sft, column: loss, scales: [mini]}
"""


def write_plugin(folder: Path, module: str = "mine", method: str = METHOD) -> Path:
    """A folder for `plugins=`: a private method (`method=private/<module>`) and an experiment (`tried/table`)."""
    for path, text in {
        f"{module}.py": method,
        f"conf/method/private/{module}.yaml": f"# Mine: SFT, scaled.\n_target_: {module}.Mine\nscale: 1.0\n",
        "conf/experiment/tried/table.yaml": EXPERIMENT,
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    forget_sources()
    return folder
