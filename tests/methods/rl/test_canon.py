"""CANON: advantages by hand, its limits, schedules, and Dr. GRPO inside it."""

import math

import pytest
import torch

from methods.rl.advantages import normalised
from methods.rl.canon import Canon, CanonConfig, conditional_advantages, cosine_intra_weight, in_high_half
from methods.rl.grpo import Grpo, GrpoConfig
from tests.methods.rl.running import RlContext, config_of, started, step

REWARD = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0], dtype=torch.float64)
METRIC = torch.tensor([5, 1, 7, 8, 2, 3, 6, 4], dtype=torch.float64)
ONE = torch.zeros(8, dtype=torch.long)
NOTHING = [{"function": "tests.methods.rl.running.nothing"}]
NAN = float("nan")


def found(mu=0.5, rewards=REWARD, metric=METRIC, group=ONE, **settings):
    return conditional_advantages(torch.as_tensor(rewards, dtype=torch.float64), metric, group, mu, **settings)


def of_loops(rewards, metric, groups, mu, alpha, offset, weighted):
    """As the formulas are written, response by response."""
    expected = []
    for i in range(len(rewards)):
        members = sorted((j for j in range(len(rewards)) if groups[j] == groups[i]), key=lambda j: (metric[j], j))
        low, high = members[: len(members) // 2], members[len(members) // 2 :]

        def mean(some):
            return sum(float(rewards[j]) for j in some) / len(some)

        own, other, sign = (high, low, 1) if i in high else (low, high, -1)
        favoured = high if weighted == "high" else low
        inter = (alpha if i in favoured else 1) * float(rewards[i])
        inter -= (alpha if other is favoured else 1) * mean(other)
        expected.append(mu * (inter + sign * offset) + (1 - mu) * (float(rewards[i]) - mean(own)))
    return expected


def test_by_hand():
    assert in_high_half(METRIC, ONE).nonzero().squeeze(-1).tolist() == [0, 2, 3, 6]
    assert found(1.0).tolist() == [1, -1, 1, 1, -1, -1, 1, -1]
    assert found(0.0).tolist() == [0] * 8
    assert found(0.5).tolist() == [0.5, -0.5, 0.5, 0.5, -0.5, -0.5, 0.5, -0.5]
    assert torch.equal(found(0.5), normalised(REWARD, ONE, scale="none"))


@pytest.mark.parametrize("weighted", ["low", "high"])
@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0])
def test_weighted_form_is_that_of_the_formulas(weighted, mu):
    generator = torch.Generator().manual_seed(0)
    rewards, metric = torch.rand(14, generator=generator).double(), torch.rand(14, generator=generator).double()
    groups = torch.tensor([3] * 5 + [1] * 2 + [7] * 7)[torch.randperm(14, generator=generator)]
    expected = of_loops(rewards, metric, groups.tolist(), mu, 0.7, 0.2, weighted)
    got = found(mu, rewards, metric, groups, alpha=0.7, offset=0.2, weighted=weighted)
    assert got.tolist() == pytest.approx(expected, abs=1e-12)


def test_no_direction_is_favoured():
    assert found(0.7, metric=-METRIC).tolist() == pytest.approx(found(0.7).tolist(), abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(8, generator=generator)
    rewards = torch.rand(8, generator=generator)
    permuted = found(0.7, rewards[order], METRIC[order])
    assert permuted.tolist() == pytest.approx(found(0.7, rewards)[order].tolist(), abs=1e-12)
    assert float(found(1.0, rewards).sum()) == pytest.approx(0, abs=1e-12)
    assert float(found(0.0, rewards).sum()) == pytest.approx(0, abs=1e-12)


def test_alpha_turns_the_comparison():
    """More than 1 on the low half favours it; less than 1 on the high half takes from it."""
    equal = torch.ones(8)
    high = in_high_half(METRIC, ONE)
    for settings in ({"alpha": 1.5, "weighted": "low"}, {"alpha": 0.5, "weighted": "high"}, {"offset": -0.5}):
        assert found(1.0, equal, **settings)[high].tolist() == [-0.5] * 4
        assert found(1.0, equal, **settings)[~high].tolist() == [0.5] * 4


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
@pytest.mark.parametrize("size", [2, 7, 8])
def test_equal_rewards_are_exactly_no_advantage(value, size):
    assert (found(0.7, torch.full((size,), value), METRIC[:size], ONE[:size]) == 0).all()


def test_an_odd_group_is_not_dr_grpo():
    got = found(0.5, REWARD[:3], METRIC[:3], ONE[:3])
    assert in_high_half(METRIC[:3], ONE[:3]).tolist() == [True, False, True]
    assert got.tolist() == pytest.approx([0.5, -0.5, 0.5])
    assert (got - normalised(REWARD[:3], ONE[:3], scale="none")).abs().max() > 0.1


def test_ties_go_by_place():
    assert in_high_half(torch.ones(4), ONE[:4]).tolist() == [False, False, True, True]


def test_what_cannot_be_scored_is_in_no_half():
    got = found(0.7, [1, NAN, 0, 0.5, 1], METRIC[:5], ONE[:5])
    without = found(0.7, [1, 0, 0.5, 1], METRIC[[0, 2, 3, 4]], ONE[:4]).tolist()
    assert got.tolist() == pytest.approx([without[0], 0, *without[1:]])
    assert (found(0.7, [1, NAN], METRIC[:2], ONE[:2]) == 0).all()
    assert (found(0.7, [1, 0], METRIC[:2], torch.arange(2)) == 0).all()


def test_cosine_schedule():
    assert [cosine_intra_weight(step) for step in (0, 14, 29, 30)] == pytest.approx([0.02, 0.3, 0.6, 0.6])
    assert [cosine_intra_weight(step) for step in (50, 69, 70, 90, 110)] == pytest.approx(
        [0.3, 0.3 * (1 + math.cos(math.pi * 39 / 40)), 0.6, 0.3, 0.6]
    )


def canon(**settings):
    return Canon(config_of(CanonConfig, aggregation="constant", **settings))


def test_half_and_half_is_dr_grpo():
    """Gradients too, whatever the metric."""
    dr_grpo = Grpo(config_of(GrpoConfig, aggregation="constant", scale="none"))
    loss, expected, _ = step(started(dr_grpo, context := RlContext()), context)
    for metric in ("entropy", "length", "random"):
        got, gradients, _ = step(started(canon(mu=0.5, metric=metric), context := RlContext()), context)
        assert got == pytest.approx(loss, abs=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)
    other, gradients, _ = step(started(canon(mu=1.0), context := RlContext()), context)
    assert any((gradient - expected[name]).abs().max() > 1e-4 for name, gradient in gradients.items())
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert math.isfinite(other)


@pytest.mark.parametrize("metric", ["entropy", "length", "random"])
def test_equal_rewards_give_no_gradient(metric):
    _, gradients, _ = step(started(canon(rewards=NOTHING, metric=metric), context := RlContext()), context)
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_metrics_of_responses():
    method, context = canon(), RlContext()
    method = started(method, context)
    method.rollouts(context.batches(), 0)
    episodes = method._measured(method.episodes(context.batches(), 0), context.batches()[0])
    prompt, written = episodes.prompts[5], episodes.written[5]
    logits = context.roles["policy"](input_ids=torch.tensor([prompt + written.tokens])).logits[0, len(prompt) - 1 : -1]
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean().detach()
    assert float(method.metric(episodes)[5]) == pytest.approx(float(entropy), abs=1e-5)
    by_length = started(canon(metric="length"), context)
    assert by_length.metric(episodes).tolist() == [len(one.tokens) for one in episodes.written]
    by_chance = started(canon(metric="random"), context)
    by_chance.turn = 0
    first = by_chance.metric(episodes)
    assert torch.equal(first, by_chance.metric(episodes))
    by_chance.turn = 1
    assert not torch.equal(first, by_chance.metric(episodes))


@pytest.mark.parametrize(("metric", "alpha"), [("length", 0.8), ("entropy", 1.25)])
def test_alpha_of_a_metric(metric, alpha):
    """Of equal rewards, 0.5 each: less than 1 favours short responses, more than 1 those of low entropy."""
    method, context = canon(rewards=NOTHING, metric=metric, alpha=alpha, offset=0.0), RlContext()
    company = context.batches()[0]
    started(method, context).rollouts([company], 0)
    episodes = method._measured(method.episodes([company], 0), company)
    is_high = in_high_half(method.metric(episodes), episodes.group_N)
    gained = abs(alpha - 1) * 0.5
    expected = torch.where(is_high, -gained, gained).double()
    torch.testing.assert_close(method.advantages(episodes), expected, atol=1e-6, rtol=0)


def test_mu_by_schedule():
    context = RlContext()
    method = started(canon(metric="length", schedule="annealed"), context)
    method.rollouts(context.batches(), 0)
    mean = float(method.episodes(context.batches(), 0).reward_N.mean())
    assert method.report()["mu"] == pytest.approx(mean)
    method = started(canon(metric="length", schedule="annealed_reverse"), context)
    method.rollouts(context.batches(), 0)
    assert method.report()["mu"] == pytest.approx(1 - mean)
    for schedule, turn, mu in (
        ("cosine", 29, 0.4),
        ("cosine", 50, 0.7),
        ("cosine_reverse", 30, 1.0),
        ("cosine_reverse", 50, 0.7),
    ):
        method = started(canon(metric="length", schedule=schedule), context)
        method.rollouts(context.batches(), turn)
        assert method.report()["mu"] == pytest.approx(mu)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"group_size": 1}, "method.group_size=1"), ({"metric": "random", "alpha": 0.5}, "method.metric=random")],
)
def test_settings_that_do_not_go_together(settings, told):
    with pytest.raises(ValueError, match=told):
        config_of(CanonConfig, **settings)


def test_one_mu_for_all_processes():
    """The mean reward is that of all of them."""
    context = RlContext()
    method = started(canon(metric="length", schedule="annealed"), context)
    method.rollouts(context.batches(), 0)
    episodes = method.episodes(context.batches(), 0)
    other = (torch.tensor([1.0, NAN, 1.0], dtype=torch.float64), torch.zeros(3, dtype=torch.long))
    context.gathered = lambda value: [value, other]
    expected = (float(episodes.reward_N.sum()) + 2) / (len(episodes) + 2)
    assert method.mu(episodes) == pytest.approx(expected)
    context.gathered = lambda value: [(torch.full((2,), -5.0, dtype=torch.float64), torch.zeros(2))]
    assert method.mu(episodes) == 0.0
