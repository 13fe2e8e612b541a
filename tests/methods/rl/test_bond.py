"""BOND: the best of N by hand and by enumeration, J-BOND's rewards and gradient, its anchor."""

import itertools
import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from evals import best_of_n
from methods.rl.bond import (
    Bond,
    BondConfig,
    coefficients,
    expected_jbond_reward,
    jbond_rewards,
    jeffreys,
    quantile_rewards,
)
from tests.methods.mix.fakes import byte_llama
from tests.methods.rl.running import RlContext, config_of, started, step

THREE = ([0.5, 0.3, 0.2], [1, 2, 3])
TIED = ([0.4, 0.1, 0.3, 0.2], [1, 2, 2, 3])
NOTHING = {"function": "tests.methods.rl.running.nothing"}


# The best of N --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of", "n", "expected"), [
    (THREE, 1, [0.5, 0.3, 0.2]),
    (THREE, 2, [0.25, 0.39, 0.36]),
    (THREE, 4, [0.0625, 0.3471, 0.5904]),
    (TIED, 2, [0.16, 0.12, 0.36, 0.36]),
    (TIED, 3, [0.064, 0.112, 0.336, 0.488]),
])  # fmt: skip
def test_the_papers_form_is_the_distribution_of_the_best(of, n, expected):
    outcomes = best_of_n.outcomes(*of)
    assert best_of_n.pmf(outcomes, n).tolist() == pytest.approx(expected, abs=1e-12)
    p, up_to = np.array(of[0]), outcomes.up_to_G[outcomes.group_L]
    below = outcomes.below_G[outcomes.group_L]
    papers = p * up_to ** (n - 1) * sum((below / up_to) ** i for i in range(n))
    assert papers.tolist() == pytest.approx(expected, abs=1e-12)
    drawn = np.zeros(len(p))
    for those in itertools.product(range(len(p)), repeat=n):
        best = [one for one in those if of[1][one] == max(of[1][other] for other in those)]
        for one in best:
            drawn[one] += p[list(those)].prod() / len(best)
    assert drawn.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "kl", "bound"), [(2, 0.140638, 0.193147), (4, 0.559751, 0.636294)])
def test_kl_and_its_bound(n, kl, bound):
    assert best_of_n.kl(best_of_n.outcomes(*THREE), n) == pytest.approx(kl, abs=5e-7)
    assert best_of_n.kl_bound(n) == pytest.approx(bound, abs=5e-7)


def test_quantile_rewards():
    found = quantile_rewards(torch.tensor([2.0, 0.5, 9.0]), torch.tensor([1.0, 2.0, 2.0, 3.0]))
    assert found.exp().tolist() == pytest.approx([0.75, 0.0, 1.0])


def test_jeffreys():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.39, 0.36])
    there, back = float(p @ (p / q).log()), float(q @ (q / p).log())
    assert back == pytest.approx(0.140638, abs=1e-6)
    found = [jeffreys(p, q, weight).item() for weight in (0.0, 0.25, 1.0)]
    assert found == pytest.approx([there, 0.75 * there + 0.25 * back, back], rel=1e-5)


# J-BOND ---------------------------------------------------------------------------------------------------------------


def test_expected_reward():
    up_to = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    expected = [-1.559581, -0.693147, -0.173287, 0.0]
    assert expected_jbond_reward(up_to).tolist() == pytest.approx(expected, abs=5e-7)
    # By enumeration: the anchor's rewards are 1, 2, 3, 4 with the same probability.
    pairs = torch.tensor(list(itertools.product([1.0, 2.0, 3.0, 4.0], repeat=2)), dtype=torch.float64)
    found = [jbond_rewards(torch.full((16,), float(reward)), pairs).mean().item() for reward in (1, 2, 3, 4)]
    assert found == pytest.approx(expected, abs=5e-7)


def test_only_the_order_counts():
    generator = torch.Generator().manual_seed(0)
    own, anchor = torch.randn(20, generator=generator), torch.randn(20, 2, generator=generator)
    assert torch.equal(jbond_rewards(own, anchor), jbond_rewards(own.exp() * 9 - 3, anchor.exp() * 9 - 3))
    assert {round(value, 6) for value in jbond_rewards(own, anchor).tolist()} == {0.0, round(-math.log(16), 6)}
    assert jbond_rewards(torch.tensor([1.0]), torch.tensor([[1.0, 2.0]])).item() == 0, "as bad is not worse"
    assert jbond_rewards(torch.tensor([1.0, math.nan]), torch.tensor([[math.nan, 2.0], [1.0, 1.0]])).isnan().all()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_where_the_expected_gradient_is_zero(weight):
    """Forward part alone: the best of two. Backward part alone: anchor exp(E r), up to a constant."""
    anchor, rewards = torch.tensor(THREE[0], dtype=torch.float64), torch.tensor(THREE[1], dtype=torch.float64)
    expected = expected_jbond_reward(anchor.cumsum(0))
    fixed = torch.from_numpy(best_of_n.pmf(best_of_n.outcomes(*THREE), 2)) if weight else anchor * expected.exp()
    for policy, is_fixed in ((fixed / fixed.sum(), True), (anchor, False)):
        logits = policy.log().requires_grad_()
        logps, gradient = logits.log_softmax(0), torch.zeros(3, dtype=torch.float64)
        for y, first, second in itertools.product(range(3), repeat=3):
            chance = policy[y] * anchor[first] * anchor[second]
            worth = jbond_rewards(rewards[y][None], rewards[[first, second]][None])
            own = coefficients(worth, (policy / anchor).log()[y][None], torch.zeros(1), weight, 0.0)
            best = first if rewards[first] >= rewards[second] else second
            loss = -chance * (own[0] * logps[y] + weight * logps[best])
            gradient += torch.autograd.grad(loss, logits, retain_graph=True)[0]
        assert gradient.abs().max().item() < 1e-12 if is_fixed else gradient.abs().max().item() > 0.05


# The method -----------------------------------------------------------------------------------------------------------


class BondContext(RlContext):
    """The anchor is another model than the policy, as after a while."""

    def __init__(self, anchor=None, **config):
        super().__init__(**config)
        self.config["engine"] = {"zero_stage": 0}
        self.roles["anchor"] = byte_llama(0 if anchor is None else anchor).requires_grad_(False).eval()


def of(context, **settings):
    return started(Bond(config_of(BondConfig, **{"group_size": 3, **settings})), context)


def sequence_logp(model, prompt, response):
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    return logits.log_softmax(-1)[len(prompt) - 1 : -1][torch.arange(len(response)), torch.tensor(response)].sum()


@pytest.mark.parametrize("micro", [None, 1])
def test_one_sequence_at_a_time(micro):
    context = BondContext(anchor=2)
    method = of(context, jeffreys=0.3, gamma=0.7)
    seen = []
    keep = method.keep
    method.keep = lambda episodes, advantages: seen.append(episodes) or keep(episodes, advantages)
    _, found, losses = step(method, context, micro=micro)
    (episodes,) = seen
    policy, anchor = context.roles["policy"], context.roles["anchor"]
    policy.zero_grad()
    own, ratios, returns, best = [], [], [], []
    for first in range(0, 9, 3):
        rewards = episodes.reward_N[first : first + 3].tolist()
        own.append(sequence_logp(policy, episodes.prompts[first], episodes.written[first].tokens))
        before = sequence_logp(anchor, episodes.prompts[first], episodes.written[first].tokens)
        ratios.append(float((own[-1] - before).detach()))
        returns.append((-math.log(16) if rewards[0] < min(rewards[1:]) else 0.0) - ratios[-1])
        better = first + 1 + (rewards[2] > rewards[1])
        best.append(sequence_logp(policy, episodes.prompts[better], episodes.written[better].tokens))
    total = 0.0
    for place in range(3):
        baseline = (sum(returns) - returns[place]) / 2
        total = total - 0.7 * (returns[place] - baseline) * own[place]
        total = total - 0.3 * best[place] + 0.7 * ratios[place] * own[place]
    (total / 3).backward()
    assert max(map(abs, ratios)) > 0.1
    for name, weight in policy.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-4)
    gap, count = (sum(loss.means["sampler_gap"][part] for loss in losses) for part in (0, 1))
    assert gap / count < 1e-4, "of the policy's own responses alone"
    assert sum(loss.means["anchor_kl"][0].item() for loss in losses) == pytest.approx(sum(ratios), rel=1e-4)


def test_who_writes_what():
    context = BondContext(anchor=2)
    written = of(context).episodes(context.batches(), 0).written
    scored = of(context, eta=0.0)
    episodes = scored.episodes(context.batches(), 0)
    assert [one.tokens for one in episodes.written] == [one.tokens for one in written]
    for place, one in enumerate(episodes.written):
        role = "anchor" if place % 3 else "policy"
        with torch.no_grad():
            expected = sequence_logp(context.roles[role], episodes.prompts[place], one.tokens)
        assert sum(one.logps) == pytest.approx(float(expected), abs=1e-3)


def test_equal_rewards_have_no_backward_part():
    """Policy and anchor are the same; nothing is worse than both."""
    context = BondContext()
    loss, gradients, _ = step(of(context, jeffreys=0.0, gamma=1.0, rewards=[NOTHING]), context)
    assert loss == pytest.approx(0.0, abs=1e-4)
    assert all(gradient.abs().max() < 1e-4 for gradient in gradients.values())


def test_a_prompt_without_a_score_is_left_out():
    context = BondContext()
    method = of(context)
    episodes = method.episodes(context.batches(), 0)
    episodes.reward_N[4] = math.nan
    advantages = method.token_advantages(episodes, method.advantages(episodes))
    kept = method.keep(episodes, advantages)
    assert len(kept) == 4 and not set(kept) & {3, 4, 5}
    assert all(advantages[place].isfinite().all() for place in kept)


@pytest.mark.parametrize("eta", [0.0, 0.25, 1.0])
def test_the_anchor_follows(eta):
    context = BondContext(anchor=2)
    before = {name: value.clone() for name, value in context.roles["anchor"].state_dict().items()}
    method = of(context, eta=eta)
    method.after_step(0)
    policy = context.roles["policy"].state_dict()
    for name, value in context.roles["anchor"].state_dict().items():
        torch.testing.assert_close(value, (1 - eta) * before[name] + eta * policy[name])
    state = method.state_dict()
    assert ("anchor" in state) == bool(eta)
    again = Bond(method.config)
    again.load_state_dict(state)
    other = BondContext(anchor=2)
    started(again, other)
    for name, value in context.roles["anchor"].state_dict().items():
        assert torch.equal(other.roles["anchor"].state_dict()[name], value)
    assert ("anchor" in again.state_dict()) == bool(eta)


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"temperature": 0.7}, r"method\.temperature=0\.7, method\.top_p=1\.0: must be 1"),
    ({"epochs": 2}, r"method\.epochs=2, method\.minibatches=1: must be 1"),
    ({"beta": 0.1}, r"method\.beta=0\.1: must be 0"),
    ({"group_size": 4}, "group_size"),
    ({"jeffreys": 1.5}, "jeffreys"),
])  # fmt: skip
def test_settings_that_do_not_go(settings, message):
    with pytest.raises(ValueError, match=message):
        TypeAdapter(BondConfig).validate_python({"rewards": [], **settings})


@pytest.mark.parametrize(("config", "message"), [
    ({"engine": {"zero_stage": 3}}, r"method\.eta=0\.02: the anchor goes into the checkpoint whole"),
    ({"adapter": {"_target_": "some"}}, r"method\.eta=0\.02: the anchor follows the weights themselves"),
])  # fmt: skip
def test_an_anchor_that_cannot_follow(config, message):
    context = BondContext()
    context.config |= config
    with pytest.raises(ValueError, match=message):
        of(context)
    of(context, eta=0.0)
