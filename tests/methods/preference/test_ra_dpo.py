"""Ra-DPO: worked examples of every risk measure, their definitions, TDPO as a limit."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.divergences import kl
from methods.forward import Forward
from methods.kinds.causal import Causal
from methods.preference.ra_dpo import RaDpo, RaDpoConfig, coded_cvar, cvar, entropic_risk
from methods.preference.tdpo import Tdpo, TdpoConfig
from tests.methods.preference.toy_tokens import (
    CHOSEN,
    POLICY,
    REFERENCE,
    REJECTED,
    ToldKind,
    loss_and_gradient,
    random_pairs,
    toy_forward,
)  # fmt: skip
from tests.models import batches_of, tiny_llama

RISKS = ["coded_cvar", "cvar", "erm", "mean"]
# One position: Z = (0.334344, -0.665656, 0.334344, 1.334344), ref = (0.134471, 0.365529, 0.134471, 0.365529).
ONE = (torch.tensor([[0.0, 2, 0, 0]]).log_softmax(-1), torch.tensor([[0.0, 1, 0, 1]]).log_softmax(-1))


def method_of(class_=RaDpo, config=RaDpoConfig, chunk=None, kind=ToldKind, **settings):
    method = class_(config(**settings))
    method.kind = kind(chunk)
    return method


def random_logps(rows=50, vocabulary=23, seed=0):
    generator = torch.Generator().manual_seed(seed)
    policy, reference = (
        (2 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)).log_softmax(-1) for _ in range(2)
    )
    return policy, reference


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize(
    ("settings", "r_w", "r_l", "loss_1", "loss_2"),
    [
        ({"risk": "mean"}, 0.574573, 0.529581, 0.672129, 0.673230),
        *(({"level": c}, 0.902816, 0.701983, 0.664533, 0.669420) for c in (0.9, 0.95, 0.99)),
        *(({"level": c, "split": False}, 1.007833, 1.062484, 0.677018, 0.675675) for c in (0.9, 0.95, 0.99)),
    ],
)
def test_known_answers(settings, r_w, r_l, loss_1, loss_2, chunk):
    for version, expected in ((1, loss_1), (2, loss_2)):
        found = method_of(chunk=chunk, version=version, **settings).loss(toy_forward())
        assert found.sum.item() == pytest.approx(expected, abs=6e-7)
        assert found.metrics["chosen_divergence"].item() == pytest.approx(r_w, abs=1e-6)
        assert found.metrics["rejected_divergence"].item() == pytest.approx(r_l, abs=1e-6)


@pytest.mark.parametrize(
    ("risk", "level", "expected"),
    [
        (cvar, 1.0, 0.334344),
        (cvar, 0.5, 1.065403),
        (cvar, 0.1, 1.334344),
        (entropic_risk, 1.0, 0.668688),
        (entropic_risk, 5.0, 1.134060),
    ],
)
def test_known_answers_at_one_position(risk, level, expected):
    assert risk(*ONE, level).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("level", [0.05, 0.3, 0.95, 1.0])
def test_cvar_is_the_least_bound(level):
    """min_z z + E[(Z - z)^+] / level, attained at one of the values of Z; value and gradient."""
    policy, reference = random_logps()
    policy = policy.requires_grad_()
    z = reference - policy
    excess = (z.unsqueeze(-2) - z.unsqueeze(-1)).clamp_min(0)  # [..., threshold, v]
    expected = (z + (reference.exp().unsqueeze(-2) * excess).sum(-1) / level).min(-1).values
    found = cvar(policy, reference, level)
    torch.testing.assert_close(found, expected)
    weights = torch.arange(1.0, len(found) + 1, dtype=torch.float64).sin()
    ours, theirs = (
        torch.autograd.grad((weights * value).sum(), policy, retain_graph=True)[0] for value in (found, expected)
    )
    torch.testing.assert_close(ours, theirs)


def test_mean_as_a_limit():
    policy, reference = random_logps()
    expected = kl(reference, policy)
    torch.testing.assert_close(cvar(policy, reference, 1.0), expected)
    torch.testing.assert_close(entropic_risk(policy, reference, 1e-6), expected, rtol=1e-4, atol=1e-5)
    assert (entropic_risk(policy, reference, 0.5) > expected).all()
    assert (cvar(policy, reference, 0.5) > expected).all()


def test_largest_value_as_a_limit():
    policy, reference = random_logps()
    largest = (reference - policy).max(-1).values
    torch.testing.assert_close(cvar(policy, reference, 1e-9), largest)
    torch.testing.assert_close(entropic_risk(policy, reference, 1e4), largest, rtol=0, atol=2e-3)


def test_coded_cvar_near_level_1_is_the_mean_less_the_smallest_term():
    policy, reference = random_logps()
    z, p = reference - policy, reference.exp()
    smallest = z.argmin(-1, keepdim=True)
    dropped = (p * z).gather(-1, smallest).squeeze(-1)
    found = coded_cvar(policy, reference, 1 - 1e-9, split=False)
    torch.testing.assert_close(found, kl(reference, policy) - dropped)
    assert (dropped < 0).all() and (found >= kl(reference, policy)).all()


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_odd_vocabulary_is_cut_below_its_middle(level):
    policy, reference = random_logps(vocabulary=23)
    z, p = reference - policy, reference.exp()
    expected = torch.zeros(len(z), dtype=z.dtype)
    for begin, end in ((0, 11), (11, 23)):
        part = z[:, begin:end]
        keeps = part > part.quantile(1 - level, dim=-1, keepdim=True)
        expected += (p[:, begin:end] * part * keeps).sum(-1)
    torch.testing.assert_close(coded_cvar(policy, reference, level, split=True), expected)
    assert not torch.allclose(coded_cvar(policy, reference, level, split=False), expected)


def test_more_values_than_torch_takes_of_one_dimension():
    """2^24 of them, over all positions."""
    rows = 2**24 // 8 + 1
    policy, reference = (
        torch.rand(8, generator=torch.Generator().manual_seed(seed)).log_softmax(-1) for seed in (0, 1)
    )
    found = coded_cvar(policy.expand(rows, -1), reference.expand(rows, -1), 0.9, split=False)
    assert found.shape == (rows,) and (found == found[0]).all()
    torch.testing.assert_close(found[:1], coded_cvar(policy[None], reference[None], 0.9, split=False))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("risk", RISKS)
def test_at_the_reference(risk, version):
    """Nothing is at risk: loss log 2, and DPO's gradient."""
    method = method_of(risk=risk, version=version)
    forward = toy_forward(policy=REFERENCE)
    loss, gradient = loss_and_gradient(method, forward)
    _, of_dpo = loss_and_gradient(method_of(Tdpo, TdpoConfig, alpha=0.0), toy_forward(policy=REFERENCE))
    assert loss == pytest.approx(math.log(2), abs=1e-6)
    assert method.loss(forward).metrics["rejected_divergence"].item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(gradient, of_dpo, rtol=0, atol=1e-7)


def roles_and(method, examples, **layout):
    roles = {"policy": tiny_llama(1), "reference": tiny_llama(0).requires_grad_(False)}
    batches = batches_of(examples, **layout).of_step(0)
    total = sum(method.loss(Forward(method.kind, roles, batch)).sum for batch in batches)
    total.backward()
    return total.item(), [value.grad for value in roles["policy"].parameters()]


@pytest.mark.parametrize("version", [1, 2])
def test_mean_is_tdpo_in_loss_and_gradient(version):
    examples = random_pairs()
    expected = roles_and(method_of(Tdpo, TdpoConfig, kind=Causal, version=version), examples)
    found = roles_and(method_of(kind=Causal, version=version, risk="mean"), examples)
    assert found[0] == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
    assert roles_and(method_of(kind=Causal, version=version, risk="cvar", level=0.5), examples)[0] != expected[0]


@pytest.mark.parametrize("risk", ["coded_cvar", "cvar", "erm"])
@pytest.mark.parametrize("layout", [{"micro": 1}, {"packing": True, "row_length": 64}])
def test_layout_order_and_chunks_change_nothing(risk, layout):
    examples = random_pairs()
    expected = roles_and(method_of(kind=Causal, risk=risk), examples)
    found = roles_and(method_of(kind=Causal, risk=risk, chunk=6), examples, **layout)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("risk", [cvar, entropic_risk, lambda *given: coded_cvar(*given, split=False)])
def test_names_of_tokens_do_not_matter(risk):
    """But for `split`, which cuts the vocabulary by its numbers."""
    policy, reference = random_logps()
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(risk(policy[:, order], reference[:, order], 0.9), risk(policy, reference, 0.9))


@pytest.mark.parametrize("risk", RISKS)
@pytest.mark.parametrize("far", [1e4, -1e4])
def test_finite_far_from_the_reference(risk, far):
    policy = torch.tensor(POLICY).float()
    for place, target in enumerate(CHOSEN + REJECTED):
        policy[place, target] += far if place < len(CHOSEN) else -far
    loss, gradient = loss_and_gradient(method_of(risk=risk), toy_forward(policy=policy))
    assert math.isfinite(loss) and gradient.isfinite().all() and gradient.square().sum().isfinite()


@pytest.mark.parametrize("level", [0.6, 1.0])
@pytest.mark.parametrize("risk", [cvar, entropic_risk, lambda *given: coded_cvar(*given, split=True)])
def test_tokens_that_the_reference_rules_out_have_no_risk(risk, level):
    """As a vocabulary padded with logits of -inf under both models."""
    policy, reference = random_logps(vocabulary=22)
    excluded = torch.full((len(policy), 1), -torch.inf, dtype=policy.dtype)
    leaf = torch.cat([policy, excluded], -1).requires_grad_()
    found = risk(leaf, torch.cat([reference, excluded], -1), level)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert found.isfinite().all() and gradient[:, :-1].isfinite().all() and gradient[:, :-1].any()
    assert (gradient[:, -1] == 0).all()


@pytest.mark.parametrize("wrong", [{"level": 0.0}, {"risk": "var"}, {"version": 0}, {"reference": "cached"}])
def test_configuration_out_of_range(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(RaDpoConfig).validate_python(wrong)


@pytest.mark.parametrize("risk", ["coded_cvar", "cvar"])
def test_a_share_above_1(risk):
    with pytest.raises(ValueError, match=rf"method\.level=1\.5: must be at most 1 with method\.risk={risk}"):
        RaDpoConfig(risk=risk, level=1.5)
    assert RaDpoConfig(risk="erm", level=1.5).level == 1.5
