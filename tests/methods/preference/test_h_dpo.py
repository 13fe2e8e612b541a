"""H-DPO: the worked pair, DPO as its limit, and the optimum whose entropy alpha controls."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.h_dpo import HDpo, HDpoConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, optimum, random_sides, side, toy

# The answers below are those of log pi -10 and -12, log ref -11 and -11.5: log-ratios 1 and -0.5 as well.
PAIR = side(-10.0, -11.0, 5), side(-12.0, -11.5, 8)
REFERENCE = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64).log()
REWARD = torch.tensor([0.0, 0.3, -0.4, 0.8, 0.1], dtype=torch.float64)


def h_dpo(alpha, beta=0.1):
    return HDpo(HDpoConfig(alpha=alpha, beta=beta))


@pytest.mark.parametrize(("alpha", "logit", "loss"), [
    (0.8, 0.11, 0.639659),
    (0.9, 0.13, 0.630258),
    (1.0, 0.15, 0.620957),
    (1.2, 0.19, 0.602653),
])  # fmt: skip
def test_known_answers(alpha, logit, loss):
    """And the gradient by log pi of the chosen response, -alpha beta sigmoid(-logit)."""
    method = h_dpo(alpha)
    assert loss_of(method, PAIR) == pytest.approx(loss, abs=5e-7)
    assert loss_of(method, PAIR) == pytest.approx(math.log1p(math.exp(-logit)), abs=1e-12)
    expected = -alpha * 0.1 / (1 + math.exp(logit))
    assert gradient_of(method, PAIR) == pytest.approx((expected, -expected), abs=1e-12)
    chosen, rejected = (method.rewards(one).item() for one in PAIR)
    assert chosen - rejected == pytest.approx(logit, abs=1e-12)


def test_alpha_1_is_dpo():
    sides = random_sides()
    torch.testing.assert_close(h_dpo(1.0, 0.3).losses(*sides), Dpo(DpoConfig(beta=0.3)).losses(*sides))


def test_before_the_first_step_the_margin_is_not_0():
    """(alpha - 1) beta (Wr - Lr): here 0.2 * 0.1 * 1.5 with the sign of alpha - 1."""
    assert loss_of(h_dpo(0.8), at_reference()) == pytest.approx(math.log1p(math.exp(0.03)), abs=1e-12)
    assert loss_of(h_dpo(1.2), at_reference()) == pytest.approx(math.log1p(math.exp(-0.03)), abs=1e-12)


@pytest.mark.parametrize("alpha", [0.7, 0.95, 1.0, 1.3])
def test_it_is_dpo_with_another_reference(alpha):
    """beta' = alpha beta and the reference ref^(1/alpha), whose normalisation cancels."""
    other = Dpo(DpoConfig(beta=alpha * 0.1)), toy(Wr=-13 / alpha, Lr=-14.5 / alpha)
    assert loss_of(h_dpo(alpha)) == pytest.approx(loss_of(*other), abs=1e-12)


@pytest.mark.parametrize("alpha", [0.7, 0.9, 1.0, 1.3])
def test_optimum(alpha):
    """With labels of Bradley and Terry: pi proportional to ref^(1/alpha) exp(r / (alpha beta))."""
    found = optimum(h_dpo(alpha, 0.5), REFERENCE, REWARD)
    expected = (REFERENCE / alpha + REWARD / (alpha * 0.5)).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_without_rewards_alpha_is_a_temperature():
    """And entropy rises with it."""
    entropies = []
    for alpha in (0.7, 0.9, 1.0, 1.1, 1.3):
        found = optimum(h_dpo(alpha, 0.5), REFERENCE, torch.zeros(5, dtype=torch.float64))
        torch.testing.assert_close(found, (REFERENCE / alpha).log_softmax(-1), rtol=0, atol=1e-5)
        entropies.append(-(found.exp() * found).sum().item())
    assert entropies == sorted(entropies)


@pytest.mark.parametrize("key", ["alpha", "beta"])
def test_out_of_range(key):
    with pytest.raises(ValidationError):
        TypeAdapter(HDpoConfig).validate_python({key: 0.0})
