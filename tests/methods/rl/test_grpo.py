"""What RL methods share: rollouts, gradients by hand, several steps on the same responses, KL, no signal."""

import dataclasses
import math

import pytest
import torch

from methods.forward import Forward
from methods.rl.advantages import group_means
from methods.rl.episodes import joined
from methods.rl.grpo import Grpo, GrpoConfig
from tests.methods.mix.fakes import EOS, TOKENIZER
from tests.methods.rl.running import PROBLEMS, RlContext, config_of, started, step

NOTHING = [{"function": "tests.methods.rl.running.nothing"}]


def grpo(**settings):
    return Grpo(config_of(GrpoConfig, **settings))


def first_batches(method, context, turn=0):
    return method.rollouts(context.batches(), turn)


def test_gradient_by_hand():
    """At the first step: -A / |o| grad log pi of every response, over the responses."""
    method, context = grpo(), RlContext()
    _, gradients, _ = step(started(method, context), context)
    policy = context.roles["policy"]
    episodes = method.episodes(context.batches(), 0)
    policy.zero_grad()
    total = 0.0
    for place, written in enumerate(episodes.written):
        rewards = episodes.reward_N[episodes.group_N == episodes.group_N[place]]
        advantage = float((episodes.reward_N[place] - rewards.mean()) / (rewards.std() + 1e-4))
        prompt = episodes.prompts[place]
        logits = policy(input_ids=torch.tensor([prompt + written.tokens])).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1)[range(len(written.tokens)), written.tokens]
        total = total - advantage * logps.mean() / len(episodes)
    total.backward()
    for name, weight in policy.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, atol=1e-6, rtol=1e-4)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients.values())


def test_who_wrote_what_is_drawn_anew_each_turn_and_the_same_again():
    method, context = started(grpo(), context := RlContext()), context
    first = method.episodes(context.batches(), 0)
    again = method.episodes(context.batches(), 0)
    later = method.episodes(context.batches(), 1)
    assert [one.tokens for one in first.written] == [one.tokens for one in again.written]
    assert [one.tokens for one in first.written] != [one.tokens for one in later.written]
    assert first.group_N.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for place, prompt in enumerate(first.prompts):
        assert TOKENIZER.decode(prompt, skip_special_tokens=True) == PROBLEMS[int(first.example_N[place])][0]


def test_passes_change_nothing():
    """The responses of a step in one pass or in several."""
    _, whole, _ = step(started(grpo(aggregation="token"), context := RlContext()), context)
    method = grpo(aggregation="token", responses_per_pass=5)
    _, parts, losses = step(started(method, context := RlContext()), context)
    assert len(losses) == 3
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"beta": 0.1, "kl_in": "reward", "kl": "k1"}, {"aggregation": "token"}])
def test_equal_rewards_give_no_gradient(settings):
    """But for a KL in the reward, which differs by response."""
    method = grpo(rewards=NOTHING, **settings)
    _, gradients, losses = step(started(method, context := RlContext()), context)
    zero = all((gradient == 0).all() for gradient in gradients.values())
    assert zero == ("kl_in" not in settings)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert float(losses[0].means["informative"][0]) == 0


def test_a_group_of_one_gives_no_gradient():
    _, gradients, _ = step(started(grpo(group_size=1), context := RlContext()), context)
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_steps_on_the_same_responses():
    """2 epochs of 3 minibatches: every response once an epoch, with the log-probabilities of before the first step."""
    method, context = grpo(epochs=2, minibatches=3), RlContext()
    steps = first_batches(started(method, context), context)
    assert method.updates == len(steps) == 6
    for epoch in (steps[:3], steps[3:]):
        rows = [tuple(row) for batches in epoch for batch in batches for row in batch.input_ids_BT.tolist()]
        assert len(rows) == 12
    old = torch.cat([batch.values_K["old_logps"] for batches in steps[:3] for batch in batches])
    sampler = torch.cat([batch.values_K["sampler_logps"] for batches in steps[:3] for batch in batches])
    torch.testing.assert_close(old, sampler, atol=2e-5, rtol=0)
    batch = steps[0][0]
    logps = method.kind.token_logps(context.roles["policy"], batch)
    torch.testing.assert_close(logps, batch.values_K["old_logps"], atol=2e-5, rtol=0)


def test_kl_in_the_loss():
    """beta (e^d - d - 1) on every token, averaged as the rest."""
    method, context = grpo(rewards=NOTHING, beta=0.5), RlContext()
    loss, _, _ = step(started(method, context), context)
    ((batch,),) = first_batches(method, context)
    forward = Forward(method.kind, context.roles, batch)
    d_K = (forward.token_logps("reference") - forward.token_logps("policy")).detach()
    rows = (d_K.exp() - d_K - 1).split(batch.target_mask_BT.sum(1).tolist())
    assert loss == pytest.approx(0.5 * sum(float(row.mean()) for row in rows) / len(rows), rel=1e-4)
    assert "reference" in method.frozen
    assert "reference" not in grpo().frozen


def test_kl_in_the_reward():
    """RLOO's: less beta times the sum of the log-ratios of a response; REINFORCE++'s: of the tokens from each on."""
    settings = {"beta": 0.3, "kl_in": "reward", "kl": "k1", "baseline": "none", "scale": "none"}
    method, context = grpo(**settings), RlContext()
    ((batch,),) = first_batches(started(method, context), context)
    forward = Forward(method.kind, context.roles, batch)
    ratio_K = (forward.token_logps("policy") - forward.token_logps("reference")).detach()
    counts = batch.target_mask_BT.sum(1).tolist()
    for row, (ratio, advantage) in enumerate(
        zip(ratio_K.split(counts), batch.values_K["advantage"].split(counts), strict=True)
    ):
        expected = float(batch.values_S["reward"][row]) - 0.3 * float(ratio.sum())
        assert advantage.tolist() == pytest.approx([expected] * len(ratio), abs=1e-4)

    method, context = (
        grpo(**{**settings, "baseline": "batch", "scale": "batch"}, token_kl=True, epsilon=0.0),
        RlContext(),
    )
    ((batch,),) = first_batches(started(method, context), context)
    returns = [
        float(batch.values_S["reward"][row]) - 0.3 * ratio.flip(0).cumsum(0).flip(0)
        for row, ratio in enumerate(ratio_K.split(counts))
    ]
    flat = torch.cat(returns)
    torch.testing.assert_close(batch.values_K["advantage"], (flat - flat.mean()) / flat.std(), atol=1e-4, rtol=1e-4)


def test_cut_responses_are_masked():
    """They carry no loss, and stay in the mean over responses."""
    method, context = grpo(mask_truncated=True, max_new_tokens=3), RlContext()
    ((batch,),) = first_batches(started(method, context), context)
    lasts = batch.targets_K[batch.target_mask_BT.sum(1).cumsum(0) - 1]
    for row, weight in enumerate(batch.values_K["weight"].split(batch.target_mask_BT.sum(1).tolist())):
        assert (weight == (1.0 if lasts[row] == EOS else 0.0)).all()
    assert method.count(batch) == 12
    token = grpo(mask_truncated=True, max_new_tokens=3, aggregation="token")
    ((batch,),) = first_batches(started(token, context), context)
    assert token.count(batch) == int(batch.values_K["weight"].sum())


def sparse(prompts, responses, seed):
    """Of some prompts alone the responses differ."""
    return [float(place % 2) if prompt.startswith("copy") else 0.0 for place, prompt in enumerate(prompts)]


def test_prompts_without_signal_are_replaced():
    method = grpo(rewards=[{"function": "tests.methods.rl.test_grpo.sparse"}], dynamic_sampling=20)
    ((batch,),) = first_batches(started(method, context := RlContext()), context)
    assert (batch.values_S["reward_std"] > 0).all()
    assert len(batch.example_S) == 12
    assert set(batch.example_S.tolist()) == {0}
    once = grpo(rewards=[{"function": "tests.methods.rl.test_grpo.sparse"}], dynamic_sampling=1)
    ((batch,),) = first_batches(started(once, context := RlContext()), context)
    assert 4 <= len(batch.example_S) < 12
    none = grpo(rewards=NOTHING, dynamic_sampling=1)
    ((batch,),) = first_batches(started(none, context := RlContext()), context)
    assert batch.target_count == 0
    assert none.count(batch) == 0
    assert float(none.loss(Forward(none.kind, context.roles, batch)).sum.detach()) == 0


def unscorable(prompts, responses, answers, tokens, ended, groups, seed, *, offset=0.0):
    """None for the first response of every group; sees all that a reward may ask for."""
    assert answers[0] in ("12", "123", "7")
    assert max(tokens) <= 6
    assert len(ended) == len(groups) == len(responses)
    assert isinstance(seed, int)
    return [None if place % 4 == 0 else offset + place for place in range(len(responses))]


def test_rewards_that_cannot_score_and_have_options():
    rewards = [{"function": "tests.methods.rl.test_grpo.unscorable", "options": {"offset": 2.0}, "weight": 2.0}]
    method = grpo(rewards=rewards, scale="none")
    episodes = started(method, context := RlContext()).episodes(context.batches(), 0)
    assert episodes.reward_N[1:4].tolist() == [6.0, 8.0, 10.0]
    assert math.isnan(episodes.reward_N[0])
    advantages = method.advantages(episodes)
    assert advantages[:4].tolist() == [0.0, -2.0, 0.0, 2.0]


def test_a_sampler_that_differs_is_refused():
    """The gap is the mean absolute difference of log-probabilities; a stale sampler has one."""
    method, context = grpo(), RlContext()
    _, _, losses = step(started(method, context), context)
    total, count = losses[0].means["sampler_gap"]
    assert float(total / count) < 1e-5
    method.check({"sampler_gap": float(total / count)}, "at step 1")
    with pytest.raises(ValueError, match=r"method\.max_sampler_gap=0\.1: .* at step 2"):
        method.check({"sampler_gap": 0.2}, "at step 2")
    stale = RlContext()
    stale.roles["policy"] = context.roles["reference"]
    ((batch,),) = method.rollouts(context.batches(), 0)
    forward = Forward(method.kind, stale.roles, batch)
    total, count = method.loss(forward).means["sampler_gap"]
    assert float(total / count) > 0.1


def test_temperature_is_that_of_the_sampling():
    method, context = grpo(temperature=0.6), RlContext()
    _, _, losses = step(started(method, context), context)
    total, count = losses[0].means["sampler_gap"]
    assert float(total / count) < 1e-5


def test_reinforce_pp_baseline_is_of_the_group_and_the_batch():
    method = grpo(baseline="group", scale="batch", scale_of="centred", epsilon=0.0)
    episodes = started(method, context := RlContext()).episodes(context.batches(), 0)
    off = episodes.reward_N - group_means(episodes.reward_N, episodes.group_N)
    torch.testing.assert_close(method.advantages(episodes), off / off.std())


def test_company_writes_and_adds_nothing():
    """A batch without targets: the process takes part in the sampling, and has no responses of its own."""
    method, context = started(grpo(), context := RlContext()), context
    (batch,) = context.batches()
    empty = dataclasses.replace(batch, target_mask_BT=torch.zeros_like(batch.target_mask_BT))
    ((found,),) = method.rollouts([empty], 0)
    assert len(context.written) == 1
    assert found.target_count == 0
    assert method.count(found) == 0


def test_a_prompt_without_room_is_told():
    with pytest.raises(ValueError, match=r"method\.max_new_tokens=500: "):
        started(grpo(max_new_tokens=500), RlContext())


@pytest.mark.parametrize(
    ("settings", "told"), [({"token_kl": True}, "token_kl"), ({"kl_in": "reward", "kl": "k3"}, "method.kl=k3")]
)
def test_settings_that_do_not_go_together(settings, told):
    with pytest.raises(ValueError, match=told):
        config_of(GrpoConfig, **settings)


def test_episodes_one_after_the_other():
    """Groups keep apart, parents point into the whole."""
    method, context = started(grpo(), context := RlContext()), context
    one = method.episodes(context.batches(), 0)
    child = dataclasses.replace(one, parent_N=torch.arange(12))
    both = joined([one, child])
    assert both.group_N.tolist() == [place // 4 for place in range(24)]
    assert both.parent_N.tolist() == [-1] * 12 + list(range(12, 24))
