"""Replay: the old data as the runner tokenises it, and what mixes have in common."""

import pytest

from methods.forward import Forward
from methods.kinds.causal import Causal
from methods.mix.replay import Replay, ReplayConfig
from tests.methods.mix.fakes import FakeContext, byte_llama
from tests.models import batches_of


def test_takes_the_data_set_it_names():
    settings = {"source": "mini_world", "skill": "pretraining", "loss_on": "all"}
    context = FakeContext(byte_llama())
    mix = Replay(ReplayConfig(dataset=settings))
    examples = mix.examples(context)
    assert context.asked == [settings]
    assert mix.report(examples) == {"mix/examples": 2.0, "mix/target_tokens": 5.0, "mix/distinct": 1.0}


@pytest.mark.parametrize("packing", [False, True])
def test_loss_is_a_sum_over_target_tokens(packing):
    model = byte_llama().eval()
    mix = Replay(ReplayConfig(dataset={}))
    examples = mix.examples(FakeContext(model))
    sums = []
    for batch in batches_of(examples, batch_size=2, micro=2, packing=packing).of_step(0):
        sums.append((mix.loss(Forward(Causal(), {"policy": model}, batch)).sum.item(), mix.count(batch)))
    (found,) = sums
    singles = []
    for batch in batches_of(examples, batch_size=2, micro=1).of_step(0):
        singles.append((mix.loss(Forward(Causal(), {"policy": model}, batch)).sum.item(), mix.count(batch)))
    assert found[1] == sum(count for _, count in singles) == 5
    assert found[0] == pytest.approx(sum(value for value, _ in singles), rel=1e-5)
