"""f-DPG: the table of f', exact gradients on categoricals, Z by importance sampling, the whole method, its state."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter

from methods.rl.f_dpg import FDpg, FDpgConfig, Partition, f_prime, log_target_weight
from methods.rl.grpo import Grpo, GrpoConfig
from tests.methods.mix.fakes import byte_llama
from tests.methods.rl.running import RlContext, config_of, started, step

TABLE = {
    "forward_kl": [-2.718282, -1.0, -0.367879],
    "reverse_kl": [0.0, 1.0, 2.0],
    "js": [-0.620115, 0.0, 0.379885],
    "total_variation": [-0.5, 0.0, 0.5],
    "neyman": [-6.389056, 0.0, 0.864665],
    "pearson": [-1.264241, 0.0, 3.436564],
}
GENERATORS = {
    "forward_kl": lambda t: -t.log(),
    "reverse_kl": lambda t: t * t.log(),
    "js": lambda t: t * t.log() - (t + 1) * ((t + 1) / 2).log(),
    "total_variation": lambda t: (1 - t).abs() / 2,
    "neyman": lambda t: (1 - t).square() / t,
    "pearson": lambda t: (t - 1).square(),
    "alpha": lambda t: (0.5 * t + 0.5 - t.sqrt()) / 0.25,
    "hellinger": lambda t: (t.sqrt() - 1).square(),
}
NOTHING = {"function": "tests.methods.rl.running.nothing"}


# f' -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", TABLE)
def test_the_table(divergence):
    found = f_prime(divergence, torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx(TABLE[divergence], abs=5e-7)


@pytest.mark.parametrize("divergence", GENERATORS)
def test_exact_gradient_of_a_categorical(divergence):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randn(6, generator=generator, dtype=torch.float64).softmax(0)
    logps = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((target * GENERATORS[divergence](logps.exp() / target)).sum(), logits)
    logps = logits.log_softmax(0)
    slope = f_prime(divergence, (logps - target.log()).detach())
    (found,) = torch.autograd.grad((logps.exp().detach() * slope * logps).sum(), logits)
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-14)
    at_target = target.log().requires_grad_()
    logps = at_target.log_softmax(0)
    slope = f_prime(divergence, (logps - target.log()).detach())
    (zero,) = torch.autograd.grad((target * slope * logps).sum(), at_target)
    assert zero.abs().max().item() < 1e-14, "nothing to do at the target"


def test_far_from_the_target():
    far = torch.tensor([-1e4, -50.0, 50.0, 1e4])
    for divergence in GENERATORS:
        found = f_prime(divergence, far)
        assert found.isfinite().all() and (found.diff() >= 0).all()
    assert f_prime("reverse_kl", far).tolist() == [-9999, -49, 51, 10001], "not clamped"
    assert f_prime("forward_kl", far)[0].item() == pytest.approx(-math.exp(20), rel=1e-5)
    assert f_prime("forward_kl", torch.tensor([-3.0]), clamp=2.0).item() == pytest.approx(-math.exp(2))


# The target and its Z -------------------------------------------------------------------------------------------------


def test_weights_of_the_target():
    rewards = torch.tensor([0.0, 0.5, 1.0, math.nan])
    assert log_target_weight(rewards, "exponential", 0.25)[:3].tolist() == [0, 2, 4]
    binary = log_target_weight(rewards, "binary", 0.25, 20.0)
    assert binary[:3].tolist() == pytest.approx([-20, math.log(0.5), 0])
    assert binary[3].isnan()
    # A target that rules x out: nothing to fear of the forward KL, a floor under the reverse one.
    assert -f_prime("forward_kl", -binary[:1]).item() == pytest.approx(0.0, abs=1e-8)
    assert -f_prime("reverse_kl", -binary[:1]).item() == pytest.approx(-21.0)
    with pytest.raises(ValueError, match=r"^method\.target=binary: rewards must be in \[0, 1\], got 2\.0"):
        log_target_weight(torch.tensor([2.0]), "binary", 0.1)


def test_the_estimate_of_z():
    """Its expectation under any q that is nowhere 0 is Z."""
    generator = torch.Generator().manual_seed(1)
    base, q = torch.randn(2, 5, generator=generator, dtype=torch.float64).softmax(-1)
    scores = base * torch.rand(5, generator=generator, dtype=torch.float64).mul(3).exp()
    assert (q * (scores / q)).sum().item() == pytest.approx(scores.sum().item())
    drawn = [0, 3, 3, 1]
    weights = (scores / q).log()[drawn].tolist()
    whole = Partition({}, {}).with_([-1] * 4, weights)
    assert whole.log_z([-1]).exp().item() == pytest.approx((scores / q)[drawn].mean().item())
    parts = Partition({}, {}).with_([-1], weights[:1]).with_([-1] * 3, weights[1:])
    assert parts.log_z([-1]).item() == pytest.approx(whole.log_z([-1]).item())


def test_each_key_has_its_own():
    found = Partition({}, {}).with_([4, 7, 4, 7], [0.0, 5000.0, math.log(3), math.nan])
    assert found.log_z([7, 4]).tolist() == pytest.approx([5000.0, math.log(2)])
    assert found.counts == {4: 2, 7: 1} and found.log_z([9]).isnan().all()


# The method -----------------------------------------------------------------------------------------------------------


def of(context, **settings):
    return started(FDpg(config_of(FDpgConfig, **{"target_beta": 0.5, **settings})), context)


def sequence_logps(model, episodes):
    found = []
    for prompt, one in zip(episodes.prompts, episodes.written, strict=True):
        logps = model(input_ids=torch.tensor([[*prompt, *one.tokens]])).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        found.append(logps[torch.arange(len(one.tokens)), torch.tensor(one.tokens)].sum())
    return torch.stack(found)


@pytest.mark.parametrize("divergence", GENERATORS)
@pytest.mark.parametrize("partition", ["shared", "prompt"])
def test_one_sequence_at_a_time(divergence, partition):
    reference = byte_llama(0)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.mul_(1.02)  # near, so that the ratio of whole responses is of an order
    context = RlContext(reference=reference)
    method = of(context, divergence=divergence, partition=partition)
    episodes = method.episodes(context.batches(), 0)
    _, found, losses = step(method, context)
    policy = context.roles["policy"]
    policy.zero_grad()
    own, base = sequence_logps(policy, episodes), sequence_logps(reference, episodes).detach()
    log_p = base.double() + episodes.reward_N / 0.5
    log_weights = (log_p - own.detach().double()).view(3, 4)
    log_z = log_weights.logsumexp(1, keepdim=True) - math.log(4)
    if partition == "shared":
        log_z = log_weights.logsumexp((0, 1), keepdim=True) - math.log(12)
    log_t = (log_z - log_weights).flatten()
    t = log_t.exp().requires_grad_()
    (slope,) = torch.autograd.grad(GENERATORS[divergence](t).sum(), t)
    assert log_t.abs().max() > 0.1 and log_t.abs().max() < 20
    (slope * own).mean().backward()
    largest = max(float(weight.grad.abs().max()) for weight in policy.parameters())
    for name, weight in policy.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-4 * largest)
    assert sum(loss.means["log_t"][0].item() for loss in losses) == pytest.approx(
        log_t.sum().item(), rel=1e-3, abs=1e-3
    )


def test_reverse_kl_is_reward_with_a_kl_penalty():
    """Up to a baseline, divided by beta."""
    context = RlContext()
    settings = {"form": "reinforce", "beta": 0.5, "kl": "k1", "kl_in": "reward", "baseline": "none", "scale": "none"}
    config = config_of(GrpoConfig, aggregation="length", **settings)
    _, expected, _ = step(started(Grpo(config), context), context)
    context = RlContext()
    method = of(context, divergence="reverse_kl", partition="shared")
    rollouts = method.rollouts

    def with_baseline(batches, turn):
        found = rollouts(batches, turn)
        method._baseline = -1 - float(method._after_turn[0].log_z([-1]))
        return found

    method.rollouts = with_baseline
    _, found, _ = step(method, context)
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(0.5 * found[name], value, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("divergence", ["js", "total_variation", "neyman", "pearson"])
def test_equal_rewards_have_no_gradient(divergence):
    """At the base model, whatever the reward that all have: Z takes it up."""
    context = RlContext(reference=byte_llama(0))
    method = of(context, divergence=divergence, rewards=[NOTHING])
    loss, gradients, _ = step(method, context)
    assert abs(loss) < 1e-3 or divergence == "total_variation"
    if divergence != "total_variation":  # whose f' jumps at 0, where rounding decides
        assert all(gradient.abs().max() < 1e-3 for gradient in gradients.values())


def test_what_a_turn_brings_waits_for_its_step():
    context = RlContext()
    method = of(context, window=5, epochs=2)
    before = method.state_dict()
    first = method.rollouts(context.batches(), 0)
    assert method.state_dict() == before and method._baseline == 0.0
    again = method.rollouts(context.batches(), 0)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one[0].values_S["target"], other[0].values_S["target"])
    method.after_step(0)
    after = method.state_dict()
    method.after_step(1)
    assert set(after["counts"].values()) == {4} and len(after["recent"]) == 5
    restored = of(RlContext(), window=5)
    restored.load_state_dict(after)
    restored.rollouts(context.batches(), 1)
    assert restored._baseline == pytest.approx(float(after["recent"].mean())) != 0
    restored.after_step(2)
    assert set(restored.state_dict()["counts"].values()) == {8}


def test_later_steps_weigh_by_the_ratio():
    """pi/q is 1 in the first step; a policy that has moved is weighed, and judged, as it is."""
    context = RlContext(reference=byte_llama(0))
    method = of(context, epochs=2)
    (_, (batch,)) = method.rollouts(context.batches(), 0)
    before = batch.values_K["old_logps"]
    moved = (before + 0.01).requires_grad_()
    losses, _ = method.token_losses(moved, batch)
    (gradient,) = torch.autograd.grad(losses.sum(), moved)
    tokens = torch.bincount(batch.sequence_K)
    log_q = torch.zeros(len(tokens)).index_add(0, batch.sequence_K, before)
    now = log_q + 0.01 * tokens
    slope = math.log(2) - F.softplus(-(now - batch.values_S["target"]))
    expected = (0.01 * tokens).exp() * slope
    torch.testing.assert_close(gradient, expected[batch.sequence_K], rtol=1e-3, atol=1e-5)


def test_a_response_without_a_reward_is_left_out():
    context = RlContext()
    method = of(context)
    episodes = method.episodes(context.batches(), 0)
    episodes.reward_N[1] = math.nan
    advantages = method.token_advantages(episodes, method.advantages(episodes))
    assert 1 not in method.keep(episodes, advantages) and len(method.keep(episodes, advantages)) == 11
    method.after_step(0)
    assert sorted(method.state_dict()["counts"].values()) == [3, 4, 4]
    assert method.state_dict()["recent"].isfinite().all()


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"top_p": 0.9}, r"method\.temperature=1\.0, method\.top_p=0\.9: must be 1"),
    ({"beta": 0.1}, r"method\.beta=0\.1: must be 0"),
    ({"aggregation": "token"}, "aggregation"),
    ({"alpha": 1.0}, "alpha"),
    ({"divergence": "renyi"}, "divergence"),
])  # fmt: skip
def test_settings_that_do_not_go(settings, message):
    with pytest.raises(ValueError, match=message):
        TypeAdapter(FDpgConfig).validate_python({"rewards": [], **settings})
