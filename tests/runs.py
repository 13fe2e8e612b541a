"""Runs that are done, failed or under way, by the files they leave, without running them."""

import json
from pathlib import Path
from typing import Any

from runners.checkpoints import name_of
from runners.compose import RunSpec
from runners.record import Recorder


def write_done(spec: RunSpec, loss: float = 1.0, **changes: Any) -> Path:
    """Leave the result of a run; returns its folder."""
    recorder = Recorder(spec)
    recorder.open({"python": "3.11", "packages": {"torch": "2.0"}, "hardware": {"cores": 2}, "git": {"commit": "a1"}})
    recorder.result(
        {
            "metrics": {},
            "samples": {},
            "cut_prompts": {},
            "evaluation": {"higher_is_better": {}},
            "method_metrics": {"train/loss": loss},
            "seconds": 2.0,
            **changes,
        }
    )
    return spec.folder


def write_checkpoint(folder: Path, step: int, *, complete: bool = True, size: int = 1000, **metrics: float) -> Path:
    """Leave a checkpoint in a run's folder."""
    path = folder / "checkpoints" / name_of(step)
    path.mkdir(parents=True)
    (path / "weights.bin").write_bytes(b"x" * size)
    (path / "loop.json").write_text(json.dumps({"step": step, "metrics": metrics}))
    if complete:
        (path / "COMPLETE.json").write_text("{}")
    return path
