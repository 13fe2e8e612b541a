"""HyPO: the worked estimate, its expectation over everything that can be drawn, DPO as its limit, own samples."""

import itertools
import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.hypo import Hypo, HypoConfig, sampled_kl
from tests.methods.mix.fakes import EOS, byte_llama
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
# DPO's worked pair, and own samples with log-ratios 0.6, 0.2, -0.1, 0.5.
OWN = [0.6, 0.2, -0.1, 0.5]
TOY = {"logps": [-10.0, -12.0, -7.4, -7.8, -8.1, -7.5], "reference": [-11.0, -11.5] + [-8.0] * 4, "sizes": [6],
       "labels": [1.0, 0.0] + [NAN] * 4}  # fmt: skip
PAIRS = grouped_texts([("copy 12:", [" 12", " 21"]), ("sort 321:", [" 123", " 3"])], [1.0, 0.0, 1.0, 0.0])


def method_of(**settings):
    return Hypo(HypoConfig(**{"beta": 0.1, "samples": 4, "max_new_tokens": 6, **settings}))


# The estimator --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "expected"), [(0.1, 0.650957), (1e-4, 0.620987), (0.0, 0.620957)])
def test_known_answers(weight, expected):
    loss, gradient = loss_and_gradient(method_of(lambda_kl=weight), given(**TOY))
    assert loss == pytest.approx(expected, abs=5e-7)
    assert gradient[:2] == pytest.approx([-0.046257, 0.046257], abs=5e-7), "DPO's, whatever the samples"


def test_leave_one_out_by_hand():
    """Of two samples the advantages are 0.4 and -0.4: descent lowers the first, and raises the second."""
    logps = torch.tensor([[0.6, 0.2]], dtype=torch.float64, requires_grad=True)
    value = sampled_kl(logps, torch.zeros(1, 2))
    (gradient,) = torch.autograd.grad(value.sum(), logps)
    assert value.item() == pytest.approx(0.4) and gradient.tolist() == [pytest.approx([0.2, -0.2])]


def test_gradient_of_four_samples():
    _, gradient = loss_and_gradient(method_of(lambda_kl=0.1), given(**TOY))
    expected = [0.1 / 4 * (own - (sum(OWN) - own) / 3) for own in OWN]
    assert gradient[2:] == pytest.approx(expected)


def test_equal_log_ratios_push_nothing():
    """At the reference the term and its gradient are 0 in every sample; a constant log-ratio is not the gradient's."""
    for constant, value in ((0.0, 0.0), (0.7, 0.7)):
        responses = given([-1.0, -2.0, *[constant - 3.0] * 4], [-1.0, -2.0, *[-3.0] * 4], [6], TOY["labels"])
        loss, gradient = loss_and_gradient(method_of(lambda_kl=1.0), responses)
        assert loss == pytest.approx(math.log(2) + value) and gradient[2:] == pytest.approx([0.0] * 4, abs=1e-15)


@pytest.mark.parametrize("samples", [2, 3])
def test_its_expectation_is_the_gradient_of_the_exact_divergence(samples):
    """A tabular policy over four responses: the mean over all draws, by their probability, against autograd."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(4, generator=generator, dtype=torch.float64).log_softmax(0)
    logps = logits.log_softmax(0)
    exact = (logps.exp() * (logps - reference)).sum()
    (expected,) = torch.autograd.grad(exact, logits, retain_graph=True)
    probabilities = logps.exp().detach()
    value, found = 0.0, torch.zeros(4, dtype=torch.float64)
    for drawn in itertools.product(range(4), repeat=samples):
        index = torch.tensor([drawn])
        estimate = sampled_kl(logps[index], reference[index]).sum()
        probability = probabilities[list(drawn)].prod()
        value += float(probability * estimate.detach())
        found += probability * torch.autograd.grad(estimate, logits, retain_graph=True)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert value == pytest.approx(exact.item())
    naive = (probabilities * (logps - reference)).sum()  # the log-ratio itself, differentiated
    assert torch.autograd.grad(naive, logits)[0].abs().max() < 1e-12 < expected.abs().max()


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_log_ratios(size):
    responses = given([size, -size, size, -size, 0.0, 1.0], [0.0] * 6, [6], TOY["labels"], torch.float32)
    loss, gradient = loss_and_gradient(method_of(lambda_kl=1.0), responses)
    assert math.isfinite(loss) and np.isfinite(gradient).all()


def test_order_of_the_samples_does_not_matter():
    turned = {**TOY, "logps": TOY["logps"][:2] + TOY["logps"][:1:-1]}
    assert loss_and_gradient(method_of(), given(**turned))[0] == pytest.approx(
        loss_and_gradient(method_of(), given(**TOY))[0]
    )


# Rollout --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True])
def test_own_samples_stand_behind_each_pair(packing):
    context = PreferenceContext(PAIRS, byte_llama(1), byte_llama(0))
    method = started(method_of(samples=3, lambda_kl=0.2), context)
    (data,) = micro_batches(context, packing=packing)
    batch = method.rollout(data, step=0)
    (asked,) = context.sampled
    assert (asked.role, asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == ("policy", 1, 1, 0)
    assert method.count(batch) == 2 and batch.group_S.tolist() == [0] * 5 + [1] * 5
    assert batch.label_S.isnan().tolist() == [False, False, True, True, True] * 2
    rows = []
    for row in range(10):
        own = batch.sequence_BT == row
        tokens, target = batch.input_ids_BT[own], batch.target_mask_BT[own]
        rows.append((tokens[~target].tolist(), tokens[target].tolist()))
    firsts = batch.example_S[::5].tolist()
    for group, first in enumerate(firsts):
        prompt = PAIRS.prompt(first).tolist()
        assert all(found == prompt for found, _ in rows[5 * group : 5 * group + 5])
        assert [r for _, r in rows[5 * group : 5 * group + 2]] == [PAIRS.response(first + s).tolist() for s in (0, 1)]
        for _, response in rows[5 * group + 2 : 5 * group + 5]:
            assert 1 <= len(response) <= 6 and EOS not in response[:-1]
    loss = method.loss(forward_of(method, context, batch))
    ratios = np.array([logps_by_hand(context, *w) - logps_by_hand(context, *w, role="reference") for w in rows])
    ratios = ratios.reshape(2, 5)
    expected = np.log1p(np.exp(-0.1 * (ratios[:, 0] - ratios[:, 1]))).sum() + 0.2 * ratios[:, 2:].mean(1).sum()
    assert loss.sum.item() == pytest.approx(expected, rel=1e-4)
    assert loss.metrics["kl"].item() == pytest.approx(ratios[:, 2:].mean(1).sum(), rel=1e-4)


def test_samples_are_new_in_every_step_and_the_same_after_a_restart():
    context = PreferenceContext(PAIRS)
    method = started(method_of(), context)
    (data,) = micro_batches(context)
    first = method.rollout(data, step=3).input_ids_BT.tolist()
    torch.manual_seed(99)
    assert method.rollout(data, step=3).input_ids_BT.tolist() == first
    assert method.rollout(data, step=4).input_ids_BT.tolist() != first
    context.seed += 1
    assert method.rollout(data, step=3).input_ids_BT.tolist() != first


def test_lambda_0_is_dpo():
    context = PreferenceContext(PAIRS, byte_llama(1), byte_llama(0))
    method = started(method_of(lambda_kl=0.0), context)
    (data,) = micro_batches(context)
    loss = method.loss(forward_of(method, context, method.rollout(data, 0)))
    assert loss.sum.item() == pytest.approx(loss.metrics["preference_loss"].item())


def test_the_kl_comes_down():
    """A policy away from its reference is drawn back by the term alone."""
    context = PreferenceContext(PAIRS, byte_llama(1), byte_llama(0))
    method = started(method_of(beta=1e-6, lambda_kl=1.0, samples=24, max_new_tokens=2), context)
    (data,) = micro_batches(context)
    optimizer = torch.optim.Adam(context.model.parameters(), lr=2e-2)
    found = []
    for step in range(14):
        loss = method.loss(forward_of(method, context, method.rollout(data, step)))
        optimizer.zero_grad()
        (loss.sum / 2).backward()
        optimizer.step()
        found.append(loss.metrics["kl"].item() / 2)
    assert np.mean(found[-4:]) < 0.75 * np.mean(found[:3])


def test_a_batch_without_targets_takes_part_and_stays_without():
    context = PreferenceContext(PAIRS)
    method = started(method_of(), context)
    (data,) = micro_batches(context)
    data.target_mask_BT[:] = False
    batch = method.rollout(data, 0)
    assert len(context.sampled) == 1 and method.count(batch) == 0
    assert method.loss(forward_of(method, context, batch)).sum.item() == 0


def test_longer_than_the_model_takes():
    with pytest.raises(ValueError, match=r"^method\.max_new_tokens=250: .* 260 tokens, the model takes at most 256$"):
        started(method_of(max_new_tokens=250), PreferenceContext(PAIRS))


@pytest.mark.parametrize(("key", "value"), [
    ("beta", 0.0), ("lambda_kl", -1.0), ("samples", 1), ("max_new_tokens", 0), ("reference", "cached"),
])  # fmt: skip
def test_out_of_range(key, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(HypoConfig).validate_python({key: value})
    assert caught.value.errors()[0]["loc"] == (key,)
