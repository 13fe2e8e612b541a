"""SamPO: worked examples with given draws, what draws look like over many steps, and what they depend on."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.forward import Forward
from methods.kinds.causal import Causal
from methods.preference import sampo
from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.sampo import SamPo, SamPoConfig, average_weights, drawn, sampled_weights
from tests.methods.preference.extremes import check_extremes, check_pairs_are_apart
from tests.methods.preference.toy_tokens import pair_batch, random_pairs, responses_of
from tests.models import batches_of, tiny_llama

# Log-ratios of the tokens of two responses; the sums are 1 and -0.5.
CHOSEN = [0.5, 0.2, 0.1, 0.3, -0.1]
REJECTED = [-0.3, 0.1, -0.2, 0.05, -0.1, 0.0, -0.05, 0.0]
BATCH = pair_batch(([1] * 5, [1] * 8))


def method_of(seed=0, **config):
    method = SamPo(SamPoConfig(**config))
    method.kind, method.context = Causal(), SimpleNamespace(seed=seed)
    return method


def toy(ratios=(*CHOSEN, *REJECTED), batch=BATCH):
    reference_K = torch.linspace(-3, -0.5, len(ratios), dtype=torch.float64)
    logps_K = (reference_K + torch.tensor(ratios, dtype=torch.float64)).requires_grad_()
    return responses_of(logps_K, reference_K, batch), logps_K


def loss_of(method, step=0, batch=BATCH, **given):
    method.rollout(batch, step)
    return method.loss_of(toy(batch=batch, **given)[0])


def rejected_mask(method, step):
    method.rollout(BATCH, step)
    return method._weights(BATCH)[0][5:]


def test_known_answer_of_a_draw(monkeypatch):
    chosen_for = {8: [0, 2, 3, 5, 6]}
    monkeypatch.setattr(
        sampo, "drawn", lambda tokens, kept, seed: np.isin(np.arange(tokens), chosen_for.get(tokens, range(tokens)))
    )
    responses, logps_K = toy()
    loss = method_of().loss_of(responses)
    assert loss.sum.item() == pytest.approx(0.620957, abs=5e-7)
    (gradient,) = torch.autograd.grad(loss.sum, logps_K)
    slope = 0.1 / (1 + math.exp(0.15))
    expected = [-slope] * 5 + [slope if place in chosen_for[8] else 0.0 for place in range(8)]
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_known_answer_of_the_average():
    """Factors 6.5 / 5 and 6.5 / 8: a logit of 0.170625."""
    loss = loss_of(method_of(average=True))
    assert loss.sum.item() == pytest.approx(0.611469, abs=5e-7)
    assert float(loss.metrics["reward_margin"]) == pytest.approx(0.170625, abs=1e-8)
    np.testing.assert_allclose(average_weights(BATCH), [1.3] * 5 + [0.8125] * 8)


@pytest.mark.parametrize("config", [{}, {"independent_draws": True}, {"average": True}])
def test_of_equal_lengths_it_is_dpo(config):
    batch = pair_batch(([1] * 4, [2] * 4), ([3], [4]))
    ratios = np.random.default_rng(0).normal(size=10)
    found = loss_of(method_of(**config), batch=batch, ratios=ratios)
    expected = Dpo(DpoConfig()).loss_of(toy(ratios, batch)[0])
    torch.testing.assert_close(found.sum, expected.sum)
    assert found.metrics == expected.metrics


STEPS = 1500


def test_expectation_over_draws():
    """Every token is drawn T / n of the time; the expected sum of the rejected response is 5/8 of the whole."""
    method = method_of()
    masks = torch.stack([rejected_mask(method, step) for step in range(STEPS)])
    assert (masks.sum(-1) == 5).all()
    share = 5 / 8
    deviation = math.sqrt(share * (1 - share) / STEPS)
    np.testing.assert_allclose(masks.mean(0), share, atol=4.5 * deviation)
    together = (masks[:, 0] * masks[:, 1]).mean().item()  # without replacement: 5/8 x 4/7
    assert together == pytest.approx(5 / 8 * 4 / 7, abs=4.5 * math.sqrt(0.36 * 0.64 / STEPS))
    sums = masks.double() @ torch.tensor(REJECTED, dtype=torch.float64)
    mean = sums.mean().item()
    assert mean == pytest.approx(share * -0.5, abs=4.5 * sums.std().item() / math.sqrt(STEPS))
    at_the_mean = math.log1p(math.exp(-0.1 * (1.0 - mean)))
    assert at_the_mean == pytest.approx(0.629674, abs=1e-3)
    losses = torch.log1p((-0.1 * (1.0 - sums)).exp())
    assert losses.mean() > at_the_mean  # it is convex
    assert math.log1p(math.exp(-0.13125)) == pytest.approx(0.629674, abs=5e-7)


def test_the_shorter_response_is_whole_whichever_it_is():
    for batch, kept in ((pair_batch(([1] * 5, [1] * 8)), slice(0, 5)), (pair_batch(([1] * 8, [1] * 5)), slice(8, 13))):
        weights_K = sampled_weights(batch, [0])
        assert weights_K[kept].all() and weights_K.sum() == 10


def test_draws_follow_from_seed_step_and_example():
    one = rejected_mask(method_of(), 3)
    assert torch.equal(rejected_mask(method_of(), 3), one)
    others = [
        rejected_mask(method_of(), 4),
        rejected_mask(method_of(seed=1), 3),
        sampled_weights(pair_batch(([1] * 5, [1] * 8), first_example=2), (0, 3, 0))[5:],
    ]
    assert not any(torch.equal(one, other) for other in others)
    assert drawn(4, 4, [0]).all() and drawn(4, 0, [0]).sum() == 0 and len(drawn(0, 0, [0])) == 0


def test_policy_and_reference_share_their_draw_unless_told_otherwise():
    shared, apart = method_of(), method_of(independent_draws=True)
    differing = 0
    for step in range(20):
        for method in (shared, apart):
            method.rollout(BATCH, step)
        policy_K, reference_K = shared._weights(BATCH)
        assert torch.equal(policy_K, reference_K)
        policy_K, reference_K = apart._weights(BATCH)
        assert torch.equal(policy_K, shared._weights(BATCH)[0])
        assert policy_K.sum() == reference_K.sum() == 10
        differing += not torch.equal(policy_K, reference_K)
    assert differing > 15  # of 56 draws one is the same


def test_independent_draws_sum_each_model_over_its_own_tokens():
    method = method_of(independent_draws=True)
    method.rollout(BATCH, 2)
    policy_K, reference_K = (weights_K.double() for weights_K in method._weights(BATCH))
    responses, logps_K = toy()
    sums = policy_K * logps_K - reference_K * responses.reference_K
    expected = -torch.nn.functional.logsigmoid(0.1 * (sums[:5].sum() - sums[5:].sum()))
    torch.testing.assert_close(method.loss_of(responses).sum, expected)


EXAMPLES = random_pairs(8, most=12)


def total(step, method=None, **layout):
    """Loss and gradient of a step, over all processes, and which tokens of every example were summed."""
    policy, reference = tiny_llama(1), tiny_llama(0).requires_grad_(False)
    method = method or method_of(reference="live")
    method.frozen = ("reference",)
    summed, losses = {}, []
    world = layout.get("world", 1)
    for rank in range(world):
        for batch in batches_of(EXAMPLES, **{**layout, "rank": rank}).of_step(0):
            batch = method.rollout(batch, step)
            losses.append(method.loss(Forward(method.kind, {"policy": policy, "reference": reference}, batch)).sum)
            weights_K = method._weights(batch)[0]
            summed |= {int(e): weights_K[batch.example_K == e].tolist() for e in batch.example_K.unique()}
    sum(losses).backward()
    return sum(losses).item(), [value.grad for value in policy.parameters()], summed


@pytest.mark.parametrize(
    "layout",
    [{"micro": 1}, {"micro": 3}, {"packing": True, "row_length": 64}, {"seed": 5}, {"world": 2, "micro": 2}],
)
def test_draws_do_not_depend_on_layout_order_or_processes(layout):
    loss, gradients, summed = total(7)
    found = total(7, **layout)
    assert found[2] == summed and sum(not all(weights) for weights in summed.values()) >= 4
    assert found[0] == pytest.approx(loss, rel=1e-5)
    for a, b in zip(found[1], gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_continued_run_draws_what_it_would_have_drawn():
    """The step alone is needed, which the loop has."""
    whole = method_of(reference="live")
    uninterrupted = [total(step, whole)[::2] for step in range(4)]
    continued = method_of(reference="live")
    continued.load_state_dict(whole.state_dict())
    assert [total(step, continued)[::2] for step in (2, 3)] == uninterrupted[2:]
    assert uninterrupted[2] != uninterrupted[3]


def test_what_is_logged():
    """Log-probabilities of whole responses, the margin of what was drawn."""
    method = method_of()
    responses, logps_K = toy()
    metrics = method.loss_of(responses).metrics
    assert float(metrics["chosen_log_ratio"]) == pytest.approx(1.0)
    assert float(metrics["rejected_log_ratio"]) == pytest.approx(-0.5)
    assert float(metrics["rejected_logps"]) == pytest.approx(logps_K[5:].sum().item())
    summed = (rejected_mask(method, 0).double() * torch.tensor(REJECTED, dtype=torch.float64)).sum()
    assert float(metrics["reward_margin"]) == pytest.approx(0.1 * (1.0 - summed.item()))


def test_a_response_without_tokens():
    responses, _ = toy(CHOSEN, pair_batch(([1] * 5, [])))
    for method in (method_of(), method_of(average=True)):
        assert method.loss_of(responses).sum.isfinite()


@pytest.mark.parametrize("check", [check_extremes, check_pairs_are_apart])
def test_far_from_the_reference_and_apart(check):
    check(method_of())


def test_configuration_out_of_range():
    with pytest.raises(ValidationError):
        TypeAdapter(SamPoConfig).validate_python({"beta": 0.0})
    with pytest.raises(ValueError, match=r"method\.independent_draws=true: must be false with method\.average"):
        SamPoConfig(average=True, independent_draws=True)
