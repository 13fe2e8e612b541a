"""DPH-RL: divergences by hand, which prompts are solved, rows of a turn, and steps that have both terms."""

import math

import numpy as np
import pytest
import torch

from methods.batch import sum_by_sequence
from methods.divergences import generalized_jsd
from methods.examples import Examples
from methods.forward import Forward
from methods.generation import generate
from methods.rl.dph_rl import DphRl, DphRlConfig, log_mixture, next_rows, rehearsal_losses, solved_prompts
from methods.rl.grpo import Grpo, GrpoConfig
from methods.rl.losses import kl_estimates
from tests.methods.mix.fakes import byte_llama
from tests.methods.rl.running import PROBLEMS, RlContext, config_of, started, step

COPIES = [{"function": "tests.methods.rl.test_dph_rl.copies_are_solved"}]


def copies_are_solved(prompts, responses):
    """Every answer to a prompt of copying is right, of others it differs and none is."""
    return [
        1.0
        if prompt.startswith("copy")
        else 0.9 * sum(ord(letter) < 128 for letter in response) / max(len(response), 1)
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def no_copy_is_solved(prompts, responses):
    """Equal rewards, of which only those to one prompt are right."""
    return [1.0 if prompt.startswith("flip") else 0.0 for prompt in prompts]


def all_are_solved(prompts, responses):
    """Nothing is left to be explored."""
    return [1.0] * len(responses)


class Presampling(RlContext):
    """What the start writes in advance."""

    def generate(self, what, prompts, sampling, batch_size):
        self.asked.append((len(prompts), sampling, batch_size))
        written = []
        for begin in range(0, len(prompts), batch_size):
            written += generate(self.roles["policy"], prompts[begin : begin + batch_size], sampling, seed=begin)
        return Examples.of([[*p, *w] for p, w in zip(prompts, written, strict=True)], [len(p) for p in prompts])


def dph(**settings):
    near = {"near_perfect": 2, "presamples": 3, "presample_batch_size": 4}
    return DphRl(config_of(DphRlConfig, **{"rewards": COPIES, "aggregation": "token", **near, **settings}))


def arranged(method, problems=PROBLEMS):
    """As a run does it: what is trained on is asked for first."""
    context = Presampling(problems)
    context.examples = method.arrange(context, context.examples)
    return started(method, context), context


@pytest.mark.parametrize(
    ("d", "forward_kl", "js", "alpha_2", "alpha_5"),
    [(-1, 0.367879, 0.151758, 0.281091, 0.309636), (0, 0, 0, 0, 0), (1, 0.718282, 0.412521, 0.931778, 0.841679)],
)
def test_by_hand(d, forward_kl, js, alpha_2, alpha_5):
    logps, start = torch.tensor([-2.0 + d], dtype=torch.float64), torch.tensor([-2.0], dtype=torch.float64)
    assert float(rehearsal_losses(logps, start, "forward_kl")) == pytest.approx(forward_kl, abs=1e-6)
    assert float(rehearsal_losses(logps, start, "js")) == pytest.approx(js, abs=1e-6)
    assert float(rehearsal_losses(logps, start, "alpha")) == pytest.approx(alpha_2, abs=1e-6)
    assert float(rehearsal_losses(logps, start, "alpha", 0.5)) == pytest.approx(alpha_5, abs=1e-6)


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha", "js_mixture"])
def test_least_where_nothing_has_changed(divergence):
    start = torch.tensor([-0.1, -1.0, -5.0], dtype=torch.float64)
    logps = start.clone().requires_grad_()
    losses = rehearsal_losses(logps, start, divergence)
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    assert losses.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12
    for d in (-3.0, -0.2, 0.1):
        moved = (start + d).requires_grad_()
        losses = rehearsal_losses(moved, start, divergence)
        (gradient,) = torch.autograd.grad(losses.sum(), moved)
        assert (losses > 0).all()
        assert (gradient.sign() == math.copysign(1, d)).all(), "back to the start"


def test_alpha_has_the_limits_of_the_table():
    start = torch.full((5,), -3.0, dtype=torch.float64)
    d = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=torch.float64)
    u = d.exp()
    torch.testing.assert_close(rehearsal_losses(start + d, start, "alpha", 1e-6), u * d - u + 1, atol=1e-4, rtol=1e-4)
    near_one = rehearsal_losses(start + d, start, "alpha", 1 - 1e-6)
    torch.testing.assert_close(near_one, u - 1 - d, atol=1e-4, rtol=1e-4)


def test_expectations_over_a_vocabulary():
    """Samples are of the start: forward KL, twice the Jensen-Shannon divergence, KL to the mixture."""
    generator = torch.Generator().manual_seed(0)
    policy, start = torch.randn(2, 9, generator=generator).double().log_softmax(-1)

    def expected(divergence):
        return float((start.exp() * rehearsal_losses(policy, start, divergence)).sum())

    mixture = log_mixture(policy, start)
    assert expected("forward_kl") == pytest.approx(float((start.exp() * (start - policy)).sum()))
    assert expected("js") == pytest.approx(2 * float(generalized_jsd(policy, start, 0.5)))
    of_start = float((start.exp() * (start - mixture)).sum())
    assert expected("js_mixture") == pytest.approx(of_start)
    of_policy = float((policy.exp() * kl_estimates(policy, mixture, "k3")).sum())
    assert of_policy + of_start == pytest.approx(expected("js")), "the other half, on the policy's own"


def test_forward_kl_is_bounded():
    logps = torch.tensor([-40.0, -12.0, -10.0, 2.0, 3.0, 40.0]).requires_grad_()
    losses = rehearsal_losses(logps, torch.zeros(6), "forward_kl")
    assert losses.detach().tolist() == pytest.approx([10, 10, 9 + math.exp(-10), math.exp(2) - 3, 10, 10], rel=1e-5)
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    assert [value == 0 for value in gradient.tolist()] == [True, True, False, False, True, True]


def test_solved_prompts():
    correct = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]]).bool()
    is_solved, place = solved_prompts(correct, 2)
    assert is_solved.tolist() == [True, False, True, False]
    assert place[is_solved].tolist() == [1, 0]


def test_rows_of_a_turn():
    """Every row once in each pass over them, in another order; as many as there are where that is less."""
    rows = [row for turn in range(5) for row in next_rows(10, 4, turn, 7)]
    assert len(rows) == 20
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    assert next_rows(10, 4, 2, 7) == next_rows(10, 4, 2, 7) != next_rows(10, 4, 2, 8)
    assert sorted(next_rows(3, 512, 5, 7)) == [0, 1, 2]


def test_prompts_are_sorted_by_what_the_start_solves():
    method, context = arranged(dph())
    ((count, sampling, batch_size),) = context.asked
    assert (count, batch_size) == (9, 4)
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (1.0, 0.95, 6)
    told = method.prepare(context)
    assert told == {"rehearsal/solved": 1.0, "rehearsal/explored": 2.0}
    assert [method._texts[index] for index in range(2)] == PROBLEMS[1:]
    every = Presampling()
    assert context.examples.prompt(0).tolist() == every.examples.prompt(1).tolist()
    assert method._rehearsal.prompt(0).tolist() == every.examples.prompt(0).tolist()
    episodes = method.episodes(context.batches(), 0)
    assert len(episodes) == 8
    assert (episodes.reward_N < 1).all()


def test_start_logps_are_at_the_temperature_of_training():
    method, context = arranged(dph(temperature=0.6))
    prompt, tokens = method._rehearsal.prompt(0).tolist(), method._rehearsal.response(0).tolist()
    with torch.no_grad():
        logits = context.roles["policy"](input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    expected = (logits / 0.6).log_softmax(-1)[range(len(tokens)), tokens]
    torch.testing.assert_close(method._start_logps[0], expected, atol=1e-5, rtol=0)
    assert context.decided[0][1]["temperature"] == 0.6


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_a_step_has_both_terms(divergence):
    """Policy gradient over its own tokens, and coefficient times the mean over those of solved prompts."""
    method, context = arranged(dph(divergence=divergence, coefficient=0.3))
    context.roles["policy"] = moved = byte_llama(2)  # the policy has left the start
    loss, gradients, losses = step(method, context)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    total, tokens = losses[-1].means["rehearsal"]
    assert int(tokens) == len(method._start_logps[0])
    own = rehearsal_losses(logps_of(moved, method), method._start_logps[0], divergence)
    assert float((total / tokens).detach()) == pytest.approx(float(own.mean().detach()), rel=1e-4)

    plain = Grpo(config_of(GrpoConfig, rewards=COPIES, aggregation="token"))
    other = RlContext(PROBLEMS[1:], policy=byte_llama(2))
    plain_loss, expected, _ = step(started(plain, other), other)
    assert loss == pytest.approx(plain_loss + 0.3 * float(own.mean().detach()), rel=1e-4)
    moved.zero_grad()
    (0.3 * own.mean()).backward()
    for name, weight in moved.named_parameters():
        torch.testing.assert_close(gradients[name], expected[name] + weight.grad, atol=1e-5, rtol=1e-3)


def logps_of(model, method):
    prompt, tokens = method._rehearsal.prompt(0).tolist(), method._rehearsal.response(0).tolist()
    logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(tokens)), tokens]


def test_at_the_start_the_divergence_is_nothing():
    method, context = arranged(dph(coefficient=5.0))
    _, gradients, losses = step(method, context)
    assert float(losses[-1].sum.detach()) == pytest.approx(0, abs=1e-6)
    other = RlContext(PROBLEMS[1:])
    _, expected, _ = step(started(Grpo(config_of(GrpoConfig, rewards=COPIES, aggregation="token")), other), other)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3)


def test_without_solved_prompts_it_is_grpo():
    """Exactly, with nothing sampled in advance; and where the start solves none."""
    grpo = Grpo(config_of(GrpoConfig, aggregation="token"))
    loss, expected, _ = step(started(grpo, context := RlContext()), context)
    early_letters = [{"function": "tests.methods.rl.running.early_letters"}]
    off, context = arranged(dph(near_perfect=None, rewards=early_letters))
    assert context.asked == []
    got, gradients, _ = step(off, context)
    assert got == loss
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients.items())
    letters = [("sort 321:", "123"), ("flip 7:", "7")]
    none, context = arranged(dph(), letters)
    assert none.prepare(context)["rehearsal/solved"] == 0
    _, gradients, losses = step(none, context)
    assert len(losses) == 1
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients.values())


def test_equal_rewards_leave_the_divergence_alone():
    method, context = arranged(dph(rewards=[{"function": "tests.methods.rl.test_dph_rl.no_copy_is_solved"}]))
    assert context.examples.group_count == 2
    _, gradients, _ = step(method, context)
    # At the start that is 0 but for rounding, whose size is that of stored log-probabilities.
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients.values())
    coefficient_off, context = arranged(dph(rewards=method.config.rewards, coefficient=0.0))
    _, gradients, _ = step(coefficient_off, context)
    assert all((gradient == 0).all() for gradient in gradients.values())


MANY = [(f"copy {number}:", str(number)) for number in range(5)] + PROBLEMS[1:]


def test_steps_passes_and_processes_share_the_rows():
    method, context = arranged(dph(minibatches=2, epochs=2, responses_per_pass=2, rehearsal_size=4), MANY)
    steps = method.rollouts(context.batches(), 3)
    rows = next_rows(5, 4, 3, context.seed)
    for number, batches in enumerate(steps):
        found = [row for batch in batches if "start_logps" in batch.values_K for row in batch.example_S.tolist()]
        assert found == rows[number % 2 :: 2]
        assert sum(method.count(batch) for batch in batches if "start_logps" in batch.values_K) == 0
    # Of 3 processes the last has no row of its own, and takes part.
    context.gathered = lambda value: [value] * 3
    shares = []
    for rank in range(3):
        context.rank = rank
        shares.append(method._rehearsed([4, 2, 0], 10) + method._rehearsed([1, 3], 10))
    assert [[len(batch.values_K["scale"]) > 0 for batch in share] for share in shares] == [[True, True]] * 2 + [
        [True, False]
    ]
    waits = shares[2][1]
    assert waits.target_count == 0
    assert float(method.loss(Forward(method.kind, context.roles, waits)).sum.detach()) == 0
    scale = float(shares[0][0].values_K["scale"][0])
    tokens = sum(len(method._start_logps[row]) for row in (4, 2, 0))
    assert scale == pytest.approx(0.01 * 10 / tokens)


def test_js_with_the_mixture_asks_the_reference_now_and_then():
    method, context = arranged(dph(divergence="js_mixture", mixture_share=1.0, coefficient=0.5))
    assert "reference" in method.frozen
    assert "reference" not in dph().frozen
    _, gradients, losses = step(method, context)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    batch = method.rollouts(context.batches(), 0)[0][0]
    forward = Forward(method.kind, context.roles, batch)
    logps, reference = forward.token_logps("policy").detach(), forward.token_logps("reference")
    d = torch.log((logps.exp() + reference.exp()) / 2) - logps
    assert float(losses[0].means["to_mixture"][0].detach()) == pytest.approx(float((d.exp() - d - 1).sum()), rel=1e-3)
    plain = Grpo.loss(method, forward)
    added = float((method.loss(forward).sum - plain.sum).detach())
    assert added == pytest.approx(0.5 * float((d.exp() - d - 1).sum()), rel=1e-3)
    seldom, context = arranged(dph(divergence="js_mixture", mixture_share=0.3, responses_per_pass=1))
    marks = [
        "to_mixture" in batch.values_S
        for turn in range(8)
        for batch in seldom.rollouts(context.batches(), turn)[0]
        if "start_logps" not in batch.values_K
    ]
    assert len(marks) == 64
    assert 0.1 < np.mean(marks) < 0.5
    assert float(sum_by_sequence(torch.ones_like(d), batch).sum()) == len(d)


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match=r"method\.near_perfect=2: the starting model solves all 3 prompts"):
        arranged(dph(rewards=[{"function": "tests.methods.rl.test_dph_rl.all_are_solved"}]))
    with pytest.raises(ValueError, match=r"method\.near_perfect=4: must be at most method\.presamples=3"):
        dph(near_perfect=4)
    with pytest.raises(ValueError, match=r"method\.stop=\['\.'\]: must be null"):
        dph(stop=["."])
