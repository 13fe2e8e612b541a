"""vLLM as the sampler of a run, by a stand-in: weights follow, a stale one is found, bad settings."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from runners import vllm_sampler
from runners.compose import run_spec
from runners.errors import UserError
from tests.command import retable
from tests.runners import vllm_stand_in
from tests.runners.test_rl import RUN, RUNS, SMALL

VLLM = "engine.sampler=vllm"


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = vllm_stand_in.module()
    monkeypatch.setitem(sys.modules, "vllm", found)
    return found


@pytest.mark.parametrize("name", ["two epochs of two", "a tree", "a critic"])
def test_its_weights_follow_the_trained_ones(tmp_path: Path, vllm: Any, name: str) -> None:
    """The first step of every turn has the log-probabilities of the sampler; a critic is not handed over."""
    ended = retable(*RUN, *RUNS[name], "training.steps=8", VLLM, "engine.sampler_length=90", f"outputs={tmp_path}")
    assert ended.code == 0, ended.err
    (path,) = tmp_path.glob("runs/*/metrics.jsonl")
    lines = [line for line in map(json.loads, path.read_text().splitlines()) if "train/reward" in line]
    assert len(lines) == 8
    turns = lines[::4] if name == "two epochs of two" else lines
    assert all(line["train/sampler_gap"] < 1e-4 for line in turns)
    (engine,) = vllm.LLM.made
    assert engine.resets == len(turns), "a hand-over a turn"
    assert engine.settings["max_model_len"] == 90 and engine.settings["gpu_memory_utilization"] == 0.3
    assert not engine.settings["trust_remote_code"]
    how = engine.asked[0]
    assert (how.temperature, how.top_p, how.max_tokens, how.ignore_eos) == (1.0, 1.0, 5, True)
    assert len({one.seed for one in engine.asked}) == len(engine.asked)


def test_weights_that_do_not_arrive_are_found(tmp_path: Path, vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of the last layers is left as it was at first."""
    give = vllm_sampler.VllmSampler._give

    def all_but_one(served: Any, name: str, weights: Any) -> None:
        if not name.endswith("0.mlp.up_proj.weight"):
            give(served, name, weights)

    monkeypatch.setattr(vllm_sampler.VllmSampler, "_give", staticmethod(all_but_one))
    ended = retable(*RUN, "method=rl/grpo", *SMALL, "training.steps=3", VLLM, f"outputs={tmp_path}")
    assert ended.code != 0
    assert "engine.sampler=vllm: its weights differ from the trained ones" in ended.err


def test_without_vllm_the_run_says_how_to_get_it(tmp_path: Path) -> None:
    ended = retable(*RUN, "method=rl/grpo", *SMALL, "training.steps=3", VLLM, f"outputs={tmp_path}")
    assert ended.code != 0
    assert "engine.sampler=vllm: vllm is not installed (pip install 'retable[gpu]'" in ended.err


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize(("words", "told"), [
    (["method.top_p=0.9"], r"method\.top_p=0\.9: must be 1 with engine\.sampler=vllm"),
    (["adapter=lora"], r"engine\.sampler=vllm: takes whole weights"),
    (["engine.sampler_memory=1.2"], r"engine\.sampler_memory"),
])  # fmt: skip
def test_bad_settings_are_told_before_anything_starts(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_spec([*RUN, "method=rl/grpo", *SMALL, VLLM, *words])


@pytest.mark.usefixtures("composer")
def test_other_tokens_are_another_run() -> None:
    """vLLM draws others with the same seed; how much memory it has does not matter."""
    plain, copied, served, small = (
        run_spec([*RUN, "method=rl/grpo", *SMALL, *words]).identity
        for words in ([], ["engine.sampler=copy"], [VLLM], [VLLM, "engine.sampler_memory=0.2"])
    )
    assert plain == copied != served == small
