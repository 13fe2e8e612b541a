"""FoR: losses by hand, against enumeration and finite differences, trajectories of a turn, buffers, log Z."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from evals.number_game import actions, reward
from methods.forward import Forward
from methods.rl.actions import action_logps, drawn
from methods.rl.flow_of_reasoning import (
    FlowOfReasoning,
    FlowOfReasoningConfig,
    Trajectories,
    Tried,
    backward_logp,
    kept,
    log_partition_losses,
    mean_by_problem,
    residuals,
    scheduled,
    step_likelihood,
    token_likelihood,
    trajectory_balance_losses,
    trajectory_reward,
)
from tests.methods.mix.fakes import EOS, TOKENIZER, byte_llama
from tests.methods.rl.running import RlContext, started, step

PROBLEMS = [("2,3,7>13:", "13"), ("2,2,4>8:", "8"), ("1,3>3:", "3")]
HERE = "tests.methods.rl.test_flow_of_reasoning"


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


# The maths ------------------------------------------------------------------------------------------------------------


def test_trajectory_balance_by_hand():
    """P_F = (.25, .5), Z = 2, R = P_B = 1: (log .25)^2."""
    residual = residuals(tensor(0.25 * 0.5).log(), tensor(0.0), tensor(0.0))
    found = trajectory_balance_losses(residual, math.log(2))
    assert found.item() == pytest.approx(math.log(0.25) ** 2, abs=1e-12) == pytest.approx(1.921812, abs=5e-7)


def test_an_exact_sampler_has_no_loss():
    rewards = tensor(1.0, 3.0, 0.5, 5.5)
    residual = residuals((rewards / rewards.sum()).log(), rewards.log(), torch.zeros(4))
    assert trajectory_balance_losses(residual, math.log(10.0)).abs().max() < 1e-24
    assert log_partition_losses(residual, torch.zeros(4, dtype=torch.long)).abs().max() < 1e-24


def test_log_partition_does_not_see_the_scale_of_rewards_of_a_problem():
    generator = torch.Generator().manual_seed(0)
    logps, log_rewards = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    problem = torch.tensor([0, 0, 1, 1, 1, 2])
    found = log_partition_losses(residuals(logps, log_rewards, torch.zeros(6)), problem)
    scale = tensor(3.0, -2.0, 50.0)[problem]
    torch.testing.assert_close(
        log_partition_losses(residuals(logps, log_rewards + scale, torch.zeros(6)), problem), found
    )
    assert found[5] == 0, "a mean of its own, of each problem alone"
    x = logps - log_rewards
    expected = torch.cat([(part - part.mean()).square() for part in (x[:2], x[2:5], x[5:])])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(mean_by_problem(x, problem), torch.stack([x[:2].mean(), x[2:5].mean(), x[5]]))


def test_gradient_of_log_partition_is_that_of_trajectory_balance_at_the_best_log_z():
    """log Z = mean(beta log R + log P_B - log P_F) of the batch, held; the mean's own gradient adds nothing."""
    generator = torch.Generator().manual_seed(1)
    scores, log_rewards, backward = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(3))
    problem = torch.zeros(5, dtype=torch.long)
    scores.requires_grad_()

    def slope(losses_of):
        losses = losses_of(residuals(scores.log_softmax(0), log_rewards, backward))
        return torch.autograd.grad(losses.mean(), scores)[0]

    best = float((log_rewards + backward - scores.detach().log_softmax(0)).mean())
    found = slope(lambda residual: log_partition_losses(residual, problem))
    torch.testing.assert_close(found, slope(lambda residual: trajectory_balance_losses(residual, best)))
    assert found.abs().max() > 0.01


def test_actions_are_compared_with_those_of_their_state_alone():
    scores = tensor(-1.0, -3.0, -500.0, -501.0, -499.5, -7.0).requires_grad_()
    found = action_logps(scores, torch.tensor([0, 0, 1, 1, 1, 2]))
    expected = torch.cat([part.log_softmax(0) for part in (scores[:2], scores[2:5], scores[5:])])
    torch.testing.assert_close(found, expected)
    weights = tensor(1.0, -2.0, 0.3, 1.0, 5.0, 2.0)
    slopes = [torch.autograd.grad((one * weights).sum(), scores)[0] for one in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_backward_policy():
    """Uniform over what is allowed after a step; the state before the last step stands for that after it."""
    assert backward_logp([9, 3]) == pytest.approx(-math.log(3 * 3))
    assert backward_logp([4, 3, 2]) == pytest.approx(-math.log(3 * 2 * 2))
    assert backward_logp([5]) == pytest.approx(-math.log(5))


def test_rewards():
    assert trajectory_reward(1.0, 0.0, 100.0, 1e-3) == 100.0
    assert trajectory_reward(0.0, 0.25, 100.0, 1e-3) == pytest.approx(0.251)
    assert trajectory_reward(-2.0, 0.0, 100.0, 1e-3) == 1e-3, "log R is finite"
    assert step_likelihood([-2.0, -4.0], 1.5) == pytest.approx(1.5 * (1 / 2 + 1 / 4))
    assert step_likelihood([0.0], 1.5) == pytest.approx(150.0)
    assert token_likelihood([-2.0, -4.0], [3, 5], 0.7) == pytest.approx(math.exp(-6 / 8) ** (1 / 0.7))


def test_schedule():
    found = [scheduled(1.0, 2.0, progress, 0.5) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([1.0, 1.5, 2.0, 2.0, 2.0])


@pytest.mark.parametrize(("temperature", "epsilon"), [(1.0, 0.0), (4.0, 0.0), (1.0, 0.5), (1.0, 1.0)])
def test_what_is_drawn(temperature, epsilon):
    random, scores = np.random.default_rng(0), tensor(0.0, 2.0, -1.0)
    places = torch.tensor([drawn(scores, temperature, epsilon, random) for _ in range(4000)])
    expected = (1 - epsilon) * (scores / temperature).softmax(0) + epsilon / 3
    torch.testing.assert_close(torch.bincount(places, minlength=3) / 4000, expected.float(), atol=0.03, rtol=0.0)


def test_buffer():
    tried = [Tried((place,), 0.0, 1.0) for place in range(5)]
    assert kept(tried[:2], tried[1:4], 3) == tried[1:4], "each once, the oldest leave"
    assert kept(tried, [], 5) == tried and kept(tried, tried, 0) == []


# A turn ---------------------------------------------------------------------------------------------------------------


def of(context, **settings):
    plain = {
        "rewards": [{"function": "evals.number_game.reward"}],
        "environment": "evals.number_game.actions",
        "likelihood": "none",
        "backward": "none",
        "local_search": 3,
    }
    context.config["training"] |= {"steps": 11, "epochs": None}
    config = TypeAdapter(FlowOfReasoningConfig).validate_python({**plain, **settings})
    return started(FlowOfReasoning(config), context)


def text_logp(model, prompt, response):
    """Of a response's tokens under a model."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    return logits.log_softmax(-1)[len(prompt) - 1 : -1][torch.arange(len(response)), torch.tensor(response)].sum()


def forward_logp(model, prompt, taken, environment):
    """log P_F of a trajectory, and the number of actions in each state, one text at a time."""
    total, counts = 0.0, []
    for at, action in enumerate(taken):
        allowed = environment(prompt, taken[:at])
        counts.append(len(allowed))
        before = TOKENIZER(prompt + "".join(taken[:at]))["input_ids"]
        texts = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in allowed]
        ends = [not environment(prompt, [*taken[:at], text]) for text in allowed]
        scores = [text_logp(model, before, [*ids, EOS] if end else ids) for ids, end in zip(texts, ends, strict=True)]
        total = total + torch.stack(scores).log_softmax(0)[allowed.index(action)]
    return total, counts


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize(("objective", "backward", "likelihood"), [
    ("log_partition", "uniform", "steps"),
    ("trajectory_balance", "none", "tokens"),
])  # fmt: skip
def test_one_text_at_a_time(monkeypatch, micro, objective, backward, likelihood):
    context = RlContext(PROBLEMS)
    method = of(context, objective=objective, backward=backward, likelihood=likelihood, rows_per_pass=7)
    seen = {}
    make = method._batch
    monkeypatch.setattr(
        method,
        "_batch",
        lambda told, beta: seen.update({one.text: (one, own) for one, own, _ in told}) or make(told, beta),
    )
    turn = 2  # a fifth of the run of 11 steps: beta 1.4
    loss, found, losses = step(method, context, turn=turn, micro=micro)
    policy, base = context.roles["policy"], context.roles["reference"]
    policy.zero_grad()
    total = 0.0
    for prompt, _ in PROBLEMS:
        problem, own = seen[prompt]
        x = []
        for one in own:
            taken = problem.taken(one.steps)
            logp, counts = forward_logp(policy, prompt, taken, actions)
            score = reward([prompt], ["".join(taken)])[0]
            sums, lengths = [], []
            for at, action in enumerate(taken):
                ids = TOKENIZER(action, add_special_tokens=False)["input_ids"] + ([EOS] if at == len(taken) - 1 else [])
                before = TOKENIZER(prompt + "".join(taken[:at]))["input_ids"]
                sums.append(float(text_logp(base, before, ids).detach()))
                lengths.append(len(ids))
            more = (
                1.5 * sum(-1 / value for value in sums)
                if likelihood == "steps"
                else math.exp(sum(sums) / sum(lengths)) ** (1 / 0.7)
            )
            assert one.score == score and one.reward == pytest.approx((100 if score else 1e-3) + more, rel=1e-4)
            after = [*counts[1:], counts[-1]] if backward == "uniform" else []
            x.append(logp - 1.4 * math.log(one.reward) + sum(map(math.log, after)))
        x = torch.stack(x)
        centre = x.mean() if objective == "log_partition" else -5.0
        total = total + (x - centre).square().mean()
    total = total / len(PROBLEMS)
    assert loss == pytest.approx(float(total), rel=1e-4)
    total.backward()
    for name, weight in policy.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-3)
    assert sum(float(one.means["residual"][1]) for one in losses) == len(PROBLEMS)


def test_a_turn_does_not_depend_on_what_else_is_in_its_passes():
    """The same trajectories, whatever the micro-batches and passes."""
    found = []
    for micro, rows in ((None, 256), (1, 5)):
        context = RlContext(PROBLEMS)
        method = of(context, rows_per_pass=rows)
        (batches,) = method.rollouts(context.batches(micro), 0)
        assert all(isinstance(batch, Trajectories) for batch in batches) and len(batches) == (micro or 0) * 2 + 1
        found.append(method._found)
    assert found[0] == found[1] and set(found[0][0]) == {0, 1, 2}


def first_only(prompts, responses):
    """A reward that grows with the number of a."""
    return [response.count("a") / 4 for response in responses]


def letters(prompt, taken):
    """A tree of four steps."""
    return ["a", "b"] if len(taken) < 4 else []


def test_local_search_keeps_what_is_better_than_the_best():
    settings = {
        "rewards": [{"function": f"{HERE}.first_only"}],
        "environment": f"{HERE}.letters",
        "group_size": 2,
        "epsilon": 1.0,
    }
    without, with_ = RlContext(), RlContext()
    of(without, local_search=0, **settings).rollouts(without.batches(), 0)
    plain, searching = of(without, local_search=0, **settings), of(with_, local_search=60, **settings)
    plain.rollouts(without.batches(), 0)
    searching.rollouts(with_.batches(), 0)
    more = 0
    for example, own in searching._found[0].items():
        before = plain._found[0][example]
        assert own[:2] == before, "what is searched for adds to what was drawn"
        best = max(reward for *_, reward in before)
        assert all(reward > best for *_, reward in own[2:])
        assert len({steps for steps, *_ in own[2:]}) == len(own[2:])
        more += len(own) - 2
    assert more > 0


def test_buffers_and_log_z_go_on():
    """What a turn finds waits for its step; a continued method goes on as the first does."""
    context = RlContext(PROBLEMS)
    settings = {"objective": "trajectory_balance", "replay": 0.7, "log_z_lr": 0.1, "buffer_size": 6}
    method = of(context, **settings)
    before = method.state_dict()
    first, again = (method.rollouts(context.batches(), 0)[0][0] for _ in range(2))
    assert torch.equal(first.taken_SM, again.taken_SM) and method.state_dict()["buffers"] == before["buffers"] == {}
    assert float(first.told_M["replayed"].sum()) == 0, "there is nothing in the buffers"
    method.check({"residual": 1.5}, "here")
    method.after_step(0)
    assert method.state_dict()["log_z"] == pytest.approx(4.9), "Adam's first step is its rate"
    other = of(RlContext(PROBLEMS), **settings)
    other.load_state_dict(method.state_dict())
    for turn in range(1, 5):
        one, same = (each.rollouts(context.batches(), turn)[0][0] for each in (method, other))
        assert torch.equal(one.taken_SM, same.taken_SM) and torch.equal(one.log_rewards_M, same.log_rewards_M)
        for each in (method, other):
            each.check({"residual": -1.0}, "here")
            each.after_step(turn)
    state = method.state_dict()
    assert state["buffers"] == other.state_dict()["buffers"] and state["log_z"] == other.state_dict()["log_z"]
    assert max(len(buffer) for buffer in state["buffers"].values()) <= 6
    assert float(one.told_M["replayed"].sum()) > 0
    fresh = of(RlContext(PROBLEMS), **{**settings, "replay": 0.0})
    fresh.load_state_dict(state)
    assert float(fresh.rollouts(context.batches(), 4)[0][0].told_M["replayed"].sum()) == 0


def test_what_is_replayed_has_todays_policy():
    """P_F of buffered trajectories is that of the weights as they are."""
    context = RlContext(PROBLEMS)
    method = of(context, replay=1.0, local_search=0)
    method.rollouts(context.batches(), 0)
    method.after_step(0)
    with torch.no_grad():
        for weight in context.roles["policy"].parameters():
            weight.mul_(1.2)
        (batch,) = method.rollouts(context.batches(), 1)[0]
        assert batch.told_M["replayed"].all()
        loss = method.loss(Forward(method.kind, context.roles, batch))
        expected = 0.0
        for example, (prompt, _) in enumerate(PROBLEMS):
            own = [method._problem(example).taken(one.steps) for one in method._buffers[example]]
            logps = [float(forward_logp(context.roles["policy"], prompt, taken, actions)[0]) for taken in own]
            assert len(logps) == int((batch.problem_M == example).sum()) > 0
            expected += sum(logps) / len(logps)
    assert float(loss.means["trajectory_logp"][0]) == pytest.approx(expected, rel=1e-4)


# A whole tree ---------------------------------------------------------------------------------------------------------

WORTH = {"aa": 1.0, "ab": 3.0, "ac": 0.0, "ba": 0.5, "bb": 2.0, "bc": 0.25, "c": 4.0}


def worth(prompts, responses):
    return [WORTH[response] for response in responses]


def tree(prompt, taken):
    """Two steps, or one."""
    text = "".join(taken)
    return sorted({leaf[len(text)] for leaf in WORTH if leaf.startswith(text) and len(leaf) > len(text)})


@pytest.mark.parametrize("objective", ["log_partition", "trajectory_balance"])
def test_leaves_are_reached_in_proportion_to_their_reward(objective):
    """Total variation between P_F(leaf) and R / Z below .05; a learned log Z comes to log of the sum of rewards."""
    torch.manual_seed(0)
    context = RlContext([("go", "")], policy=byte_llama(0))
    method = of(
        context,
        rewards=[{"function": f"{HERE}.worth"}],
        environment=f"{HERE}.tree",
        objective=objective,
        success_reward=1.0,
        floor=0.05,
        exponent=1.0,
        exponent_last=1.0,
        group_size=8,
        log_z=0.0,
        log_z_lr=0.1,
        epsilon=0.2,
        replay=0.2,
        local_search=2,
    )
    policy = context.roles["policy"]
    rewards = torch.tensor([max(value, 0.05) for value in WORTH.values()])
    expected = rewards / rewards.sum()

    def distance():
        with torch.no_grad():
            logps = [float(forward_logp(policy, "go", list(leaf), tree)[0]) for leaf in WORTH]
        chances = torch.tensor(logps).exp()
        assert float(chances.sum()) == pytest.approx(1.0, abs=1e-4)
        return float((chances - expected).abs().sum()) / 2

    assert distance() > 0.15
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for turn in range(120):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (120 - turn) / 60)
        (batch,) = method.rollouts(context.batches(), turn)[0]
        loss = method.loss(Forward(method.kind, context.roles, batch))
        optimizer.zero_grad()
        loss.sum.backward()
        optimizer.step()
        method.check({"residual": float(loss.means["residual"][0] / loss.means["residual"][1])}, "here")
        method.after_step(turn)
    assert distance() < 0.05
    if objective == "trajectory_balance":
        assert method.report()["log_z"] == pytest.approx(float(rewards.sum().log()), abs=0.15)


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"group_size": 1}, "group_size"),
    ({"floor": 0.0}, "floor"),
    ({"hot": 0.5}, "hot"),
    ({"objective": "detailed_balance"}, "objective"),
])  # fmt: skip
def test_settings_that_do_not_go(settings, message):
    with pytest.raises(ValueError, match=message):
        TypeAdapter(FlowOfReasoningConfig).validate_python({"rewards": [], "environment": "a.b", **settings})


def silent(prompt, taken):
    return [""]


def closed(prompt, taken):
    return []


def endless(prompt, taken):
    return ["a" * 200]


@pytest.mark.parametrize(("environment", "message"), [
    ("evals.number_game.moves", r"method\.environment=evals\.number_game\.moves: cannot be imported"),
    (f"{HERE}.silent", r"method\.environment=.*silent: an action must not be empty"),
    (f"{HERE}.closed", r"method\.environment=.*closed: must allow an action at first, of '.*' got none"),
    (f"{HERE}.endless", r"method\.max_steps=8: a trajectory has \d+ tokens, the model takes at most 256"),
])  # fmt: skip
def test_environments_that_do_not_go(environment, message):
    context = RlContext()
    with pytest.raises(ValueError, match=message):
        of(context, environment=environment).rollouts(context.batches(), 0)


def test_a_trajectory_ends_where_it_must():
    context = RlContext(PROBLEMS)
    method = of(context, max_steps=1)
    method.rollouts(context.batches(), 0)
    assert all(len(steps) == 1 for own in method._found[0].values() for steps, *_ in own)
