"""mDPO and mIPO: the worked groups, the estimator without bias by enumeration, their limits."""

import itertools
import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.dpo import dpo_loss
from methods.preference.mdpo import Mdpo, MdpoConfig, group_means, mdpo_loss, variance_of_means
from tests.methods.mix.fakes import byte_llama
from tests.methods.preference.given import (
    PreferenceContext,
    forward_of,
    given,
    grouped_texts,
    logps_by_hand,
    loss_and_gradient,
    micro_batches,
    started,
)

# Log-ratios 1 and 0.5 of the chosen group, -0.5 and 0.2 of the rejected one.
TOY = {"logps": [-10.0, -9.0, -12.0, -11.0], "reference": [-11.0, -9.5, -11.5, -11.2], "sizes": [4],
       "labels": [1.0, 1.0, 0.0, 0.0]}  # fmt: skip
FIRST = {"logps": [-10.0, -12.0], "reference": [-11.0, -11.5], "sizes": [2], "labels": [1.0, 0.0]}
GROUPS = grouped_texts(
    [("copy 12:", [" 12", " 12.", " 2", " 1..."]), ("sort 321:", [" 123", " 12", " 3", " 3.", " 321"])],
    [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0],
)


def method_of(**settings):
    return Mdpo(MdpoConfig(**settings))


def one_pair(chosen, rejected, beta=0.1, **settings):
    """The loss of one pair of groups of log-ratios."""
    both = torch.tensor([*chosen, *rejected], dtype=torch.float64)
    is_chosen = torch.tensor([True] * len(chosen) + [False] * len(rejected))
    return mdpo_loss(both, is_chosen, torch.zeros(len(both), dtype=torch.long), beta, **settings).item()


@pytest.mark.parametrize(("settings", "given_", "expected"), [
    ({}, TOY, 0.649159),
    ({"loss": "ipo", "unbiased": False}, TOY, 16.81),
    ({"loss": "ipo"}, TOY, 16.625),
    ({}, FIRST, 0.620957),  # of groups of one it is DPO
    ({"loss": "ipo", "unbiased": False}, FIRST, 12.25),  # and IPO
])  # fmt: skip
def test_known_answers(settings, given_, expected):
    assert loss_and_gradient(method_of(**settings), given(**given_))[0] == pytest.approx(expected, abs=5e-7)


def test_the_variance_term():
    side = torch.tensor([1, 1, 0, 0])
    found = variance_of_means(torch.tensor([1.0, 0.5, -0.5, 0.2]).double(), side, 2)
    assert found.tolist() == pytest.approx([0.1225, 0.0625]) and found.sum().item() == pytest.approx(0.185)


def test_gradients():
    """mDPO: -beta sigmoid(-logit) / k; mIPO by finite differences."""
    _, gradient = loss_and_gradient(method_of(), given(**TOY))
    slope = 0.1 / (1 + math.exp(0.09)) / 2
    assert gradient == pytest.approx([-slope, -slope, slope, slope])
    _, gradient = loss_and_gradient(method_of(loss="ipo"), given(**TOY))
    for place in range(4):
        ends = []
        for by in (1e-5, -1e-5):
            logps = [value + by * (i == place) for i, value in enumerate(TOY["logps"])]
            ends.append(loss_and_gradient(method_of(loss="ipo"), given(**{**TOY, "logps": logps}))[0])
        assert gradient[place] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_unbiased_over_all_groups_of_independent_draws(size):
    """Its mean over everything that can be drawn is the loss with the distributions' own means; the other's is more."""
    values, better, worse = np.array([1.3, -0.4, 0.2]), np.array([0.5, 0.2, 0.3]), np.array([0.1, 0.6, 0.3])
    exact = (better @ values - worse @ values - 5) ** 2
    means = {True: 0.0, False: 0.0}
    for drawn in itertools.product(range(3), repeat=2 * size):
        chosen, rejected = np.array(drawn[:size]), np.array(drawn[size:])
        probability = better[chosen].prod() * worse[rejected].prod()
        for unbiased in means:
            loss = one_pair(values[chosen], values[rejected], loss="ipo", unbiased=unbiased)
            means[unbiased] += probability * loss
    assert means[True] == pytest.approx(exact, rel=1e-12)
    variances = [weights @ values**2 - (weights @ values) ** 2 for weights in (better, worse)]
    assert means[False] == pytest.approx(exact + sum(variances) / size, rel=1e-12)


def test_unbiased_is_the_mean_over_products_of_different_members():
    chosen, rejected = [1.0, 0.5, -0.3], [-0.5, 0.2]
    terms = [
        (chosen[i] - rejected[j] - 5) * (chosen[k] - rejected[m] - 5)
        for i, k in itertools.permutations(range(3), 2)
        for j, m in itertools.permutations(range(2), 2)
    ]
    assert one_pair(chosen, rejected, loss="ipo") == pytest.approx(np.mean(terms))


def test_identical_members_have_no_variance():
    same = [0.7, 0.7, 0.7], [-0.2, -0.2]
    assert one_pair(*same, loss="ipo") == pytest.approx(one_pair(*same, loss="ipo", unbiased=False))
    torch.testing.assert_close(torch.tensor(one_pair(*same)), dpo_loss(torch.tensor(0.7), torch.tensor(-0.2), 0.1))


def test_it_may_be_negative():
    assert one_pair([5 + 3, 5 - 3], [0.0, 0.0], loss="ipo") == pytest.approx(-9.0)


@pytest.mark.parametrize("settings", [{}, {"loss": "ipo"}, {"sft_weight": 0.3}])
def test_order_within_a_group_does_not_matter(settings):
    """Nor which side comes first; several pairs of groups of different sizes are summed."""
    one = given([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0, -9.0], [-4.0] * 9, [4, 5], [1, 1, 0, 0, 1, 1, 0, 0, 0])
    other = given(
        [-2.0, -4.0, -3.0, -1.0, -9.0, -5.0, -8.0, -6.0, -7.0], [-4.0] * 9, [4, 5], [1, 0, 0, 1, 0, 1, 0, 1, 0]
    )
    assert loss_and_gradient(method_of(**settings), one)[0] == pytest.approx(
        loss_and_gradient(method_of(**settings), other)[0]
    )


def test_likelihood_of_the_chosen():
    """Per token, a mean over the group."""
    plain, _ = loss_and_gradient(method_of(), given(**TOY))
    more, gradient = loss_and_gradient(method_of(sft_weight=0.5), given(**TOY))
    assert more - plain == pytest.approx(0.5 * 9.5)
    assert gradient[2] > 0 > gradient[0] and gradient[0] == pytest.approx(-0.25 - gradient[2])


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("settings", [{}, {"loss": "ipo"}])
def test_extreme_log_ratios(size, settings):
    responses = given([size, size / 2, -size, 0.0], [0.0] * 4, [4], [1, 1, 0, 0], torch.float32)
    loss, gradient = loss_and_gradient(method_of(**settings), responses)
    assert math.isfinite(loss) and np.isfinite(gradient).all()


@pytest.mark.parametrize("packing", [False, True])
def test_one_sequence_at_a_time(packing):
    context = PreferenceContext(GROUPS, byte_llama(1), byte_llama(0))
    method = started(method_of(loss="ipo", beta=0.3, sft_weight=0.1), context)
    (batch,) = micro_batches(context, packing=packing)
    assert method.count(batch) == 2
    loss = method.loss(forward_of(method, context, batch))
    total, margins = 0.0, 0.0
    for begin, end in ((0, 4), (4, 9)):
        ratios, likelihood = {1.0: [], 0.0: []}, []
        for index in range(begin, end):
            words = GROUPS.prompt(index).tolist(), GROUPS.response(index).tolist()
            logps, label = logps_by_hand(context, *words), float(GROUPS.labels[index])
            ratios[label].append(logps - logps_by_hand(context, *words, role="reference"))
            likelihood += [-logps / len(words[1])] if label else []
        total += one_pair(ratios[1.0], ratios[0.0], 0.3, loss="ipo") + 0.1 * np.mean(likelihood)
        margins += 0.3 * (np.mean(ratios[1.0]) - np.mean(ratios[0.0]))
    assert loss.sum.item() == pytest.approx(total, rel=1e-4)
    assert loss.metrics["reward_margin"].item() == pytest.approx(margins, rel=1e-4)


def test_group_means():
    found = group_means(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 0, 1]), 2)
    assert found.tolist() == [2.0, 2.5]


def test_a_variance_needs_two_members():
    few = grouped_texts([("a:", ["1", "2", "3", "4"]), ("b:", ["1", "2", "3"])], [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    message = r"^method\.unbiased=true: needs two responses or more on each side of every example, got 1 in example 1$"
    with pytest.raises(ValueError, match=message):
        started(method_of(loss="ipo"), PreferenceContext(few))
    for settings in ({"loss": "ipo", "unbiased": False}, {"loss": "dpo"}):
        started(method_of(**settings), PreferenceContext(few))


@pytest.mark.parametrize(("key", "value"), [("beta", 0.0), ("loss", "hinge"), ("sft_weight", -1.0)])
def test_out_of_range(key, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(MdpoConfig).validate_python({key: value})
    assert caught.value.errors()[0]["loc"] == (key,)
