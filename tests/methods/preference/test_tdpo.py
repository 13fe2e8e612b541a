"""TDPO: a worked example token by token, its gradients, DPO as a limit, whatever the layout and the chunks."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.divergences import kl
from methods.forward import Forward
from methods.kinds.causal import Causal
from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.tdpo import Tdpo, TdpoConfig, tdpo_loss
from tests.methods.preference.toy_tokens import (
    CHOSEN,
    POLICY,
    REFERENCE,
    REJECTED,
    ToldKind,
    loss_and_gradient,
    pair_batch,
    random_pairs,
    told,
    toy_forward,
)  # fmt: skip
from tests.models import batches_of, tiny_llama

M_W, M_L, KL_W, KL_L = 1.425427, 1.045541, 0.574573, 0.529581


def tdpo(chunk=None, kind=ToldKind, **config):
    method = Tdpo(TdpoConfig(**config))
    method.kind = kind(chunk)
    return method


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize(
    ("config", "logit", "loss"),
    [
        ({"version": 2, "alpha": 0.0}, 0.037989, 0.674333),  # DPO
        ({"version": 1}, 0.042488, 0.672129),
        ({"version": 2}, 0.040238, 0.673230),
    ],
)
def test_known_answers(config, logit, loss, chunk):
    found = tdpo(chunk, **config).loss(toy_forward())
    assert found.sum.item() == pytest.approx(loss, abs=6e-7)
    assert -math.log(math.expm1(found.sum.item())) == pytest.approx(logit, abs=1.5e-6)


def test_what_is_logged():
    """The log-ratios m, the divergences, and the authors' reward beta (m + KL)."""
    metrics = {name: float(value) for name, value in tdpo().loss(toy_forward()).metrics.items()}
    assert metrics["chosen_log_ratio"] == pytest.approx(M_W, abs=1e-6)
    assert metrics["rejected_log_ratio"] == pytest.approx(M_L, abs=1e-6)
    assert metrics["chosen_divergence"] == pytest.approx(KL_W, abs=1e-6)
    assert metrics["rejected_divergence"] == pytest.approx(KL_L, abs=1e-6)
    assert metrics["reward_margin"] == pytest.approx(0.1 * (M_W + KL_W - M_L - KL_L), abs=1e-6)
    assert metrics["reward_accuracy"] == 1


def sums(policy_KV):
    """m and KL of the two responses from their definitions, in fp64."""
    policy, reference = policy_KV.log_softmax(-1), torch.tensor(REFERENCE).double().log_softmax(-1)
    targets = torch.tensor(CHOSEN + REJECTED)
    ratios = (policy - reference)[torch.arange(5), targets]
    divergences = (reference.exp() * (reference - policy)).sum(-1)
    return ratios[:2].sum(), ratios[2:].sum(), divergences[:2].sum(), divergences[2:].sum()


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_gradient_by_finite_differences(version, holds):
    """That of version 2 is the derivative with KL of the chosen response held where it is; that of version 1 is not."""
    beta, alpha = 0.7, 0.5
    start = torch.tensor(POLICY).double()
    held = sums(start)[2]

    def loss(policy_KV):
        m_w, m_l, kl_w, kl_l = sums(policy_KV)
        drift = kl_l - (held if holds else kl_w)
        return -torch.nn.functional.logsigmoid(beta * (m_w - m_l - (1 if version == 1 else alpha) * drift))

    step = 1e-5
    expected = torch.zeros_like(start)
    for place in range(start.numel()):
        moved = torch.zeros_like(start).view(-1)
        moved[place] = step
        moved = moved.view_as(start)
        expected.view(-1)[place] = (loss(start + moved) - loss(start - moved)) / (2 * step)
    _, gradient = loss_and_gradient(tdpo(version=version, beta=beta, alpha=alpha), toy_forward())
    same = torch.allclose(gradient.double(), expected, atol=1e-6)
    assert same == (holds == (version == 2))
    torch.testing.assert_close(
        gradient[2:].double(), expected[2:], rtol=0, atol=1e-6
    )  # of the rejected one, in any case


@pytest.mark.parametrize("version", [1, 2])
def test_at_the_reference(version):
    """Loss log 2; the divergences are 0 and have no gradient, so that it is DPO's."""
    loss, gradient = loss_and_gradient(tdpo(version=version), toy_forward(policy=REFERENCE))
    _, of_dpo = loss_and_gradient(tdpo(version=2, alpha=0.0), toy_forward(policy=REFERENCE))
    assert loss == pytest.approx(math.log(2), abs=1e-7)
    torch.testing.assert_close(gradient, of_dpo, rtol=0, atol=1e-8)
    assert of_dpo.abs().max() > 0.01


def models():
    return {"policy": tiny_llama(1), "reference": tiny_llama(0).requires_grad_(False)}


def total(method, batches, roles):
    roles["policy"].zero_grad()
    losses = [method.loss(Forward(method.kind, roles, batch)).sum for batch in batches]
    sum(losses).backward()
    return sum(losses).item(), [value.grad.clone() for value in roles["policy"].parameters()]


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_alpha_0_is_dpo_in_loss_and_gradient():
    roles, (batch,) = models(), batches_of(random_pairs()).of_step(0)
    dpo = Dpo(DpoConfig(reference="live"))
    dpo.kind = Causal()
    expected = total(dpo, [batch], roles)
    assert_same(total(tdpo(kind=Causal, alpha=0.0), [batch], roles), expected)
    other, _ = total(tdpo(kind=Causal, alpha=0.5), [batch], roles)
    assert abs(other - expected[0]) > 1e-2


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("layout", "chunk"),
    [({"micro": 1}, None), ({"micro": 4}, 5), ({"packing": True, "row_length": 64}, 7), ({"micro": 6, "seed": 3}, 16)],
)
def test_layout_order_and_chunks_change_nothing(layout, chunk, version):
    roles, examples = models(), random_pairs()
    expected = total(tdpo(kind=Causal, version=version), batches_of(examples).of_step(0), roles)
    batches = batches_of(examples, **layout).of_step(0)
    assert_same(total(tdpo(chunk, kind=Causal, version=version), batches, roles), expected)


def test_the_reference_gets_no_gradient_and_keeps_its_mode():
    roles, (batch,) = models(), batches_of(random_pairs()).of_step(0)
    roles["reference"].requires_grad_(True).train()
    total(tdpo(kind=Causal), [batch], roles)
    assert all(value.grad is None for value in roles["reference"].parameters())
    assert roles["reference"].training


@pytest.mark.parametrize("method", [tdpo(kind=Causal), Dpo(DpoConfig(reference="live"))], ids=["tdpo", "dpo"])
def test_a_batch_without_targets_calls_both_models(method):
    """Its process owes them to the others where weights are sharded."""
    roles, (batch,) = models(), batches_of(random_pairs()).of_step(0)
    batch.target_mask_BT[:] = False
    called = []
    for name, model in roles.items():
        model.register_forward_hook(lambda *_, name=name: called.append(name))
    method.kind = Causal()
    loss, gradients = total(method, [batch], roles)
    assert called == ["reference", "policy"]
    assert loss == 0 and method.count(batch) == 0 and not any(gradient.any() for gradient in gradients)


def test_divergence_is_not_negative():
    generator = torch.Generator().manual_seed(0)
    policy, reference = (3 * torch.randn(200, 17, generator=generator).log_softmax(-1) for _ in range(2))
    assert (tdpo().divergence(policy.log_softmax(-1), reference.log_softmax(-1)) >= 0).all()
    assert (kl(reference.log_softmax(-1), policy.log_softmax(-1)) > 0.1).any()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("far", [1e4, -1e4])
def test_finite_far_from_the_reference(version, far):
    """Log-ratios of the targets, and divergences, of +-1e4 nats."""
    policy = torch.tensor(POLICY).float()
    for place, target in enumerate(CHOSEN + REJECTED):
        policy[place, target] += far if place < len(CHOSEN) else -far
    loss, gradient = loss_and_gradient(tdpo(version=version), toy_forward(policy=policy))
    assert math.isfinite(loss) and gradient.isfinite().all() and gradient.square().sum().isfinite()
    numbers = torch.tensor([1e4, -1e4])
    logit = numbers.clone().requires_grad_()
    losses = tdpo_loss(logit, -numbers, numbers.abs(), numbers.abs() / 2, 0.1, 0.5, version)
    losses.sum().backward()
    assert losses.isfinite().all() and logit.grad.isfinite().all()


def test_padding_and_prompts_do_not_count():
    plain = pair_batch((CHOSEN, REJECTED))
    padded = pair_batch((CHOSEN, REJECTED), padding=4)
    logits = torch.tensor(POLICY).float(), torch.tensor(REFERENCE).float()
    assert tdpo().loss(told(*logits, plain)).sum == tdpo().loss(told(*logits, padded)).sum


@pytest.mark.parametrize("wrong", [{"version": 3}, {"alpha": -0.1}, {"beta": 0.0}, {"reference": "cached"}])
def test_configuration_out_of_range(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(TdpoConfig).validate_python(wrong)
