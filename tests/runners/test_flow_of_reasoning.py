"""FoR in whole runs: interrupted ones, several processes that score in step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from runners import training
from runners.run import execute
from tests.command import TINY, retable
from tests.runners.test_rl import composed, logged, weights

WORDS = (
    *TINY,
    "method=rl/flow_of_reasoning",
    "dataset=problem_numbers",
    "dataset.size=6",
    "method.objective=trajectory_balance",
    "method.log_z_lr=0.1",
    "method.group_size=2",
    "method.local_search=2",
    "method.replay=0.8",
    "method.rows_per_pass=50",
    "training.batch_size=3",
    "training.micro_batch_size=1",
    "training.log_every=1",
    "optimizer.lr=1e-2",
)


@pytest.mark.usefixtures("composer")
def test_an_interrupted_run_ends_like_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: buffers and log Z are in the checkpoint."""
    words = (*WORDS, "training.steps=6", "training.checkpoint_every=3")
    whole, broken = (composed(tmp_path / kind, *words) for kind in ("whole", "broken"))
    save = training.save

    class PowerCut(Exception):
        pass

    def cut(*arguments: Any) -> None:
        save(*arguments)
        raise PowerCut

    execute(whole)
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        patched.setattr(training, "save", cut)
        execute(broken)
    execute(broken)
    assert all(torch.equal(weights(broken)[key], value) for key, value in weights(whole).items())
    assert logged(broken) == logged(whole)
    lines = logged(whole)
    assert lines[3]["train/log_z"] != lines[2]["train/log_z"]
    assert any(line["train/replayed"] > 0 for line in lines[3:]), "what was found before the cut is used after it"


def test_two_processes_with_shared_weights(tmp_path: Path) -> None:
    """Every process makes as many passes as the others; one more batch than processes: one is there for company."""
    ended = retable(*WORDS, "training.steps=3", "processes=2", "engine=zero3", f"outputs={tmp_path}")
    assert ended.code == 0, ended.err
    (path,) = tmp_path.glob("runs/*/metrics.jsonl")
    lines = [line for line in map(json.loads, path.read_text().splitlines()) if "train/residual" in line]
    assert len(lines) == 3 and all(line["train/gradient_norm"] > 0 for line in lines)
