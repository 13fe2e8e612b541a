"""Advantages: known numbers, what cannot be scored, equality with TRL's normalisation."""

import pytest
import torch

from methods.rl.advantages import (
    batch_std,
    centred,
    group_means,
    group_stds,
    normalised,
    normalised_then_summed,
    weighted_sum,
)

ONE = torch.zeros(4, dtype=torch.long)
TWO = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
NAN = float("nan")


def of(values):
    return torch.as_tensor(values, dtype=torch.float64)


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found, of(expected), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("rewards", "settings", "expected"),
    [
        ([1, 0, 0, 1], {}, [0.865875, -0.865875, -0.865875, 0.865875]),
        ([1, 0, 0, 1], {"epsilon": 0.0}, [0.866025, -0.866025, -0.866025, 0.866025]),
        ([1, 0, 0, 1], {"scale": "none"}, [0.5, -0.5, -0.5, 0.5]),
        ([1, 0, 0, 1], {"baseline": "leave_one_out", "scale": "none"}, [0.666667, -0.666667, -0.666667, 0.666667]),
        ([1, 1, 0, 0.5], {}, [0.783186, 0.783186, -1.305310, -0.261062]),
        ([1, 1, 0, 0.5], {"baseline": "leave_one_out", "scale": "none"}, [0.5, 0.5, -0.833333, -0.166667]),
    ],
)
def test_of_one_group(rewards, settings, expected):
    close(normalised(of(rewards), ONE, **settings), expected)


def test_of_the_batch():
    """REINFORCE++, and its variant with a baseline, on two groups of which one has no signal."""
    rewards = of([1, 0, 0, 1, 0, 0, 0, 0])
    high, low = 1.620185, -0.540062
    close(normalised(rewards, TWO, "batch", "batch", 0.0), [high, low, low, high, low, low, low, low])
    baseline = normalised(rewards, TWO, "group", "batch", 0.0, "centred")
    close(baseline, [1.322876, -1.322876, -1.322876, 1.322876, 0, 0, 0, 0])


def test_lite_ppo():
    rewards = of([1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1])
    groups = torch.arange(3).repeat_interleave(4)
    assert batch_std(rewards).item() == pytest.approx(0.5222330, abs=1e-7)
    found = normalised(rewards, groups, "group", "batch", 1e-6)
    close(found[:2], [1.436138, -0.478713])
    assert (found[4:8] == 0).all(), "a solved group has no signal, but counts in the standard deviation"
    of_centred = normalised(rewards, groups, "group", "batch", 1e-6, "centred")
    close(of_centred[:2], [2.031004, -0.677001])
    close(normalised(rewards, groups, epsilon=1e-6)[:2], [1.499997, -0.499999])
    signed = normalised(2 * rewards - 1, groups, "group", "batch", 1e-6)
    close(signed, found.tolist(), 1e-5)
    close(normalised(2 * rewards - 1, groups, scale="none"), (2 * normalised(rewards, groups, scale="none")).tolist())


def test_one_prompt_in_the_batch_is_grpo():
    rewards = of([0.3, 0.1, 0.9, 0.4])
    close(normalised(rewards, ONE, "group", "batch"), normalised(rewards, ONE).tolist(), 1e-12)


@pytest.mark.parametrize("baseline", ["group", "leave_one_out", "batch"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
def test_equal_rewards_are_exactly_no_advantage(baseline, scale, value):
    """Also where the mean of equal numbers rounds to another one."""
    found = normalised(torch.full((7,), value), torch.zeros(7, dtype=torch.long), baseline, scale, 1e-8)
    assert (found == 0).all()


@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
def test_a_group_of_one_has_no_advantage(baseline):
    assert (normalised(of([1.0, 0.0, 5.0]), torch.arange(3), baseline) == 0).all()


def test_what_cannot_be_scored_is_left_out():
    found = normalised(of([1, NAN, 0, 0.5]), ONE)
    without = normalised(of([1, 0, 0.5]), ONE[:3])
    close(found, [without[0], 0.0, without[1], without[2]])
    assert (normalised(of([NAN, NAN]), ONE[:2]) == 0).all()
    assert (normalised(of([NAN, 1.0]), ONE[:2]) == 0).all()


def test_permuting_responses_permutes_advantages():
    generator = torch.Generator().manual_seed(0)
    rewards, groups = torch.rand(24, generator=generator).double(), torch.arange(4).repeat(6)
    order = torch.randperm(24, generator=generator)
    for settings in ({}, {"baseline": "leave_one_out"}, {"scale": "batch"}, {"baseline": "batch", "scale": "batch"}):
        close(normalised(rewards[order], groups[order], **settings), normalised(rewards, groups, **settings)[order])


def test_by_group_like_a_loop():
    rewards, groups = torch.rand(30).double(), torch.randint(0, 5, (30,))
    for group in range(5):
        own = rewards[groups == group]
        close(group_means(rewards, groups)[groups == group], [own.mean()] * len(own))
        close(group_stds(rewards, groups)[groups == group], [own.std() if len(own) > 1 else 0.0] * len(own))
        close(centred(rewards, groups, "group")[groups == group].sum(), 0.0)


def test_several_rewards():
    parts = of([[1, 0.5], [NAN, 0.5], [0, NAN], [NAN, NAN]])
    found = weighted_sum(parts, [1.0, 2.0])
    close(found[:3], [2.0, 1.0, 0.0])
    assert found[3].isnan()


def test_normalised_each_then_summed():
    """Each reward in its groups, the sum over the batch: worked out step by step."""
    parts = torch.rand(8, 2).double()
    each = torch.stack([normalised(parts[:, place], TWO) for place in range(2)], dim=1)
    total = each[:, 0] + 3 * each[:, 1]
    expected = (total - total.mean()) / (total.std() + 1e-4)
    close(normalised_then_summed(parts, [1.0, 3.0], TWO), expected.tolist(), 1e-9)
