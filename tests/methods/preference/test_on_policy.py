"""The bandit of on-policy samples and negative gradients: its losses by hand, its limits, what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from methods.preference import on_policy
from methods.preference.on_policy import Actions, ActionsConfig, OnPolicyStudyConfig


def test_rewards_are_bumps() -> None:
    assert float(on_policy.bump(100, 70, 10)[70]) == 1
    assert float(on_policy.bump(100, 70, 10)[20]) == pytest.approx(math.exp(-25), rel=1e-5)
    assert float(on_policy.bump(100, 20, 10)[20]) == 1


def test_data_peak_where_the_paper_has_them_and_reach_every_action() -> None:
    bandit = Actions(ActionsConfig()).load(1)
    inside = bandit.data_A[5:95]  # the heavy tails of the Cauchy variable end in the outermost bins
    assert abs(5 + int(inside.argmax()) - 20) <= 3
    assert float(bandit.data_A.sum()) == pytest.approx(1, abs=1e-6) and float(bandit.data_A.min()) > 0
    again = Actions(ActionsConfig()).load(1)
    assert torch.equal(bandit.data_A, again.data_A) and torch.equal(bandit.states_SF, again.states_SF)
    assert not torch.equal(bandit.states_SF, Actions(ActionsConfig()).load(2).states_SF)


LOGPS = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -1.5, -2.5]])
REWARDS = torch.tensor([[0.2, 0.9, 0.5], [0.3, 0.3, 0.3]])


def test_best_of_n_and_its_negative_gradient() -> None:
    assert float(on_policy.best_of_n(LOGPS, REWARDS)) == pytest.approx((2.0 + 0.5) / 2)
    assert float(on_policy.negative_gradient(LOGPS, REWARDS, 0.0)) == float(on_policy.best_of_n(LOGPS, REWARDS))
    assert float(on_policy.negative_gradient(LOGPS, REWARDS, 0.5)) == pytest.approx(1.25 + 0.5 * (-1.0 - 0.5) / 2)


def test_reward_weights() -> None:
    by_hand = -(math.exp(-7) * -1 + 1 * -2 + math.exp(-4) * -3 + (-0.5 - 1.5 - 2.5)) / 2
    assert float(on_policy.reward_weighted(LOGPS, REWARDS, 0.1)) == pytest.approx(by_hand, rel=1e-5)


def test_reinforce_has_no_gradient_where_all_rewards_are_equal() -> None:
    logps = LOGPS.clone().requires_grad_()
    on_policy.reinforce(logps, REWARDS).backward()
    assert logps.grad is not None and float(logps.grad[1].abs().max()) < 1e-6
    z = (REWARDS[0] - REWARDS[0].mean()) / REWARDS[0].std(correction=0)
    torch.testing.assert_close(logps.grad[0], -z / 2)


def test_ppo_starts_as_reinforce_and_is_flat_beyond_the_clip() -> None:
    logps = LOGPS.clone().requires_grad_()
    on_policy.ppo(logps, LOGPS, REWARDS).backward()
    same = LOGPS.clone().requires_grad_()
    on_policy.reinforce(same, REWARDS).backward()
    torch.testing.assert_close(logps.grad, same.grad)
    moved = (LOGPS + torch.sign(on_policy.normalised(REWARDS))).requires_grad_()  # ratios e and 1/e, as wished
    on_policy.ppo(moved, LOGPS, REWARDS).backward()
    assert moved.grad is not None and float(moved.grad.abs().max()) == 0


def test_pairs_and_their_threshold() -> None:
    assert [x.tolist() for x in on_policy.pairs(REWARDS, 0.0)] == [[0, 0, 0], [1, 1, 2], [0, 2, 0]]
    assert [x.tolist() for x in on_policy.pairs(REWARDS, 0.35)] == [[0, 0], [1, 1], [0, 2]]


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_is_the_sigmoid_loss_of_every_pair(beta: float) -> None:
    h = torch.tensor([LOGPS[0, 1] - LOGPS[0, 0], LOGPS[0, 1] - LOGPS[0, 2], LOGPS[0, 2] - LOGPS[0, 0]])
    found = on_policy.pairwise(LOGPS, REWARDS, "dpo", beta, 0.0)
    assert float(found) == pytest.approx(float(-F.logsigmoid(beta * h).sum() / 2))


def test_ipo_has_its_optimum_where_h_is_its_target() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=0.05)
    for _ in range(400):
        loss = on_policy.pairwise(F.log_softmax(logits, -1), torch.tensor([[1.0, 0.0]]), "ipo", 3.0, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    h = F.log_softmax(logits.detach(), -1)[0]
    assert float(h[0] - h[1]) == pytest.approx(3.0, abs=1e-4)


def test_gradient_flow_of_both_divergences_on_two_bins() -> None:
    """Reverse KL is not faster everywhere: with two bins it is the slower one."""
    target, start = torch.tensor([0.1, 0.9]), torch.tensor([0.9, 0.1])
    for forward, expected in ((True, [-0.8, 0.8]), (False, [-0.395500, 0.395500])):
        logits = start.log().requires_grad_()
        policy, data = F.log_softmax(logits, -1), target.log()
        divergence = on_policy.kl(data, policy) if forward else on_policy.kl(policy, data)
        divergence.backward()
        assert logits.grad is not None and (-logits.grad).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss": "ipo", "beta": 0.0}, "method.beta=0.0: must be greater than 0"),
        ({"loss": "negative_gradient", "beta": 2.0}, "method.beta=2.0: must be at most 1"),
        ({"samples": 1}, "method.samples=1: must be at least 2"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OnPolicyStudyConfig(**values)  # type: ignore[arg-type]
