"""D2O: the worked samples, DPO as its limit, what is drawn before training and what during it."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.d2o import D2o, D2oConfig, d2o_loss
from tests.methods.mix.fakes import EOS, TOKENIZER, byte_llama
from tests.methods.preference.given import (
    PreferenceContext,
    forward_of,
    given,
    grouped_texts,
    logps_by_hand,
    loss_and_gradient,
    micro_batches,
    started,
)

# Log-ratios -0.5 of the bad response, 0.5, -0.5 and 0.2 of three samples.
TOY = {"logps": [-12.0, -9.0, -10.5, -12.0], "reference": [-11.5, -9.5, -10.0, -12.2], "sizes": [4],
       "labels": [0.0, 1.0, 1.0, 1.0]}  # fmt: skip
ROWS = [("copy 12:", [" 21"]), ("sort 321:", [" 3"]), ("flip 7:", [" 8888"])]
NEGATIVES = grouped_texts(ROWS, [0.0, 0.0, 0.0])
PAIRS = grouped_texts([(prompt, [" good", *bad]) for prompt, bad in ROWS], [1.0, 0.0] * 3)


def method_of(**settings):
    return D2o(D2oConfig(**{"samples": 3, "max_new_tokens": 6, **settings}))


# The loss -------------------------------------------------------------------------------------------------------------


def test_known_answers():
    loss, gradient = loss_and_gradient(method_of(), given(**TOY))
    assert loss == pytest.approx(0.665215, abs=5e-7)
    slope = 0.1 / (1 + math.exp(0.056667))
    assert gradient == pytest.approx([slope, *[-slope / 3] * 3], abs=1e-7)


def test_at_the_reference():
    loss, _ = loss_and_gradient(method_of(), given([-3.0] * 4, [-3.0] * 4, [4], TOY["labels"]))
    assert loss == pytest.approx(math.log(2))


def test_one_sample_is_dpo():
    loss, gradient = loss_and_gradient(method_of(samples=1), given([-0.5, 1.0], None, [2], [0.0, 1.0]))
    assert loss == pytest.approx(0.6209570478, abs=1e-10)
    assert gradient == pytest.approx([0.0462570155, -0.0462570155], abs=1e-10)


def test_alpha_is_of_the_bad_response():
    loss, gradient = loss_and_gradient(method_of(alpha=0.3), given(**TOY))
    assert loss == pytest.approx(math.log1p(math.exp(-(0.1 * 0.2 / 3 + 0.3 * 0.5))))
    assert gradient[0] == pytest.approx(-9 * gradient[1])


def test_bound_and_order():
    """At the mean log-ratio it is no more than the mean over single samples; their order does not matter."""
    generator = torch.Generator().manual_seed(0)
    samples, bad = torch.randn(20, 5, generator=generator) * 9, torch.randn(20, generator=generator)
    whole = d2o_loss(samples, bad, 1.0, 0.5)
    single = torch.stack([d2o_loss(samples[:, [k]], bad, 1.0, 0.5) for k in range(5)]).mean(0)
    assert (whole <= single + 1e-6).all() and (whole < single - 0.1).any()
    torch.testing.assert_close(d2o_loss(samples.flip(1), bad, 1.0, 0.5), whole)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_log_ratios(size):
    responses = given([size, -size, size, -size], [0.0] * 4, [4], TOY["labels"], torch.float32)
    loss, gradient = loss_and_gradient(method_of(), responses)
    assert math.isfinite(loss) and np.isfinite(gradient).all()


# Samples drawn before training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [NEGATIVES, PAIRS], ids=["negative", "pair"])
def test_samples_stand_behind_each_bad_response(data):
    written = [[64 + place, EOS] for place in range(9)]
    context = PreferenceContext(data, written=written)
    method = started(method_of(), context)
    (asked,) = context.asked
    prompts = [TOKENIZER(prompt)["input_ids"] for prompt, _ in ROWS]
    assert asked.prompts == [prompt for prompt in prompts for _ in range(3)]
    assert (asked.sampling.temperature, asked.sampling.max_new_tokens, asked.sampling.eos) == (0.8, 6, EOS)
    assert str(context.seed) in asked.what, "another seed draws others"
    arranged = context.examples
    assert arranged.groups.tolist() == [0, 4, 8, 12] and arranged.labels.tolist() == [0.0, 1.0, 1.0, 1.0] * 3
    for row, (prompt, (bad,)) in enumerate(ROWS):
        assert TOKENIZER.decode(arranged.response(4 * row), skip_special_tokens=True) == bad
        for sample in range(3):
            index = 4 * row + 1 + sample
            assert arranged.response(index).tolist() == written[3 * row + sample]
            assert TOKENIZER.decode(arranged.prompt(index), skip_special_tokens=True) == prompt
    assert method.count(micro_batches(context)[0]) == 3


def test_samples_are_drawn_under_the_template():
    """And stand behind the plain prompt."""
    context = PreferenceContext(NEGATIVES, written=[[65, EOS]] * 9)
    started(method_of(template="Be kind.\n{prompt}"), context)
    assert context.asked[0].prompts[0] == TOKENIZER("Be kind.\ncopy 12:")["input_ids"]
    assert TOKENIZER.decode(context.examples.prompt(1), skip_special_tokens=True) == "copy 12:"


@pytest.mark.parametrize("packing", [False, True])
def test_one_sequence_at_a_time(packing):
    context = PreferenceContext(NEGATIVES, byte_llama(1), byte_llama(0))
    method = started(method_of(beta=0.3, alpha=0.2), context)
    (batch,) = micro_batches(context, packing=packing)
    assert method.rollout(batch, 10**6) is batch, "never drawn anew"
    loss = method.loss(forward_of(method, context, batch))
    examples, expected = context.examples, 0.0
    for group in range(3):
        ratios = []
        for index in range(4 * group, 4 * group + 4):
            words = examples.prompt(index).tolist(), examples.response(index).tolist()
            ratios.append(logps_by_hand(context, *words) - logps_by_hand(context, *words, role="reference"))
        expected += math.log1p(math.exp(-(0.3 * np.mean(ratios[1:]) - 0.2 * ratios[0])))
    assert loss.sum.item() == pytest.approx(expected, rel=1e-4)


# And during it --------------------------------------------------------------------------------------------------------


def test_samples_are_drawn_anew_once_it_is_time():
    context = PreferenceContext(NEGATIVES)
    method = started(method_of(online_after=2, reference="live", template="Kind: {prompt}"), context)
    assert method.frozen == ("reference",) and D2o.frozen == ()
    (data,) = micro_batches(context)
    assert method.rollout(data, 1) is data and context.sampled == []
    batch = method.rollout(data, 2)
    (asked,) = context.sampled
    firsts = data.example_S[::4].tolist()
    assert asked.prompts == [context.examples.prompt(index).tolist() for index in firsts for _ in range(3)]
    assert asked.role == "policy" and asked.sampling.temperature == 0.8
    assert batch.label_S.tolist() == data.label_S.tolist() and batch.group_S.tolist() == data.group_S.tolist()
    for group, index in enumerate(firsts):
        bad = batch.input_ids_BT[4 * group][batch.target_mask_BT[4 * group]]
        assert bad.tolist() == context.examples.response(index).tolist()
    again = method.rollout(data, 2).input_ids_BT.tolist()
    assert again == batch.input_ids_BT.tolist() and method.rollout(data, 3).input_ids_BT.tolist() != again
    loss = method.loss(forward_of(method, context, batch)).sum
    loss.backward()
    assert math.isfinite(loss.item()) and any(p.grad.abs().max() > 0 for p in context.model.parameters())


def test_a_batch_without_targets_takes_part_and_stays_without():
    context = PreferenceContext(NEGATIVES)
    method = started(method_of(online_after=0, reference="live"), context)
    (data,) = micro_batches(context)
    data.target_mask_BT[:] = False
    batch = method.rollout(data, 0)
    assert len(context.sampled) == 1 and method.count(batch) == 0


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"online_after": 5}, r"^method\.reference=cached: .* method\.online_after it must be live$"),
    ({"template": "no place"}, r"^method\.template='no place': must contain \{prompt\}, nothing else$"),
    ({"template": "{prompt}{answer}"}, r"^method\.template="),
    ({"template": "{prompt"}, r"^method\.template=.*a literal brace is written twice"),
])  # fmt: skip
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        D2oConfig(**settings)


@pytest.mark.parametrize(("key", "value"), [
    ("beta", 0.0), ("alpha", -1.0), ("samples", 0), ("temperature", 0.0), ("online_after", -1),
])  # fmt: skip
def test_out_of_range(key, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(D2oConfig).validate_python({key: value})
    assert caught.value.errors()[0]["loc"] == (key,)
