"""DRPO: weights and coefficients by hand, limits of tau and lambda, the trust region, and a step."""

import pytest
import torch

from methods.forward import Forward
from methods.rl.drpo import Drpo, DrpoConfig, coefficients, discriminative, length_weights, trust_penalty
from methods.rl.grpo import Grpo, GrpoConfig
from tests.methods.rl.running import RlContext, config_of, started, step

NOTHING = [{"function": "tests.methods.rl.running.nothing"}]
HALF = [{"function": "tests.methods.rl.test_drpo.every_second"}]
NAN = float("nan")


def every_second(prompts, responses):
    """Two of four responses are right."""
    return [float(place % 2) for place in range(len(responses))]


def of(values):
    return torch.as_tensor(values, dtype=torch.float64)


def test_weights_by_hand():
    lengths = torch.tensor([1000, 4000, 8000])
    assert length_weights(lengths, 8192, 0.1).tolist() == pytest.approx([0.974780, 0.025031, 0.000190], abs=1e-6)
    assert length_weights(lengths, 8192, 1.0).tolist() == pytest.approx([0.471953, 0.327232, 0.200816], abs=1e-6)
    assert length_weights(lengths, 8192, None).tolist() == pytest.approx([1 / 3] * 3)
    assert length_weights(lengths, 8192, 1e-6).isfinite().all()


REWARD = of([1, 1, 0, 0.5, 1, 1, 0, 0, 1, NAN, 0])
LENGTH = torch.tensor([10, 90, 5, 50, 3, 4, 5, 6, 20, 1, 30])
GROUP = torch.tensor([4, 4, 4, 4, 2, 2, 9, 9, 7, 7, 7])


@pytest.mark.parametrize("temperature", [0.05, 1.0, None])
def test_no_correct_response_counts_against_its_length(temperature):
    found = coefficients(REWARD, LENGTH, GROUP, 100, temperature)
    assert (found[REWARD >= 1] >= 0).all()
    assert (found[REWARD < 1] <= 0).all()
    assert float(found[:2].sum()) == pytest.approx(1)
    assert found[2:4].tolist() == [-0.5, -0.5]
    assert found[4:8].tolist() == [0] * 4, "all correct, all wrong"
    assert found[8:].tolist() == [1, 0, -1]
    assert found[0] >= found[1], "the shorter one"


def test_gradients_sum_to_one_on_either_side():
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(11, generator=generator).double().requires_grad_()
    counts = coefficients(REWARD, LENGTH, GROUP, 100, 0.3)
    (gradient,) = torch.autograd.grad(discriminative(score, counts, GROUP, 0.7), score)
    torch.testing.assert_close(gradient[counts > 0], counts[counts > 0])
    for group in (4, 7):
        own = (group == GROUP) & (counts < 0)
        assert float(gradient[own].sum()) == pytest.approx(-1)
        torch.testing.assert_close(gradient[own], -(score[own].detach() / 0.7).softmax(0))
    assert (gradient[counts == 0] == 0).all()


def test_value_and_limits_of_tau():
    score, group = of([-1.0, -2.0, -0.5, -3.0]), torch.zeros(4, dtype=torch.long)
    counts = coefficients(of([1, 1, 0, 0]), torch.tensor([1, 1, 1, 1]), group, 10, 0.1)
    expected = -1.5 - 2 * float(((score[2:] / 2).exp().mean()).log())
    assert float(discriminative(score, counts, group, 2.0)) == pytest.approx(expected)
    assert float(discriminative(score, counts, group, 1e6)) == pytest.approx(-1.5 + 1.75, abs=1e-4), "their mean"
    assert float(discriminative(score, counts, group, 1e-3)) == pytest.approx(-1.5 + 0.5, abs=1e-3), "their maximum"


def test_trust_region():
    for kl, value, slope in ((0.01, 0.0, 0.0), (0.02, 0.0, 0.0), (0.05, 500 * 0.03**2, 1000 * 0.03), (-1.0, 0.0, 0.0)):
        at = torch.tensor(kl, dtype=torch.float64, requires_grad=True)
        penalty = trust_penalty(at, 1000.0, 0.02)
        penalty.backward()
        assert float(penalty.detach()) == pytest.approx(value)
        assert float(at.grad) == pytest.approx(slope)
    assert float(trust_penalty(torch.tensor(5.0), 0.0, 0.02)) == 0


def drpo(**settings):
    return Drpo(config_of(DrpoConfig, **{"rewards": HALF, **settings}))


def test_without_length_and_with_all_wrong_ones_alike_it_is_reinforce():
    """With 2 of 4 right and lambda infinite, 4 times Dr. GRPO of the mean log-probabilities."""
    method, context = drpo(length_temperature=None, tau=1e6), RlContext()
    _, gradients, losses = step(started(method, context), context)
    assert method.count(method.rollouts(context.batches(), 0)[0][0]) == 3
    dr_grpo = Grpo(config_of(GrpoConfig, rewards=HALF, scale="none", form="reinforce", aggregation="sequence"))
    _, expected, _ = step(started(dr_grpo, other := RlContext()), other)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, 4 * expected[name], atol=1e-5, rtol=1e-3)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    assert float(losses[0].means["contrasted"][0]) == 6


def test_a_step_by_hand():
    """-J of every group from log-probabilities at the temperature of the sampling, over the groups."""
    method, context = drpo(temperature=0.6, tau=0.5, length_temperature=0.2), RlContext()
    loss, _, _ = step(started(method, context), context)
    episodes = method.episodes(context.batches(), 0)
    total = 0.0
    with torch.no_grad():
        for group in range(3):
            scores, lengths = [], []
            for place in range(4 * group, 4 * group + 4):
                prompt, tokens = episodes.prompts[place], episodes.written[place].tokens
                logits = context.roles["policy"](input_ids=torch.tensor([prompt + tokens])).logits[0]
                logps = (logits[len(prompt) - 1 : -1] / 0.6).log_softmax(-1)
                scores.append(float(logps[range(len(tokens)), tokens].mean()))
                lengths.append(len(tokens) / 6)
            weights = [torch.tensor((1 - lengths[place]) / 0.2).exp().item() for place in (1, 3)]
            right = sum(w * scores[place] for w, place in zip(weights, (1, 3), strict=True)) / sum(weights)
            wrong = 0.5 * torch.tensor([scores[0] / 0.5, scores[2] / 0.5]).exp().mean().log().item()
            total += right - wrong
    assert loss == pytest.approx(-total / 3, abs=1e-5)


def test_groups_stay_whole_and_passes_change_nothing():
    _, whole, _ = step(started(drpo(), context := RlContext()), context)
    method = drpo(responses_per_pass=5)
    _, parts, losses = step(started(method, context := RlContext()), context)
    assert len(losses) == 3
    for batches in drpo_steps(drpo(minibatches=2)):
        for batch in batches:
            assert len(batch.example_S) == 4 * method.count(batch)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-6, rtol=1e-4)


def drpo_steps(method):
    return started(method, context := RlContext()).rollouts(context.batches(), 0)


def test_the_penalty_is_that_of_the_drift():
    """After the policy has moved, on the responses of the same turn; with no pull from rewards."""
    method, context = drpo(rewards=NOTHING, epochs=2, trust_bound=1e-6, trust_weight=10.0), RlContext()
    steps = started(method, context).rollouts(context.batches(), 0)
    policy = context.roles["policy"]
    ((first,), (second,)) = steps
    assert float(method.loss(Forward(method.kind, context.roles, first)).sum.detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.1)
    loss = method.loss(Forward(method.kind, context.roles, second))
    drift, tokens = loss.means["kl_to_old"]
    kl = float((drift / tokens).detach())
    expected = 3 * 5 * max(kl - 1e-6, 0) ** 2
    assert float(loss.sum.detach()) == pytest.approx(expected, rel=1e-4)
    assert expected != 0


def test_equal_rewards_give_no_gradient():
    for rewards in (NOTHING, [{"function": "tests.methods.rl.test_drpo.all_right"}]):
        _, gradients, _ = step(started(drpo(rewards=rewards), context := RlContext()), context)
        assert all((gradient == 0).all() for gradient in gradients.values())


def all_right(prompts, responses):
    """Nothing to compare with."""
    return [1.0] * len(responses)


def test_cut_responses_are_neither():
    method, context = drpo(mask_truncated=True, max_new_tokens=3), RlContext()
    episodes = started(method, context).episodes(context.batches(), 0)
    counts = method.advantages(episodes)
    assert (counts[~episodes.ended_N] == 0).all()
    _, gradients, _ = step(method, context)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_a_reference_is_refused():
    with pytest.raises(ValueError, match=r"method\.beta=0\.1: must be 0"):
        config_of(DrpoConfig, beta=0.1)
