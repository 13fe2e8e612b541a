"""Reinforcement learning in whole runs: interrupted ones, several steps a turn, several processes, bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from methods.rl.ppo import Ppo
from runners import sampler, training
from runners.compose import RunSpec, run_spec
from runners.errors import UserError
from runners.run import execute
from tests.command import TINY, retable

REWARD = "method.rewards=[{function: evals.rewards.spurious.uniform}]"
RUN = (
    *TINY,
    "dataset=preference_demonstrations",
    "dataset.type=problem",
    "dataset.size=24",
    "training.batch_size=6",
    "training.micro_batch_size=2",
    "training.log_every=1",
    "optimizer.lr=1e-2",
)
SMALL = (REWARD, "method.group_size=3", "method.max_new_tokens=5")
RUNS = {
    "grpo": ("method=rl/grpo", *SMALL),
    "two epochs of two": ("method=rl/dr_grpo", *SMALL, "method.epochs=2", "method.minibatches=2"),
    "kl in the reward": ("method=rl/reinforce_pp", *SMALL),
    "other prompts": ("method=rl/dapo", *SMALL, "method.dynamic_sampling=2", "method.mask_truncated=false"),
    "a tree": ("method=rl/murphy", *SMALL, "method.expand=1"),
    "a critic": ("method=rl/carft", *SMALL, "method.epochs=1"),  # with dropout, and a contrastive loss
}


def composed(outputs: Path, *words: str) -> RunSpec:
    return run_spec([*RUN, f"outputs={outputs}", *words])


def weights(spec: RunSpec) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(spec.folder / "model" / "model.safetensors")
    return found


def logged(spec: RunSpec) -> list[dict[str, Any]]:
    """What was logged, but for speed."""
    lines = [json.loads(line) for line in (spec.folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_ends_like_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Bit for bit; in a turn of four steps a checkpoint waits for its end."""
    words = (*RUNS[name], "training.steps=8", "training.checkpoint_every=2")
    whole, broken = (composed(tmp_path / kind, *words) for kind in ("whole", "broken"))
    save, saved = training.save, []

    class PowerCut(Exception):
        pass

    def cut(*arguments: Any) -> None:
        save(*arguments)
        saved.append(arguments[3].step)
        raise PowerCut

    execute(whole)
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        patched.setattr(training, "save", cut)
        execute(broken)
    assert saved == [4 if name == "two epochs of two" else 2]
    execute(broken)
    assert all(torch.equal(weights(broken)[key], value) for key, value in weights(whole).items())
    assert logged(broken) == logged(whole)
    last = logged(whole)[-1]
    assert last["train/sampler_gap"] < 1e-5 or name == "two epochs of two"
    assert last["train/gradient_norm"] > 0 and last["train/written_tokens"] > 0


@pytest.mark.parametrize("name", ["two epochs of two", "kl in the reward", "a tree", "other prompts", "a critic"])
def test_two_processes_with_shared_weights(tmp_path: Path, name: str) -> None:
    """Every process writes as often as the others; the sampler has the weights of the step before."""
    words = (*RUNS[name], "training.steps=4", "processes=2", "engine=zero3")
    ended = retable(*RUN, *words, f"outputs={tmp_path}")
    assert ended.code == 0, ended.err
    (path,) = tmp_path.glob("runs/*/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [line for line in lines if "train/reward" in line]
    assert len(steps) == 4
    first_of_turn = steps[::4] if name == "two epochs of two" else steps
    assert all(line["train/sampler_gap"] < 1e-5 for line in first_of_turn)
    assert all(0 < line["train/reward"] < 1 for line in steps)


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_part_of_the_method_is_trained_and_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    """The critic, under an adapter too: in the checkpoints, and not in the final model."""
    starts: dict[str, torch.Tensor] = {}
    shape = Ppo.shape

    def noted(method: Ppo, model: Any) -> None:
        shape(method, model)
        starts.update({name: value.detach().clone() for name, value in model.critic.named_parameters()})

    monkeypatch.setattr(Ppo, "shape", noted)
    words = ("training.steps=3", "training.checkpoint_every=2", "keep=all", f"adapter={adapter}")
    spec = composed(tmp_path, "method=rl/ppo", *SMALL, *words)
    execute(spec)
    (saved,) = (spec.folder / "checkpoints" / "step-000002").glob("mp_rank_00_model_states.pt")
    held = torch.load(saved, weights_only=False)["module"]
    for name, start in starts.items():
        (value,) = [held[key] for key in held if key.endswith(f"critic.{name}")]
        assert not torch.equal(value, start), name
    model, told = AutoModelForCausalLM.from_pretrained(spec.folder / "model", output_loading_info=True)
    assert not any(told.values()), told
    assert set(weights(spec)) == set(model.state_dict())


def test_a_copy_writes_what_the_trained_model_would(tmp_path: Path) -> None:
    """Under ZeRO 3 in two processes: the same tokens, so that the run is the same one, with the same identity."""
    words = (*RUNS["two epochs of two"], "training.steps=8", "processes=2", "engine=zero3")
    found = []
    for how in ("in_place", "copy"):
        ended = retable(*RUN, *words, f"engine.sampler={how}", f"outputs={tmp_path / how}")
        assert ended.code == 0, ended.err
        (path,) = (tmp_path / how).glob("runs/*/metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found.append([{name: value for name, value in line.items() if "second" not in name} for line in lines])
        names = path.parent.name
    for in_place, copied in zip(*found, strict=True):
        assert copied == pytest.approx(in_place, abs=1e-5), "but for how sums are rounded"
    assert (tmp_path / "in_place" / "runs" / names).is_dir(), "it is no part of the identity"


def test_a_copy_that_does_not_follow_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler.WeightCopy, "_take", staticmethod(lambda own, trained: None))
    words = ("method=rl/grpo", *SMALL, "training.steps=3", "engine.sampler=copy", f"outputs={tmp_path}")
    ended = retable(*RUN, *words)
    assert ended.code != 0
    assert "engine.sampler=copy: " in ended.err and "differs from the trained weights" in ended.err


def test_a_checksum_sees_every_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        weights_AB = torch.randn(5, 7, dtype=dtype)
        changed = weights_AB.clone()
        changed[3, 2] = torch.nextafter(changed[3, 2].float(), torch.tensor(1e9)).to(dtype) + changed[3, 2].abs() / 64
        assert sampler.checksum(weights_AB) == sampler.checksum(weights_AB.clone()) != sampler.checksum(changed)
        assert sampler.checksum(weights_AB.T) == sampler.checksum(weights_AB), "of the numbers, wherever they lie"


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["method.rewards=[]"], r"method\.rewards=\[\]: must name at least one reward"),
        (["method.rewards=[{function: evals.rewards.spurious.unifrom}]"], r"method\.rewards\[0\]\.function"),
        ([REWARD, "method.group_size=0"], r"method\.group_size=0"),
        ([REWARD, "method.clip_low=0"], r"method\.clip_low"),
        ([REWARD, "method.kl_in=reward"], r"method\.kl=k3: with method\.kl_in=reward"),
        ([REWARD, "dataset.type=pair"], r"dataset\.type=pair: method=rl/grpo needs problem"),
        ([REWARD, "method=rl/murphy", "method.dynamic_sampling=1"], r"method\.dynamic_sampling=1"),
    ],
)
def test_bad_settings_are_told_before_anything_starts(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_spec([*RUN, "method=rl/grpo", *words])


def test_a_stale_sampler_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that goes on with the first weights: the gap grows, and the run ends with one line."""
    import copy

    from runners import model_context

    write, kept = model_context.write, {}

    def stale(model: Any, *words: Any, **more: Any) -> Any:
        inner = getattr(model, "module", model)
        first = kept.setdefault("model", copy.deepcopy(inner))
        return write(first, *words, **more)

    monkeypatch.setattr(model_context, "write", stale)
    ended = retable(*RUN, "method=rl/grpo", *SMALL, "training.steps=40", "optimizer.lr=0.1", f"outputs={tmp_path}")
    assert ended.code != 0
    assert "method.max_sampler_gap=0.1: log-probabilities of sampler and trainer differ" in ended.err
