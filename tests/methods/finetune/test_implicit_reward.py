"""Implicit-reward SFT: its conjugates from their definition, known answers, SFT as its limit, tokens and sequences."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.batch import sum_by_sequence
from methods.examples import Examples
from methods.finetune.implicit_reward import _EDGES, ImplicitReward, ImplicitRewardConfig, phi
from methods.finetune.sft import Sft, SftConfig
from methods.forward import Forward
from methods.kinds.causal import Causal, frozen
from methods.reference import CachedReference
from tests.models import batches_of, random_examples, tiny_llama

DIVERGENCES = ["tv", "chi2", "hellinger", "reverse_kl", "forward_kl", "js"]
HELD = DIVERGENCES[1:]

GENERATORS = {
    "chi2": lambda t: (t - 1) ** 2,
    "hellinger": lambda t: (np.sqrt(t) - 1) ** 2,
    "reverse_kl": lambda t: -np.log(t) + t - 1,
    "forward_kl": lambda t: t * np.log(t) - t + 1,
    "js": lambda t: -(t + 1) * np.log((1 + t) / 2) + t * np.log(t),
}


def phi_of(u, divergence):
    return phi(torch.tensor([u], dtype=torch.float64), divergence).item()


# phi ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("divergence", "loss"),
    [("tv", -0.1), ("chi2", -0.0975), ("hellinger", -0.0909091), ("reverse_kl", -0.0953102),
     ("forward_kl", -0.0951626), ("js", -0.0909028)],
)  # fmt: skip
def test_known_answers(divergence, loss):
    """Log-ratio 1, beta 0.1."""
    assert -phi_of(0.1, divergence) == pytest.approx(loss, abs=5e-8)


def test_js_by_its_formula():
    assert phi_of(0.1, "js") == pytest.approx(math.log(2 - math.exp(-0.1)), abs=1e-12)


@pytest.mark.parametrize("divergence", HELD)
@pytest.mark.parametrize("u", [-0.55, -0.2, 0.0, 0.3, 1.5])
def test_phi_is_the_conjugate_of_its_divergence(divergence, u):
    """phi(u) = -sup_t [-u t - f(t)], by a fine grid over t."""
    t = np.exp(np.linspace(-12, 12, 2_000_001))
    expected = -np.max(-u * t - GENERATORS[divergence](t))
    assert phi_of(u, divergence) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_slope_at_the_reference_is_1(divergence):
    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value = phi(u, divergence)
    (slope,) = torch.autograd.grad(value.sum(), u)
    assert value.item() == 0 and slope.item() == 1


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_phi_is_concave_and_smooth(divergence):
    """Over its tangent too: slopes fall without a jump."""
    u = torch.linspace(-3, 3, 6001, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(phi(u, divergence).sum(), u)
    assert (slopes.diff() <= 1e-12).all()
    assert slopes.diff().abs().max() < 0.03 * slopes.abs().max()
    numeric = phi(u.detach(), divergence).diff() / 1e-3
    torch.testing.assert_close(numeric, (slopes[1:] + slopes[:-1]) / 2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("divergence", "slope"), [
    ("hellinger", 100.0), ("reverse_kl", 10.0), ("js", math.exp(0.6) / (2 - math.exp(0.6))),
    ("forward_kl", math.exp(40.0)),
])  # fmt: skip
def test_below_its_edge_phi_is_its_tangent(divergence, slope):
    edge = _EDGES[divergence]
    u = torch.tensor([edge - 1e3, edge - 1.0, edge], dtype=torch.float64, requires_grad=True)
    values = phi(u, divergence)
    (slopes,) = torch.autograd.grad(values.sum(), u)
    torch.testing.assert_close(slopes, torch.full((3,), slope, dtype=torch.float64))
    assert (values[2] - values[1]).item() == pytest.approx(slope)
    assert (values[1] - values[0]).item() == pytest.approx(999 * slope)


def test_chi2_has_no_push_at_2_and_turns_round_beyond():
    u = torch.tensor([1.9, 2.0, 2.1], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(phi(u, "chi2").sum(), u)
    assert slopes[0] > 0 and slopes[1] == 0 and slopes[2] < 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_extremes(divergence):
    """Log-ratios of +-1e4 in fp32, at beta 1; the squared norm is finite too."""
    u = torch.tensor([1e4, -1e4, 0.0, -40.0, 88.0], requires_grad=True)
    value = phi(u, divergence).sum()
    (gradient,) = torch.autograd.grad(value, u)
    assert torch.isfinite(value) and torch.isfinite(gradient.square().sum())


# The method --------------------------------------------------------------------------------------------------


class Context:
    """The part of a run's context that `prepare` uses: `measure` as `Context` describes it."""

    def __init__(self, model, examples, micro=12):
        self.model, self.examples, self.micro = model, examples, micro

    def measure(self, what, values, per, role):
        assert (per, role) == ("token", "reference")
        found = {}
        with frozen(self.model):
            for batch in batches_of(self.examples, micro=self.micro).once():
                measured = values(self.model, batch)
                for example in batch.example_S.tolist():
                    found[example] = measured[batch.example_K == example].double().numpy()
        return np.concatenate([found[example] for example in range(len(self.examples))])


def built(examples, reference=None, **config):
    method = ImplicitReward(ImplicitRewardConfig(**config))
    method.kind = Causal()
    method.prepare(Context(reference or tiny_llama(), examples))
    return method


def gradients(method, model, batches):
    """Of the mean over the units of the global batch."""
    count = sum(method.count(batch) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = method.loss(Forward(Causal(), {"policy": model}, batch)).sum / count
        loss.backward()
        total += loss.item()
    return total, [parameter.grad.clone() for parameter in model.parameters()]


def assert_scaled(found, expected, factor):
    """Gradients that are a multiple of others."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, factor * b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_tv_is_sft_times_beta_and_asks_for_no_reference(beta):
    examples = random_examples()
    method = ImplicitReward(ImplicitRewardConfig(divergence="tv", beta=beta))
    assert method.prepare(SimpleNamespace()) == {}  # nothing can be measured here
    batches = batches_of(examples).of_step(0)
    sft = gradients(Sft(SftConfig()), tiny_llama(), batches)
    found = gradients(method, tiny_llama(), batches)
    assert found[0] == pytest.approx(beta * sft[0], rel=1e-5)
    assert_scaled(found[1], sft[1], beta)


def test_tv_of_sequences_is_the_mean_over_sequences():
    examples = random_examples()
    batches = batches_of(examples).of_step(0)
    sft = gradients(Sft(SftConfig()), tiny_llama(), batches)
    method = ImplicitReward(ImplicitRewardConfig(divergence="tv", level="sequence"))
    assert_scaled(gradients(method, tiny_llama(), batches)[1], sft[1], 0.1 * examples.target_tokens / 12)


@pytest.mark.parametrize("divergence", HELD)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_at_the_reference_it_is_sft_times_beta(divergence, level):
    examples = random_examples()
    batches = batches_of(examples).of_step(0)
    sft = gradients(Sft(SftConfig()), tiny_llama(), batches)
    found = gradients(built(examples, divergence=divergence, level=level), tiny_llama(), batches)
    per_unit = 1 if level == "token" else examples.target_tokens / 12
    assert found[0] == pytest.approx(0.0, abs=1e-6)
    assert_scaled(found[1], sft[1], 0.1 * per_unit)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_small_beta_is_sft(level):
    """Far from the reference, too: beta log-ratio is small."""
    examples = random_examples()
    batches = batches_of(examples).of_step(0)
    method = built(examples, tiny_llama(seed=1), beta=1e-6, level=level)
    tv = ImplicitReward(ImplicitRewardConfig(divergence="tv", beta=1e-6, level=level))
    found, expected = (gradients(one, tiny_llama(), batches)[1] for one in (method, tv))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()


@pytest.mark.parametrize("divergence", HELD)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_loss_of_a_model_and_another_reference(divergence, level):
    examples, model, reference = random_examples(), tiny_llama(), tiny_llama(seed=1)
    method = built(examples, reference, divergence=divergence, level=level, beta=0.05)
    (batch,) = batches_of(examples).of_step(0)
    with torch.no_grad():
        ratio_K = Causal().token_logps(model, batch) - Causal().token_logps(reference, batch)
        u = 0.05 * (ratio_K if level == "token" else sum_by_sequence(ratio_K, batch))
        expected = -phi(u.double(), divergence).sum()
    loss = method.loss(Forward(Causal(), {"policy": model}, batch))
    assert loss.sum.item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss.metrics["log_ratio"].item() == pytest.approx(ratio_K.sum().item(), rel=1e-4)
    assert method.count(batch) == (batch.target_count if level == "token" else 12)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("micro", "packing"), [(3, False), (1, False), (4, True)])
def test_layout_changes_nothing(level, micro, packing):
    examples = random_examples()
    method = built(examples, tiny_llama(seed=1), level=level)
    whole = gradients(method, tiny_llama(), batches_of(examples).of_step(0))
    other = gradients(method, tiny_llama(), batches_of(examples, micro=micro, packing=packing).of_step(0))
    assert other[0] == pytest.approx(whole[0], rel=1e-4)
    for a, b in zip(other[1], whole[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_token_beyond_the_trust_region_is_pulled_back():
    """chi2: a log-ratio above 2 / beta has a gradient against SFT's."""
    examples = Examples.of([[1, 5, 6]], [1])
    (batch,) = batches_of(examples, batch_size=1).of_step(0)
    for above, sign in ((19.0, -1), (21.0, 1)):
        method = ImplicitReward(ImplicitRewardConfig())
        method.cached = CachedReference(torch.tensor([-above - 1, -1.0]), torch.tensor([2]))
        logps_K = torch.tensor([-1.0, -1.0], requires_grad=True)
        loss = method.loss(SimpleNamespace(batch=batch, token_logps=lambda logps_K=logps_K: logps_K))
        loss.sum.backward()
        assert logps_K.grad[0] * sign > 0 and logps_K.grad[1] == pytest.approx(-0.1)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_sequence_without_targets_counts_for_nothing(level):
    """It is no unit of the loss; a whole batch of them has none, and a graph."""
    full = random_examples(4)
    targets = full.targets.copy()
    targets[1] = full.lengths[1]
    examples = Examples(full.tokens, full.starts, targets)
    method = built(examples, tiny_llama(seed=1), level=level)
    (batch,) = batches_of(examples, batch_size=4).of_step(0)
    rest = Examples.of([full.sequence(i) for i in (0, 2, 3)], [full.targets[i] for i in (0, 2, 3)])
    other = built(rest, tiny_llama(seed=1), level=level)
    (smaller,) = batches_of(rest, batch_size=3).of_step(0)
    assert method.count(batch) == other.count(smaller)
    losses = [
        one.loss(Forward(Causal(), {"policy": tiny_llama()}, of)).sum.item()
        for one, of in ((method, batch), (other, smaller))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    batch.target_mask_BT[:] = False
    empty = method.loss(Forward(Causal(), {"policy": tiny_llama()}, batch))
    assert method.count(batch) == 0 and empty.sum.item() == 0
    empty.sum.backward()


def test_infinite_reference_names_its_example():
    examples = random_examples(3)
    values = np.zeros(examples.target_tokens)
    values[int((examples.lengths - examples.targets)[0])] = -np.inf
    method = ImplicitReward(ImplicitRewardConfig())
    method.kind = Causal()
    with pytest.raises(ValueError, match=r"must be finite, got others for response 1$"):
        method.prepare(SimpleNamespace(examples=examples, measure=lambda *_, **__: values))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"divergence": "kl"}, {"level": "batch"}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(ImplicitRewardConfig).validate_python(wrong)
