"""KTO: the worked responses, the reference point and whose responses it is made of, TRL's trainer."""

import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.kto import Kto, KtoConfig, kto_losses, kto_z, with_mismatched
from methods.preference.labelled import singles
from tests.methods.mix.fakes import TOKENIZER, byte_llama
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

NAN = math.nan
KTO = Kto(KtoConfig())
# Log-ratios 1 and -0.5, and mismatched ones whose mean is 0.2.
TOY = {"logps": [-12.0, -9.0, -15.0, -8.0], "reference": [-13.0, -9.5, -14.5, -7.9], "sizes": [2, 2],
       "labels": [1.0, NAN, 0.0, NAN]}  # fmt: skip
ROWS = [("copy 12:", [" 12"]), ("sort 321:", [" 123"]), ("flip 7:", [" 7"]), ("name:", [" x"])]
LABELLED = grouped_texts(ROWS, [1.0, 0.0, 1.0, 0.0])
PAIRS = grouped_texts([("copy 12:", [" 12", " 21"]), ("sort 321:", [" 123", " 3"])], [1.0, 0.0, 1.0, 0.0])


def decoded(examples):
    """Prompt and response of every sequence."""
    return [
        tuple(TOKENIZER.decode(part, skip_special_tokens=True) for part in (examples.prompt(i), examples.response(i)))
        for i in range(len(examples))
    ]


# The loss -------------------------------------------------------------------------------------------------------------


def test_known_answers():
    losses = kto_losses(torch.tensor([1.0, -0.5]).double(), torch.tensor([True, False]), 0.2, 0.1, 1.0, 1.0)
    assert losses.tolist() == pytest.approx([0.4800106598, 0.4825071423], abs=1e-10)
    assert losses.mean().item() == pytest.approx(0.4812589011, abs=1e-10)
    losses = kto_losses(torch.tensor([1.0, -0.5]).double(), torch.tensor([True, False]), 0.0, 0.1, 1.0, 1.0)
    assert losses.tolist() == pytest.approx([0.475021, 0.487503], abs=5e-7)


def test_known_answers_through_the_method():
    loss, gradient = loss_and_gradient(KTO, given(**TOY))
    assert loss / 2 == pytest.approx(0.4812589011, abs=1e-10)
    assert [gradient[0], gradient[2]] == pytest.approx([-0.0249600426, 0.0249694000], abs=1e-10)
    assert [gradient[1], gradient[3]] == [0, 0], "z has no gradient"


def test_at_the_reference():
    loss, _ = loss_and_gradient(KTO, given([-1.0] * 4, [-1.0] * 4, [2, 2], [1.0, NAN, 0.0, NAN]))
    assert loss / 2 == pytest.approx(0.5)


def test_z_is_not_negative():
    assert kto_z(torch.tensor([0.5, -0.1])).item() == pytest.approx(0.2)
    assert kto_z(torch.tensor([0.5, -0.7])).item() == 0.0
    assert not kto_z(torch.tensor([1.0], requires_grad=True)).requires_grad


def test_weights():
    loss, gradient = loss_and_gradient(Kto(KtoConfig(lam_D=2.0, lam_U=0.5)), given(**TOY))
    assert loss == pytest.approx(2 * 0.4800106598 + 0.5 * 0.4825071423, abs=1e-9)
    assert gradient[0] == pytest.approx(2 * -0.0249600426, abs=1e-9)


def test_order_does_not_matter():
    order = [2, 3, 0, 1]
    turned = given(*([TOY[key][i] for i in order] for key in ("logps", "reference")), [2, 2], [0.0, NAN, 1.0, NAN])
    assert loss_and_gradient(KTO, turned)[0] == pytest.approx(loss_and_gradient(KTO, given(**TOY))[0], abs=1e-14)


def test_a_constant_of_the_prompt_does_not_cancel():
    """As it would for pairs: a response is judged for itself."""
    moved = given([value + 3 for value in TOY["logps"]], TOY["reference"], [2, 2], TOY["labels"])
    assert abs(loss_and_gradient(KTO, moved)[0] - loss_and_gradient(KTO, given(**TOY))[0]) < 1e-12, "z moves with it"
    moved = given([-9.0, -9.0, -12.0, -8.0], TOY["reference"], [2, 2], TOY["labels"])
    assert abs(loss_and_gradient(KTO, moved)[0] - loss_and_gradient(KTO, given(**TOY))[0]) > 1e-4


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_log_ratios(size):
    logps = [size, -size, -size, size]
    loss, gradient = loss_and_gradient(KTO, given(logps, [0.0] * 4, [2, 2], TOY["labels"], torch.float32))
    assert math.isfinite(loss) and np.isfinite(gradient).all()


# Mismatched responses -------------------------------------------------------------------------------------------------


def test_every_response_brings_that_of_the_example_before_it():
    arranged = with_mismatched(LABELLED)
    own, other = decoded(arranged)[0::2], decoded(arranged)[1::2]
    assert own == [(prompt, response) for prompt, (response,) in ROWS]
    assert other == [("copy 12:", " x"), ("sort 321:", " 12"), ("flip 7:", " 123"), ("name:", " 7")]
    assert arranged.groups.tolist() == [0, 2, 4, 6, 8]
    np.testing.assert_array_equal(arranged.labels, np.array([1, NAN, 0, NAN, 1, NAN, 0, NAN], dtype=np.float32))


def test_pairs_are_taken_apart_and_mismatched_with_another_prompt():
    arranged = with_mismatched(singles(PAIRS))
    assert decoded(arranged)[0::2] == [("copy 12:", " 12"), ("copy 12:", " 21"), ("sort 321:", " 123"),
                                       ("sort 321:", " 3")]  # fmt: skip
    assert decoded(arranged)[1::2] == [("copy 12:", " 3"), ("copy 12:", " 3"), ("sort 321:", " 21"),
                                       ("sort 321:", " 21")]  # fmt: skip
    assert arranged.labels[0::2].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_a_mismatched_sequence_is_no_longer_than_the_longest():
    texts = grouped_texts([("a long prompt:", [" 1"]), ("b:", [" a longer response"])], [1.0, 0.0])
    arranged = with_mismatched(texts)
    assert arranged.lengths.max() == texts.lengths.max() == 22
    assert decoded(arranged)[1] == ("a long prompt:", " a long") and decoded(arranged)[3] == ("b:", " 1")


def test_one_prompt_is_not_enough():
    with pytest.raises(ValueError, match=r"^dataset\.type: method=kto takes responses to other prompts"):
        with_mismatched(grouped_texts([("a:", ["1"]), ("a:", ["2"])], [1.0, 0.0]))


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_one_sequence_at_a_time(packing, live):
    """The whole way from texts, whatever the layout and wherever the reference's log-probabilities come from."""
    context = PreferenceContext(LABELLED, byte_llama(1), byte_llama(0))
    method = started(Kto(KtoConfig(beta=0.3, reference="live" if live else "cached")), context)
    (batch,) = micro_batches(context, packing=packing)
    assert method.count(batch) == 4
    loss = method.loss(forward_of(method, context, batch))
    examples = context.examples
    ratios = []
    for index in range(len(examples)):
        words = examples.prompt(index).tolist(), examples.response(index).tolist()
        ratios.append(logps_by_hand(context, *words) - logps_by_hand(context, *words, role="reference"))
    z = max(0.0, float(np.mean(ratios[1::2])))
    assert z > 0.01
    expected = sum(
        1 / (1 + math.exp(0.3 * (a - z) * (1 if label else -1)))
        for a, label in zip(ratios[0::2], [1, 0, 1, 0], strict=True)
    )
    assert loss.sum.item() == pytest.approx(expected, rel=1e-5)
    assert loss.metrics["z"].item() / 4 == pytest.approx(z, rel=1e-4)
    assert loss.metrics["good_share"].item() == 2
    good = 0.3 * (ratios[0] + ratios[4]) / 2
    assert loss.metrics["good_reward"].item() / 4 == pytest.approx(good, rel=1e-4)


def test_the_micro_batch_is_the_scope_of_z():
    context = PreferenceContext(LABELLED, byte_llama(1), byte_llama(0))
    method = started(Kto(KtoConfig()), context)
    assert Kto.couples == "micro-batch"
    whole = sum(method.loss(forward_of(method, context, b)).sum.item() for b in micro_batches(context))
    split = sum(method.loss(forward_of(method, context, b)).sum.item() for b in micro_batches(context, micro=2))
    assert whole != pytest.approx(split, rel=1e-6)


# TRL ------------------------------------------------------------------------------------------------------------------


def test_loss_and_gradient_of_trl():
    """Its trainer's own computation, on the same models and sequences."""
    trainer = pytest.importorskip("trl.trainer.kto_trainer").KTOTrainer
    pytest.importorskip("accelerate")
    context = PreferenceContext(LABELLED, byte_llama(1), byte_llama(0))
    method = started(Kto(KtoConfig(beta=0.2, lam_D=1.5, lam_U=0.7)), context)
    (batch,) = micro_batches(context)
    ours = method.loss(forward_of(method, context, batch)).sum / 4
    policy = context.roles["policy"]
    our_gradient = torch.autograd.grad(ours, list(policy.parameters()))

    def model_of(role):
        """As TRL calls it: log-probabilities of the labels (0 where there are none)."""

        def call(input_ids, attention_mask, labels, use_cache=False, fused_lm_head=True):
            logits = context.roles[role](input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
            wanted = labels[:, 1:]
            logps = logits.log_softmax(-1).gather(-1, wanted.clamp_min(0)[..., None])[..., 0]
            zeros = torch.zeros_like(logps)
            return SimpleNamespace(log_probs=logps * (wanted != -100), entropy=zeros, mean_logits=zeros)

        call.training = True
        return call

    examples, inputs = context.examples, {"label": torch.tensor([True, False, True, False])}
    for prefix, first in (("", 0), ("KL_", 1)):
        places = range(first, len(examples), 2)
        width = int(max(examples.lengths[i] for i in places))
        ids, attended, target = (torch.zeros(4, width, dtype=torch.long) for _ in range(3))
        for row, index in enumerate(places):
            end = int(examples.lengths[index])
            ids[row, :end] = torch.from_numpy(examples.sequence(index).copy()).long()
            attended[row, :end] = 1
            target[row, int(examples.targets[index]) : end] = 1
        inputs |= {f"{prefix}input_ids": ids, f"{prefix}attention_mask": attended, f"{prefix}completion_mask": target}
    gathered = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda value: value)
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False, _modules={}),
        ref_model=model_of("reference"),
        accelerator=gathered,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, gradient_checkpointing=False),
        beta=0.2,
        desirable_weight=1.5,
        undesirable_weight=0.7,
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=False,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        _tp_size=1,
        _total_train_tokens=0,
    )
    stub._compute_kl_logps = lambda model, batch: trainer._compute_kl_logps(stub, model, batch)
    theirs = trainer._compute_loss(stub, model_of("policy"), inputs, False)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert stub._metrics["train"]["kl"][0] > 0.01
    for a, b in zip(our_gradient, torch.autograd.grad(theirs, list(policy.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_a_micro_batch_of_one():
    training = {"batch_size": 4, "micro_batch_size": 1, "packing": False}
    with pytest.raises(ValueError, match=r"^training\.batch_size=1: method=kto"):
        started(Kto(KtoConfig()), PreferenceContext(LABELLED, training={**training, "batch_size": 1, "packing": True}))
    with pytest.raises(ValueError, match=r"^training\.micro_batch_size=1: method=kto"):
        started(Kto(KtoConfig()), PreferenceContext(LABELLED, training=training))
    started(Kto(KtoConfig()), PreferenceContext(LABELLED, training={**training, "packing": True}))


@pytest.mark.parametrize(("key", "value"), [("beta", 0.0), ("lam_D", -1.0), ("lam_U", NAN), ("reference", "none")])
def test_out_of_range(key, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(KtoConfig).validate_python({key: value})
    assert caught.value.errors()[0]["loc"] == (key,)
