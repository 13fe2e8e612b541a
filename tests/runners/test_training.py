"""The training loop: what must not change a loss curve, what must stop it, and what it continues from."""

import gc
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from methods.finetune.flow import Flow, FlowConfig
from methods.kinds.causal import Causal
from runners import checkpoints, processes, training
from runners.engine import NonFiniteError
from runners.schema import Engine
from tests.curves import Curve, StopHere, stopping_after
from tests.models import batches_of, random_examples, tiny_llama

GOLDEN = Path(__file__).parent / "golden_loss_curve.json"


@pytest.fixture(scope="module", autouse=True)
def joined(tmp_path_factory):
    processes.join(tmp_path_factory.mktemp("run") / "run")


LAYOUTS = {
    "accumulated": {"micro": 2},
    "one by one": {"micro": 1},
    "uneven": {"micro": 4},
    "packed": {"packing": True},
    "packed, accumulated": {"packing": True, "micro": 1},
}


@pytest.mark.parametrize("method", ["sft", "flow"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_changes_neither_loss_nor_gradient(tmp_path, method, layout):
    whole = Curve(tmp_path / "a", method=method)
    other = Curve(tmp_path / "b", method=method, **LAYOUTS[layout])
    np.testing.assert_allclose(other.column("train/loss"), whole.column("train/loss"), rtol=2e-5)
    np.testing.assert_allclose(other.column("train/gradient_norm"), whole.column("train/gradient_norm"), rtol=2e-4)


def test_no_drift_over_fifty_steps(tmp_path):
    """Rounding differences between layouts have no preferred sign: accumulation adds no bias."""
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.05}
    whole = Curve(tmp_path / "a", steps=50, optimizer=sgd)
    split = Curve(tmp_path / "b", steps=50, optimizer=sgd, micro=2)
    residual = split.column("train/loss") - whole.column("train/loss")
    scale = np.abs(whole.column("train/loss")).max()
    assert np.abs(residual).max() < 1e-5 * scale
    spread = residual.std() + 1e-9 * scale
    assert abs(residual.mean()) < 4 * spread / math.sqrt(len(residual)) + 1e-7 * scale


def test_order_inside_the_batch_changes_nothing(tmp_path):
    straight = Curve(tmp_path / "a")

    def shuffled(curve):
        original = type(curve.batches).global_batch
        generator = np.random.default_rng(3)
        object.__setattr__(
            curve.batches, "global_batch", lambda step: generator.permutation(original(curve.batches, step))
        )

    other = Curve(tmp_path / "b", poison=shuffled)
    np.testing.assert_allclose(other.column("train/loss"), straight.column("train/loss"), rtol=2e-5)


def test_loss_is_divided_by_the_tokens_of_the_global_batch(tmp_path):
    """Not the mean of the micro-batches' means: with lengths this uneven the two differ by far."""
    curve = Curve(tmp_path, steps=1, micro=1)
    model = tiny_llama()
    total = count = 0.0
    means = []
    for batch in curve.batches.of_step(0):
        logps = Causal().token_logps(model, batch)
        total, count = total - logps.sum().item(), count + len(logps)
        means.append(-logps.mean().item())
    assert curve.column("train/loss")[0] == pytest.approx(total / count, rel=1e-5)
    assert abs(np.mean(means) - total / count) > 1e-3


def test_golden_loss_curve(tmp_path):
    """Fifty steps of SFT as they were when this file was written: `RETABLE_WRITE_GOLDEN=1` writes it anew."""
    import os

    curve = Curve(tmp_path, steps=50, training_changes={"schedule": "cosine"})
    losses = curve.column("train/loss")
    if os.environ.get("RETABLE_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps([round(float(loss), 7) for loss in losses]))
    np.testing.assert_allclose(losses, json.loads(GOLDEN.read_text()), rtol=1e-3)
    assert losses[-1] < 0.9 * losses[0]


def test_equals_a_plain_pytorch_loop(tmp_path):
    """Clipping, schedule, AdamW and accumulation against a loop of a dozen lines."""
    curve = Curve(tmp_path, steps=6, micro=2, training_changes={"clip_norm": 0.5, "schedule": "linear"})
    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * training.rate(step, 6, "linear", 0.1)
        (batch,) = batches_of(random_examples(48), batch_size=6).of_step(step)
        loss = -Causal().token_logps(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        assert curve.column("train/loss")[step] == pytest.approx(loss.item(), rel=2e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(curve.weights[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_give_the_losses_of_stage_zero(tmp_path, stage):
    plain = Curve(tmp_path / "a", steps=5, micro=2)
    sharded = Curve(tmp_path / "b", steps=5, micro=2, engine=Engine(zero_stage=stage))
    np.testing.assert_allclose(sharded.column("train/loss"), plain.column("train/loss"), rtol=1e-5)
    for name, value in plain.weights.items():
        torch.testing.assert_close(sharded.weights[name].float(), value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("precision", "stage"), [("bf16", 0), ("bf16", 1), ("bf16", 3), ("bf16_autocast", 0)])
def test_half_precision_follows_full_precision(tmp_path, precision, stage):
    plain = Curve(tmp_path / "a", steps=20)
    half = Curve(tmp_path / "b", steps=20, engine=Engine(precision=precision, zero_stage=stage))
    np.testing.assert_allclose(half.column("train/loss"), plain.column("train/loss"), rtol=0.05)
    assert not np.array_equal(half.column("train/loss"), plain.column("train/loss"))


def test_activation_checkpointing_changes_nothing(tmp_path):
    plain = Curve(tmp_path / "a", steps=3)
    saved = Curve(tmp_path / "b", steps=3, engine=Engine(activation_checkpointing=True))
    np.testing.assert_allclose(saved.column("train/loss"), plain.column("train/loss"), rtol=1e-5)


def _poison_loss(curve):
    inner = curve.method.loss

    def loss(forward):
        computed = inner(forward)
        if len(curve.records) == 2:  # the third step
            computed = type(computed)(computed.sum * math.nan, computed.metrics)
        return computed

    curve.method.loss = loss


def _poison_gradient(curve):
    parameter = next(iter(curve.engine.engine.module.parameters()))
    parameter.register_hook(lambda gradient: gradient * math.inf if len(curve.records) == 2 else gradient)


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize(
    ("poison", "what"), [(_poison_loss, "loss is nan"), (_poison_gradient, "gradient is not finite")]
)
def test_non_finite_numbers_stop_before_the_update(tmp_path, stage, poison, what):
    """Logged step or not, whatever the stage; the message names step and batch; the last checkpoint stays good."""
    curve = Curve.__new__(Curve)
    with pytest.raises(NonFiniteError) as raised:
        curve.__init__(
            tmp_path, poison=poison, engine=Engine(zero_stage=stage), training_changes={"checkpoint_every": 1}
        )
    message = str(raised.value)
    assert what in message and "step 3 of 8" in message and "batch of examples [" in message
    assert len(curve.records) == 2
    assert all(bool(torch.isfinite(value).all()) for value in curve.weights.values())
    last = checkpoints.latest(tmp_path / "checkpoints")
    assert last is not None and last.name == checkpoints.name_of(2)


def test_unlogged_non_finite_step_is_seen(tmp_path):
    def poison(curve):
        inner, calls = curve.method.loss, []

        def loss(forward):
            calls.append(1)
            computed = inner(forward)
            return type(computed)(computed.sum * (math.inf if len(calls) == 4 else 1.0))

        curve.method.loss = loss

    with pytest.raises(NonFiniteError, match="step 4 of 8"):
        Curve(tmp_path, poison=poison, training_changes={"log_every": 1000})


@pytest.mark.parametrize("method", ["sft", "flow"])
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_resumed_equals_uninterrupted(tmp_path, method, stage):
    """With dropout: the random generators must go on where they were."""
    settings = {"method": method, "engine": Engine(zero_stage=stage)}

    def model():
        return tiny_llama(attention_dropout=0.5)

    whole = Curve(tmp_path / "a", model=model(), **settings)
    calm = Curve(tmp_path / "c", **settings)
    assert not np.array_equal(calm.losses, whole.losses), "dropout is at work"
    cut = {"checkpoint_every": 2}
    with pytest.raises(StopHere):
        Curve(tmp_path / "b", model=model(), poison=stopping_after(6), training_changes=cut, **settings)
    fresh = Flow(FlowConfig()) if method == "flow" else None
    if fresh is not None:
        fresh.weights_n = torch.zeros(48)  # what the checkpoint holds must replace it
    resumed = Curve(tmp_path / "b", model=model(), start_method=fresh, training_changes=cut, **settings)
    assert [step for step, _ in resumed.records] == [5, 6, 7, 8]
    assert np.array_equal(resumed.losses, whole.losses[4:])
    assert all(torch.equal(value, whole.weights[name]) for name, value in resumed.weights.items())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_closed_engine_leaves_no_weights_behind(tmp_path, stage):
    """Else a sweep would hold the weights and optimizer states of every run it has done."""

    def large():
        gc.collect()
        return sum(isinstance(item, torch.Tensor) and item.numel() > 60_000 for item in gc.get_objects())

    before = large()
    curve = Curve(tmp_path, steps=2, engine=Engine(zero_stage=stage), model=tiny_llama(hidden_size=256))
    assert large() > before, "the weights that the test holds"
    del curve
    assert large() == before


def test_schedules():
    def curve(schedule, warmup):
        return [training.rate(step, 10, schedule, warmup) for step in range(10)]

    assert curve("constant", 0.0) == [1.0] * 10
    assert curve("constant", 0.3)[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert curve("linear", 0.0) == pytest.approx([1 - step / 10 for step in range(10)])
    cosine = curve("cosine", 0.2)
    assert cosine[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert cosine[6] == pytest.approx(0.5)  # half way down between step 2 and step 10
    assert all(0 < value <= 1 for value in cosine)


def test_the_step_schedule_multiplies_at_each_milestone():
    found = [training.rate(step, 10, "step", 0.1, [0.3, 0.6, 0.8], 0.5) for step in range(10)]
    assert found == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125])
