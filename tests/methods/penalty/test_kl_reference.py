"""KL to the reference: zero at the start, torch's own number elsewhere, finite where logits are extreme."""

import copy

import pytest
import torch
import torch.nn.functional as F

from methods.forward import Forward
from methods.kinds.causal import Causal
from methods.penalty.kl_reference import KlReference, KlReferenceConfig
from tests.models import batches_of, random_examples, tiny_llama


def penalty_of(policy, reference, batch, **settings):
    forward = Forward(Causal(), {"policy": policy, "reference": reference}, batch)
    return KlReference(KlReferenceConfig(**settings)).loss(forward)


@pytest.fixture
def batch():
    (found,) = batches_of(random_examples()).of_step(0)
    return found


def moved(model, by):
    other = copy.deepcopy(model)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return other


def test_zero_with_zero_gradient_at_the_start(batch):
    policy, reference = tiny_llama(), tiny_llama()
    loss = penalty_of(policy, reference, batch, weight=1.0)
    assert loss.sum.item() == pytest.approx(0, abs=1e-6)
    loss.sum.backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad.abs().max() < 1e-4, name
    assert all(parameter.grad is None for parameter in reference.parameters())
    # Elsewhere the gradient is not that small.
    other = moved(reference, 0.1)
    penalty_of(other, reference, batch, weight=1.0).sum.backward()
    assert max(parameter.grad.abs().max() for parameter in other.parameters()) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("layout", [{}, {"packing": True, "row_length": 64}])
def test_equals_torch(temperature, layout):
    """F.kl_div with input log p_theta and target p_theta0, over the target tokens."""
    (batch,) = batches_of(random_examples(4), batch_size=4, **layout).of_step(0)
    reference = tiny_llama()
    policy = moved(reference, 0.1)
    loss = penalty_of(policy, reference, batch, weight=0.3, temperature=temperature)
    with torch.no_grad():
        logits = [Causal().target_logits(model, batch).float() / temperature for model in (policy, reference)]
    expected = F.kl_div(logits[0].log_softmax(-1), logits[1].softmax(-1), reduction="sum").item()
    assert expected > 0.1
    assert loss.sum.item() == pytest.approx(0.3 * expected, rel=1e-4)
    assert loss.metrics["kl_to_reference"].item() == pytest.approx(expected, rel=1e-4)
    assert not loss.metrics["kl_to_reference"].requires_grad


def test_gradient_of_the_logits(batch):
    """d KL(p0 || p) / d logits of p = p - p0."""
    reference = tiny_llama()
    policy = moved(reference, 0.1)
    forward = Forward(Causal(), {"policy": policy, "reference": reference}, batch)
    logits_KV = Causal().target_logits(policy, batch).detach().requires_grad_()
    forward._distributions["policy"] = logits_KV.log_softmax(-1)
    KlReference(KlReferenceConfig(weight=1.0)).loss(forward).sum.backward()
    p0_KV = forward.distribution_logps("reference").detach().exp()
    torch.testing.assert_close(logits_KV.grad, logits_KV.detach().softmax(-1) - p0_KV, rtol=1e-4, atol=1e-6)


def test_weight_zero_adds_nothing(batch):
    reference = tiny_llama()
    loss = penalty_of(moved(reference, 0.1), reference, batch, weight=0.0)
    assert loss.sum.item() == 0.0
    assert loss.metrics["kl_to_reference"] > 0, "it is still reported"


def test_finite_for_extreme_logits(batch):
    """Heads that rule out all tokens but one, two of them different ones."""
    reference, policy = tiny_llama(), tiny_llama(1)
    with torch.no_grad():
        for model in (reference, policy):
            model.lm_head.weight.mul_(1e4)
    loss = penalty_of(policy, reference, batch, weight=1.0)
    loss.sum.backward()
    assert torch.isfinite(loss.sum) and loss.sum > 1000
    assert all(torch.isfinite(parameter.grad).all() for parameter in policy.parameters())


def test_one_pass_serves_objective_and_penalty(batch):
    """The log-probabilities of the objective come from the distributions that the penalty asked for."""
    policy, reference = tiny_llama(), tiny_llama(1)
    calls = []
    policy.register_forward_hook(lambda *_: calls.append(1))
    forward = Forward(Causal(), {"policy": policy, "reference": reference}, batch)
    KlReference(KlReferenceConfig()).loss(forward)
    torch.testing.assert_close(forward.token_logps(), Causal().token_logps(tiny_llama(), batch), rtol=1e-4, atol=1e-5)
    assert len(calls) == 1
