"""Likelihood rewards: the formulas by hand, both parts of the gradient, where a thought ends, the whole method."""

import itertools
import math
import re

import pytest
import torch
from pydantic import TypeAdapter

from methods.generation import Written
from methods.rl.advantages import centred
from methods.rl.grpo import Grpo, GrpoConfig
from methods.rl.likelihood_rewards import (
    LikelihoodRewards,
    LikelihoodRewardsConfig,
    answer_losses,
    debiased,
    enough_spread,
    formatted,
    jepo_rewards,
    jepo_weights,
    likelihoods,
    marginal_log_prob,
    nover_rewards,
    reasoning_perplexity,
    thought_of,
)
from tests.methods.mix.fakes import EOS, TOKENIZER
from tests.methods.rl.given import ragged
from tests.methods.rl.running import PROBLEMS, RlContext, config_of, started, step

FAMILIES = ("log_prob", "avg_log_prob", "prob", "avg_prob", "geometric")
P = torch.tensor([0.2, 0.1, 0.4, 0.1], dtype=torch.float64)
ONE_GROUP = torch.zeros(4, dtype=torch.long)
ANSWERS = [text for _, text in PROBLEMS]


def tokens(text, eos=True):
    return [*TOKENIZER(text, add_special_tokens=False)["input_ids"], *([EOS] if eos else [])]


# Rewards --------------------------------------------------------------------------------------------------------------


def test_of_one_answer():
    logps = [torch.tensor([0.9, 0.1, 0.5], dtype=torch.float64).log()]
    expected = {"prob": 0.045, "log_prob": -3.101093, "avg_log_prob": -1.033698, "avg_prob": 0.5}
    for name, value in expected.items():
        assert likelihoods(logps, name).item() == pytest.approx(value, abs=5e-7)
    assert likelihoods(logps, "geometric").item() == pytest.approx(0.045 ** (1 / 3))
    assert likelihoods([], "prob").shape == (0,)


def test_advantages_of_a_group():
    log_prob = centred(P.log(), ONE_GROUP, "leave_one_out")
    assert log_prob.tolist() == pytest.approx([0.231049, -0.693147, 1.155245, -0.693147], abs=5e-7)
    prob = centred(P, ONE_GROUP, "leave_one_out")
    assert prob.tolist() == pytest.approx([0, -0.133333, 0.266667, -0.133333], abs=5e-7)
    assert jepo_rewards(P.log(), ONE_GROUP).tolist() == pytest.approx([0, -0.154151, 0.405465, -0.154151], abs=5e-7)
    assert jepo_weights(P.log(), ONE_GROUP).tolist() == pytest.approx([0.25, 0.125, 0.5, 0.125])


def test_groups_keep_apart():
    both = torch.cat([P.log(), P.flip(0).log()])
    group = torch.tensor([0, 0, 0, 0, 7, 7, 7, 7])
    for function in (jepo_rewards, jepo_weights):
        one = function(P.log(), ONE_GROUP)
        torch.testing.assert_close(function(both, group), torch.cat([one, one.flip(0)]))
        assert function(both[:0], group[:0]).shape == (0,)
    assert jepo_rewards(P[:1].log(), ONE_GROUP[:1]).tolist() == [0.0]


def test_a_common_factor():
    """Long answers: all P become small. log P and JEPO see no difference, P itself vanishes."""
    small = (P * 1e-9).log()
    for advantages in (lambda x: centred(x, ONE_GROUP, "leave_one_out"), lambda x: jepo_rewards(x, ONE_GROUP)):
        torch.testing.assert_close(advantages(small), advantages(P.log()))
    scaled = centred(small.exp(), ONE_GROUP, "leave_one_out")
    torch.testing.assert_close(scaled, 1e-9 * centred(P, ONE_GROUP, "leave_one_out"))


def test_what_underflows_in_a_sum_of_logs():
    found = jepo_rewards(torch.tensor([-5000.0, -6000.0, -5001.0]), torch.zeros(3))
    assert found.isfinite().all() and found.argmax() == 0


def test_marginal():
    assert marginal_log_prob(P.log()).item() == pytest.approx(-1.609438, abs=5e-7)
    assert P.log().mean().item() == pytest.approx(-1.782725, abs=5e-7)


def test_rlpr():
    found = debiased(torch.tensor([0.5, 0.2, 0.9]), torch.tensor([0.3, 0.4, 0.9]))
    assert found.tolist() == pytest.approx([0.2, 0.0, 0.0])
    formed = torch.tensor([True, False])
    rewards = torch.tensor([0.5, 0.5])
    assert formatted(rewards, formed, 0.1).tolist() == pytest.approx([0.55, 0.45])
    assert formatted(rewards, formed, 0.0, -1.0).tolist() == [0.5, -1.0]
    assert enough_spread(torch.tensor([0.1, 0.3]), 0.4, 0.5).tolist() == [False, True]


def test_nover():
    logps = [torch.tensor([0.9, 0.1, 0.5], dtype=torch.float64).log()] * 3
    found = reasoning_perplexity(logps, torch.tensor([0, 1, 100]))
    assert found.tolist() == pytest.approx([math.exp(1.033698)] * 2 + [math.exp(1.033698 / 3)], rel=1e-6)
    perplexity = torch.tensor([1.5, 1.2, 3.0, 9.0])
    length = torch.tensor([10, 5, 20, 50])
    formed = torch.tensor([True, True, True, False])
    rewards = nover_rewards(perplexity, length, formed, ONE_GROUP)
    # Ranks 1, 0, 2 among three; the first beats the third, the second both, in perplexity and length.
    assert rewards.tolist() == pytest.approx([2 / 3 + 1 / 3 + 1, 1 + 2 / 3 + 1, 1 / 3 + 0 + 1, 0.0])
    assert nover_rewards(perplexity, length.flip(0), formed, ONE_GROUP)[1].item() == pytest.approx(1 + 1 / 3 + 1)


# The gradient, on thoughts that can be enumerated ---------------------------------------------------------------------


def exact_parts():
    """log pi of 3 thoughts, and the two tokens' log-probabilities of an answer after each."""
    generator = torch.Generator().manual_seed(1)
    thought = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
    answer = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64).requires_grad_()
    return thought, answer


@pytest.mark.parametrize("family", FAMILIES)
def test_both_terms_are_the_gradient_of_the_expected_reward(family):
    thought, answer = exact_parts()

    def parts():
        return thought.log_softmax(0), answer.log_softmax(-1)[..., 0]

    log_z, answer_ZK = parts()
    of_one = {
        "log_prob": lambda x: x.sum(1),
        "avg_log_prob": lambda x: x.mean(1),
        "prob": lambda x: x.sum(1).exp(),
        "avg_prob": lambda x: x.exp().mean(1),
        "geometric": lambda x: x.mean(1).exp(),
    }[family]
    exact = torch.autograd.grad((log_z.exp() * of_one(answer_ZK)).sum(), (thought, answer))
    log_z, answer_ZK = parts()
    rewards = likelihoods(list(answer_ZK.detach()), family)
    terms = answer_losses(answer_ZK.flatten(), ragged([2, 2, 2]), family, torch.arange(3))
    loss = (log_z.exp().detach() * (terms - rewards * log_z)).sum()
    for found, expected in zip(torch.autograd.grad(loss, (thought, answer)), exact, strict=True):
        torch.testing.assert_close(-found, expected)


def test_both_terms_of_jepo():
    """n = 2: E log((P_1 + P_2) / 2), whose baseline has no effect in expectation."""
    thought, answer = exact_parts()
    pairs = list(itertools.product(range(3), repeat=2))
    log_z, log_prob = thought.log_softmax(0), answer.log_softmax(-1)[..., 0].sum(1)
    mean = sum((log_z[a] + log_z[b]).exp() * torch.logaddexp(log_prob[a], log_prob[b]) for a, b in pairs)
    exact = torch.autograd.grad(mean, (thought, answer))
    loss = 0.0
    for pair in pairs:
        log_z, answer_ZK = thought.log_softmax(0)[list(pair)], answer.log_softmax(-1)[..., 0][list(pair)]
        rewards = jepo_rewards(answer_ZK.detach().sum(1), torch.zeros(2))
        terms = answer_losses(answer_ZK.flatten(), ragged([2, 2]), "jepo", torch.zeros(2))
        loss = loss + log_z.sum().exp().detach() * (terms - rewards * log_z).sum()
    for found, expected in zip(torch.autograd.grad(loss, (thought, answer)), exact, strict=True):
        torch.testing.assert_close(-found, expected)


def test_no_answer_term():
    with pytest.raises(ValueError, match=r"^reward=nover: must be one of log_prob"):
        answer_losses(torch.zeros(1), ragged([1]), "nover", torch.zeros(1))


# Thoughts -------------------------------------------------------------------------------------------------------------


def thought(text, boundary="=", eos=True):
    return thought_of(tokens(text, eos), EOS, boundary, tokens(boundary, False), TOKENIZER.decode)


def test_where_a_thought_ends():
    found = thought("1+1=2=3")
    assert (TOKENIZER.decode(found.tokens), found.count, found.formed) == ("1+1=", 4, True)
    found = thought("1+1")
    assert (TOKENIZER.decode(found.tokens), found.count, found.formed) == ("1+1=", 4, False), "EOS belongs to it"
    found = thought("1+1", eos=False)
    assert (TOKENIZER.decode(found.tokens), found.count, found.formed) == ("1+1=", 3, False)
    found = thought("abc", boundary="")
    assert (TOKENIZER.decode(found.tokens), found.count, found.formed) == ("abc", 4, True)
    found = thought("", boundary="")
    assert (found.tokens, found.count) == ([], 1)


def test_a_token_over_the_boundary():
    """Tokens of whole words: the one with the boundary's end goes on with an answer of the policy's own."""
    words = ["so ", "it ", "is", ": 4", "2"]

    def decode(ids):
        return "".join(words[i] for i in ids)

    found = thought_of([0, 1, 2, 3, 4], 99, ": ", [77], decode)
    assert (found.tokens, found.count, found.formed) == ([0, 1, 2, 77], 4, True)


# The method -----------------------------------------------------------------------------------------------------------


class Writing(RlContext):
    """Its policy writes what the test says."""

    texts_to_write = ("1=", "22=9", "333", "4=")

    def write(self, role, prompts, sampling, seed):
        written = []
        for place, prompt in enumerate(prompts):
            ids = tokens(self.texts_to_write[place % len(self.texts_to_write)])
            logits = self.roles[role](input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            logps = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].tolist()
            written.append(Written(ids, True, logps))
        return written


def by_hand(context, prompt, continuation):
    """Log-probabilities of a continuation's tokens, with gradient."""
    whole = torch.tensor([[*prompt, *continuation]])
    logps = context.roles["policy"](input_ids=whole).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    return logps[torch.arange(len(continuation)), torch.tensor(continuation)]


def of(context, **settings):
    config = config_of(LikelihoodRewardsConfig, **{"boundary": "=", "max_new_tokens": 8, **settings})
    return started(LikelihoodRewards(config), context)


@pytest.mark.parametrize("reward", [*FAMILIES, "jepo"])
@pytest.mark.parametrize("micro", [None, 1])
def test_one_sequence_at_a_time(reward, micro):
    """Policy term on the thoughts, answer term on the answers after the boundary, a mean over responses."""
    baseline = {"baseline": "none"} if reward == "jepo" else {}
    context = Writing()
    _, found, losses = step(of(context, reward=reward, answer_weight=0.5, **baseline), context, micro=micro)
    context.roles["policy"].zero_grad()
    total = 0.0
    for index, answer in enumerate(ANSWERS):
        prompt = context.examples.prompt(index).tolist()
        thoughts = [tokens(text, False) for text in ("1=", "22=", "333=", "4=")]
        acted = [tokens("1=", False), tokens("22=", False), tokens("333"), tokens("4=", False)]
        answers = [by_hand(context, [*prompt, *one], tokens(answer)) for one in thoughts]
        log_prob, group = torch.stack([one.sum() for one in answers]).double(), torch.zeros(4)
        if reward == "jepo":
            advantage = jepo_rewards(log_prob.detach(), group)
            terms = jepo_weights(log_prob.detach(), group) * log_prob
        else:
            rewards = likelihoods([one.detach() for one in answers], reward)
            advantage = centred(rewards, group, "leave_one_out")
            terms = {
                "log_prob": log_prob,
                "avg_log_prob": torch.stack([one.mean() for one in answers]),
                "prob": log_prob.exp(),  # the gradient of P is P grad log P
                "avg_prob": torch.stack([one.exp().mean() for one in answers]),
                "geometric": torch.stack([one.mean().exp() for one in answers]),
            }[reward]
        policy = torch.stack([by_hand(context, prompt, one).sum() for one in acted])
        total = total - (advantage * policy + 0.5 * terms).sum() / 12
    total.backward()
    for name, weight in context.roles["policy"].named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-6)
    assert all(loss.means["sampler_gap"][0] < 1e-3 for loss in losses)
    assert sum(loss.means["answer_logp"][1] for loss in losses) == 12


def test_a_constant_thought_is_supervised_fine_tuning():
    context = Writing()
    context.texts_to_write = ("=",)
    _, found, _ = step(of(context), context)
    context.roles["policy"].zero_grad()
    prompts = [context.examples.prompt(index).tolist() for index in range(3)]
    boundary = tokens("=", False)
    pairs = zip(prompts, ANSWERS, strict=True)
    total = sum(by_hand(context, [*prompt, *boundary], tokens(answer)).sum() for prompt, answer in pairs)
    (-total / 3).backward()
    for name, weight in context.roles["policy"].named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-6)


def test_equal_likelihoods_have_no_policy_term():
    context = Writing()
    context.texts_to_write = ("=",)
    loss, gradients, _ = step(of(context, answer_weight=0.0), context)
    assert loss == 0 and all(not gradient.any() for gradient in gradients.values())


def test_a_verifier_alone_is_grpo():
    settings = {"epochs": 2, "beta": 0.04, "baseline": "group", "scale": "group", "ratio": "token"}
    context = RlContext()
    _, expected, _ = step(started(Grpo(config_of(GrpoConfig, **settings)), context), context)
    config = config_of(LikelihoodRewardsConfig, reward="verifier", answer_weight=0.0, credit="response", **settings)
    context = RlContext()
    _, found, _ = step(started(LikelihoodRewards(config), context), context)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("settings", [
    {"reward": "log_prob", "epochs": 2, "minibatches": 2},
    {"reward": "rlpr", "answer_weight": 0.0, "spread": 0.5, "format_weight": 0.1, "malformed": -1.0},
    {"reward": "nover", "answer_weight": 0.0, "scorer": "reference", "baseline": "group", "beta": 0.1},
    {"reward": "prob", "aggregation": "constant", "credit": "response", "beta": 0.1},
])  # fmt: skip
def test_a_step_of_a_real_model(settings):
    context = RlContext()
    method = of(context, **{"boundary": "", **settings})
    loss, gradients, losses = step(method, context)
    assert math.isfinite(loss) and all(gradient.isfinite().all() for gradient in gradients.values())
    assert any(gradient.abs().sum() > 0 for gradient in gradients.values())
    assert all(set(one.means) >= {"reward", "graded", "sampler_gap"} for one in losses)


def test_a_cut_response_carries_no_loss():
    """Neither of its thought nor of the answer after it; the random model ends none in so few tokens."""
    context = RlContext()
    loss, gradients, _ = step(of(context, boundary="", mask_truncated=True), context)
    assert loss == 0 and all(not gradient.any() for gradient in gradients.values())


def test_what_rlpr_subtracts():
    """The likelihood of the answer right after the prompt; a thought that is only the boundary adds nothing."""
    context = Writing()
    context.texts_to_write = ("=", "1=")
    method = of(context, reward="rlpr", answer_weight=0.0, group_size=2)
    episodes = method.episodes(context.batches(), 0)
    rewards, example = episodes.reward_N, int(episodes.example_N[1])
    assert rewards[::2].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-7)
    prompt, answer = context.examples.prompt(example).tolist(), tokens(ANSWERS[example])
    with torch.no_grad():
        with_it, without = (
            by_hand(context, [*prompt, *tokens(text, False)], answer).exp().mean() for text in ("1=", "=")
        )
    assert with_it > without, "else the test shows nothing"
    assert rewards[1].item() == pytest.approx(float(with_it - without), abs=1e-6)


def test_the_running_spread_waits_for_the_step():
    context = RlContext()
    method = of(context, reward="log_prob", boundary="", spread=1.0, spread_decay=0.5)
    method.rollouts(context.batches(), 0)
    assert "mean_std" not in method.state_dict()
    method.after_step(0)
    first = method.state_dict()["mean_std"]
    assert first > 0
    again = of(RlContext(), reward="log_prob", boundary="", spread=1e9)
    again.load_state_dict(method.state_dict())
    (batches,) = again.rollouts(context.batches(), 0)
    assert not any(batch.target_count for batch in batches), "no group is spread so much"


def test_the_last_of_the_datas_answer():
    context = RlContext([("p:", "thus #### 42"), ("q:", "7")])
    method = of(context, answer_after="####", answer_eos=False)
    assert [TOKENIZER.decode(answer) for answer in method._answers] == ["42", "7"]


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_no_room():
    with pytest.raises(ValueError, match=r"^method\.max_new_tokens=250: with the longest prompt, boundary and answer"):
        of(RlContext(), max_new_tokens=250)
    with pytest.raises(ValueError, match=r"^dataset\.completion: the answer of example 1 is empty"):
        of(RlContext([("p:", "1"), ("q:", "thus ####")]), answer_after="####")


@pytest.mark.parametrize(("settings", "message"), [
    ({"dynamic_sampling": 1}, "method.dynamic_sampling=1"),
    ({"combine": "normalise_then_sum"}, "method.combine=normalise_then_sum"),
    ({"reward": "jepo"}, "method.reward=jepo: is centred already"),
    ({"reward": "nover"}, "method.answer_weight=1.0: method.reward=nover has no answer term"),
    ({"aggregation": "token"}, "method.aggregation=token: must be sequence"),
    ({"reward": "best"}, "reward"),
])  # fmt: skip
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TypeAdapter(LikelihoodRewardsConfig).validate_python({"rewards": [], **settings})
