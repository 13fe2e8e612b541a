"""PPO: advantages against brute force, rewards of tokens, the value loss by hand, a step computed once more."""

import copy

import pytest
import torch

from methods.forward import Forward
from methods.kinds.causal import Causal, beside_head
from methods.objective import Objective
from methods.rl.grpo import Grpo, GrpoConfig
from methods.rl.ppo import Ppo, PpoConfig, generalised_advantages, token_rewards, value_losses
from tests.methods.rl.running import RlContext, config_of, started, step


def some_are_not_scored(prompts, responses):
    """Problems of copying have no reward."""
    pairs = zip(prompts, responses, strict=True)
    return [None if prompt.startswith("copy") else float(len(response) % 3) for prompt, response in pairs]


def ppo(**settings):
    return Ppo(config_of(PpoConfig, **{"beta": 0.05, "epochs": 1, **settings}))


def begun(method):
    """A method before its first step, and its context."""
    context = RlContext()
    return started(method, context), context


def brute_force(rewards, values, gamma, lam):
    """The sum over all later tokens, as it is defined."""
    ends = [*values[1:], 0.0]
    delta = [reward + gamma * after - value for reward, value, after in zip(rewards, values, ends, strict=True)]
    return [
        sum((gamma * lam) ** (later - place) * delta[later] for later in range(place, len(delta)))
        for place in range(len(delta))
    ]


# Formulas -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (1.0, 0.0)])
def test_advantages_are_those_of_the_definition(gamma, lam):
    """Of responses of several lengths, side by side."""
    generator = torch.Generator().manual_seed(0)
    lengths = [7, 1, 4]
    rewards, values = (torch.randn(3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    for row, length in enumerate(lengths):
        rewards[row, length:] = values[row, length:] = 0.0
    found = generalised_advantages(rewards, values, gamma, lam)
    for row, length in enumerate(lengths):
        expected = brute_force(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert found[row, :length].tolist() == pytest.approx(expected)
        assert (found[row, length:] == 0).all()


def test_advantages_by_hand():
    """delta = 0 + 0.5 - 1, 2 + 0 - 0.5; A = -0.5 + 0.9 * 0.8 * 1.5, 1.5 with gamma 0.9: delta_1 = 0.45 - 1."""
    rewards, values = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.5]])
    assert generalised_advantages(rewards, values, 1.0, 0.8)[0].tolist() == pytest.approx([-0.5 + 0.8 * 1.5, 1.5])
    assert generalised_advantages(rewards, values, 0.9, 0.8)[0].tolist() == pytest.approx([-0.55 + 0.72 * 1.5, 1.5])


def test_limits_of_lambda():
    """1 with gamma 1: what is still to come, less the value; 0: one step."""
    generator = torch.Generator().manual_seed(1)
    rewards, values = (torch.randn(2, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(generalised_advantages(rewards, values, 1.0, 1.0) + values, to_go)
    after = torch.cat([values[:, 1:], torch.zeros(2, 1)], 1)
    torch.testing.assert_close(generalised_advantages(rewards, values, 0.7, 0.0), rewards + 0.7 * after - values)
    torch.testing.assert_close(generalised_advantages(rewards, to_go, 1.0, 0.95), torch.zeros(2, 6).double())


def test_rewards_of_tokens():
    """k1 at every token (0.5 and -0.5: log-probabilities of -1 and -1.5 against each other), the score at the last."""
    assert token_rewards(1.0, torch.tensor([0.5, -0.5]), 0.1, 2).tolist() == pytest.approx([-0.05, 1.05])
    assert token_rewards(2.0, None, 0.1, 3).tolist() == [0, 0, 2]


def test_value_loss_by_hand():
    """Far from the old value the clipped one counts, where its loss is larger, and has no gradient."""
    values = torch.tensor([0.5, 0.1, -0.5, 2.0], requires_grad=True)
    losses = value_losses(values, torch.zeros(4), torch.ones(4))
    assert losses.tolist() == pytest.approx([0.5 * 0.8**2, 0.5 * 0.9**2, 0.5 * 1.5**2, 0.5 * 1.0])
    losses.sum().backward()
    assert values.grad.tolist() == pytest.approx([0.0, -0.9, -1.5, 1.0])
    free = value_losses(values.detach(), torch.zeros(4), torch.ones(4), None)
    assert free.tolist() == pytest.approx([0.125, 0.405, 1.125, 0.5])


# The critic -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 3])
def test_values_are_of_the_states_that_tokens_are_predicted_from(chunk):
    """Whatever the layout of the logits; the pass itself is as without them."""
    method, context = begun(ppo(head_features=5))
    context.kind = method.kind = Causal(logits_chunk=chunk)
    policy = context.roles["policy"]
    batch = method.rollouts(context.batches(), 0)[0][0]
    plain = Causal().token_logps(policy, batch)
    with beside_head(policy, "critic") as said:
        logps = method.kind.token_logps(policy, batch)
    torch.testing.assert_close(logps, plain)
    values, features = said[-1]
    hidden = policy.model(input_ids=batch.input_ids_BT).last_hidden_state
    torch.testing.assert_close(features, policy.critic.features(hidden))
    torch.testing.assert_close(values, policy.critic.value(features).squeeze(-1))
    before = batch.target_mask_BT.roll(-1, 1)  # no target is a sequence's first token
    torch.testing.assert_close(batch.values_K["old_values"], values[before].detach())
    assert not policy.lm_head._forward_pre_hooks


def test_critics_of_one_seed_are_the_same():
    found = []
    for seed in (3, 3, 4):
        context = RlContext()
        context.seed = seed
        random = torch.random.get_rng_state()
        started(ppo(), context)
        assert torch.equal(torch.random.get_rng_state(), random), "the training's numbers are left alone"
        found.append(context.roles["policy"].critic.value.weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert Objective.parts == () and Ppo.parts == ("critic",)


# A step ---------------------------------------------------------------------------------------------------------------


def told(batch, name):
    """Of each response, what a batch says of its tokens."""
    counts = torch.bincount(batch.sequence_K, minlength=len(batch.example_S)).tolist()
    return batch.values_K[name].split(counts)


def test_what_a_turn_tells_of_tokens():
    """Old values and the KL of tokens make returns and advantages, which are whitened over all."""
    method, context = begun(ppo(gamma=0.9, lam=0.8, beta=0.3))
    batch = method.rollouts(context.batches(), 0)[0][0]
    logps, reference = (method.kind.token_logps(context.roles[role], batch) for role in ("policy", "reference"))
    torch.testing.assert_close(batch.values_K["kl"], (logps - reference).detach(), atol=1e-5, rtol=0)
    flat = []
    rewards_N = batch.values_S["reward"].tolist()
    of_tokens = [told(batch, name) for name in ("kl", "old_values", "returns")]
    for reward, kl_T, value_T, return_T in zip(rewards_N, *of_tokens, strict=True):
        rewards = [-0.3 * one for one in kl_T.tolist()]
        rewards[-1] += reward
        advantages = brute_force(rewards, value_T.tolist(), 0.9, 0.8)
        assert (return_T - value_T).tolist() == pytest.approx(advantages, abs=1e-5)
        flat += advantages
    flat = torch.tensor(flat)
    torch.testing.assert_close(batch.values_K["advantage"], (flat - flat.mean()) / flat.std(), atol=1e-5, rtol=1e-4)


def test_a_step_is_the_sum_of_both_losses():
    """Gradients of policy and critic against a computation that shares nothing with it."""
    method, context = begun(ppo(value_weight=0.7, head_features=5))
    policy = context.roles["policy"]
    loss, gradients, (seen,) = step(method, context)
    batch = method.rollouts(context.batches(), 0)[0][0]
    policy.zero_grad()
    states = policy.model(input_ids=batch.input_ids_BT).last_hidden_state
    distribution = policy.lm_head(states).log_softmax(-1)
    total = torch.zeros(())
    at = 0
    for row in range(len(batch.input_ids_BT)):
        places = batch.target_mask_BT[row].nonzero().squeeze(-1).tolist()
        terms = []
        for place in places:
            logp = distribution[row, place - 1, batch.input_ids_BT[row, place]]
            value = policy.critic.value(policy.critic.features(states[row, place - 1]))[0]
            ratio = (logp - batch.values_K["old_logps"][at]).exp()
            terms.append(
                -ratio * batch.values_K["advantage"][at] + 0.7 * 0.5 * (value - batch.values_K["returns"][at]) ** 2
            )
            at += 1
        total = total + sum(terms) / len(terms) / len(batch.input_ids_BT)
    total.backward()
    assert loss == pytest.approx(total.item(), rel=1e-4)
    for name, weight in policy.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, atol=1e-5, rtol=1e-3)
    assert gradients["critic.value.weight"].abs().max() > 1e-4
    assert gradients["model.layers.0.self_attn.q_proj.weight"].abs().max() > 0
    value, tokens = seen.means["value"]
    assert float(value / tokens) == pytest.approx(float(batch.values_K["old_values"].mean()), rel=1e-3)


def test_steps_bring_values_to_the_returns():
    method, context = begun(ppo(epochs=3, value_weight=1.0, value_clip=None, beta=0.0))
    policy = context.roles["policy"]
    before = copy.deepcopy(policy.state_dict())
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    seen = []
    for turn in range(6):
        for batches in method.rollouts(context.batches(), turn):
            optimizer.zero_grad()
            loss = method.loss(Forward(method.kind, context.roles, batches[0]))
            (loss.sum / method.count(batches[0])).backward()
            optimizer.step()
            total, count = loss.means["value_loss"]
            seen.append(float(total / count))
    assert seen[-1] < seen[0] / 3
    for name, weight in policy.state_dict().items():
        assert not torch.equal(weight, before[name]), name


def test_without_a_critic_it_is_the_policy_gradient_of_rewards():
    """Values of 0, lambda 1, no KL, nothing whitened: every token's advantage is the reward."""
    plain = Grpo(config_of(GrpoConfig, baseline="none", scale="none"))
    loss, expected, _ = step(started(plain, context := RlContext()), context)
    method, context = begun(ppo(beta=0.0, lam=1.0, whiten=False, value_weight=0.0))
    with torch.no_grad():
        for weight in context.roles["policy"].critic.parameters():
            weight.zero_()
    found, gradients, _ = step(method, context)
    assert found == pytest.approx(loss, abs=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4)
    assert (gradients["critic.value.weight"] == 0).all()


def test_what_does_not_count_is_in_no_mean():
    """Responses without a reward, and with mask_truncated those without an end."""
    rewards = [{"function": "tests.methods.rl.test_ppo.some_are_not_scored"}]
    method, context = begun(ppo(rewards=rewards, aggregation="token"))
    batch = method.rollouts(context.batches(), 0)[0][0]
    weight, advantage = batch.values_K["weight"], batch.values_K["advantage"]
    scored = (~batch.values_S["reward"].isnan())[batch.sequence_K]
    assert 0 < scored.sum() < len(scored)
    assert torch.equal(weight, scored.float())
    assert (advantage[~scored] == 0).all()
    assert float(advantage[scored].mean()) == pytest.approx(0, abs=1e-5)
    assert float(advantage[scored].std()) == pytest.approx(1, abs=1e-5)
    assert method.count(batch) == int(scored.sum())
    loss = method.loss(Forward(method.kind, context.roles, batch))
    assert loss.sum.isfinite()
    masked = started(ppo(mask_truncated=True), context := RlContext())
    batch = masked.rollouts(context.batches(), 0)[0][0]
    assert torch.equal(batch.values_K["weight"], batch.values_S["ended"][batch.sequence_K])


def test_processes_whiten_together_and_wait_for_each_other():
    """Another process with the same tokens, all 1 higher; a pass for company asks the critic and costs nothing."""
    method, context = begun(ppo())
    alone = method.rollouts(context.batches(), 0)[0][0].values_K["advantage"]
    gathered = context.gathered

    def with_another(value):
        flat = isinstance(value, tuple) and value[0].is_floating_point()
        return [value, (value[0] + 1, value[1])] if flat else gathered(value)

    context.gathered = with_another
    together = method.rollouts(context.batches(), 0)[0][0].values_K["advantage"]
    assert float(together.mean()) < -0.1
    assert float(together.std()) < float(alone.std())
    context.gathered = lambda value: [value] if not isinstance(value, int) else [value, 99]
    batches = method.rollouts(context.batches(), 0)[0]
    company = [batch for batch in batches if not batch.target_count]
    assert company
    policy = context.roles["policy"]
    policy.zero_grad()
    loss = method.loss(Forward(method.kind, context.roles, company[0]))
    loss.sum.backward()
    assert loss.sum.item() == 0 == method.count(company[0])
    assert all(weight.grad is not None and (weight.grad == 0).all() for weight in policy.critic.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl": "k3"}, r"method\.kl=k3: with method\.kl_in=reward it must be k1"),
        ({"dynamic_sampling": 2, "group_size": 1}, r"method\.dynamic_sampling=2: must be 0 with method\.group_size=1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ppo(**settings)
