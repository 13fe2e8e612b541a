"""DiscoPOP: the worked pair, its two ends, and an exponential that stays a number."""

import math

import pytest
import torch

from methods.preference.discopop import DiscoPop, DiscoPopConfig, discopop_loss
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, toy

POP = DiscoPop(DiscoPopConfig(beta=0.1))


def by_formula(z, tau):
    s = 1 / (1 + math.exp(-z / tau))
    return (1 - s) * math.log1p(math.exp(-z)) + s * math.exp(-z)


def test_known_answers():
    assert loss_of(POP) == pytest.approx(0.8493375793, abs=1e-10)
    assert loss_of(POP, at_reference()) == pytest.approx(0.8465735903, abs=1e-10)
    slope = (by_formula(0.15 + 1e-6, 0.05) - by_formula(0.15 - 1e-6, 0.05)) / 2e-6
    assert gradient_of(POP) == pytest.approx((0.1 * slope, -0.1 * slope), rel=1e-6)


@pytest.mark.parametrize("tau", [0.05, 1.0, 3.0])
def test_formula(tau):
    z = torch.linspace(-8, 8, 33, dtype=torch.float64)
    found = discopop_loss(z, torch.zeros_like(z), 1.0, tau)
    expected = torch.tensor([by_formula(value, tau) for value in z.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_ends():
    """Far below 0 the logistic loss, far above it the exponential one."""
    assert loss_of(POP, toy(W=-50.0, Wr=0.0, L=0.0, Lr=0.0)) == pytest.approx(math.log1p(math.exp(5)), abs=1e-12)
    assert loss_of(POP, toy(W=50.0, Wr=0.0, L=0.0, Lr=0.0)) == pytest.approx(math.exp(-5), abs=1e-12)


def test_it_is_not_convex():
    """It rises a little where one loss gives way to the other: at 0.15 it is above what it is at 0."""
    assert loss_of(POP) > loss_of(POP, at_reference()) > loss_of(POP, toy(W=0.0, Wr=0.0, L=-30.0, Lr=0.0))


@pytest.mark.parametrize("tau", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("margin", [-1e4, -500.0, 500.0, 1e4])
def test_exponential_stays_a_number(margin, tau):
    """Also for tau > 1, where s does not go to 0 fast enough by itself; fp32."""
    leaf = torch.tensor([margin], requires_grad=True)
    loss = discopop_loss(leaf, torch.zeros(1), 1.0, tau)
    loss.backward()
    assert torch.isfinite(loss).all() and torch.isfinite(leaf.grad).all()
    assert (leaf.grad < -0.5) if margin < 0 else (leaf.grad.abs() < 1e-6)


def test_with_beta_as_tau_the_gate_is_that_of_the_log_ratios():
    """s = sigmoid(D), the authors' code."""
    assert DiscoPopConfig().beta == DiscoPopConfig().tau
    s = 1 / (1 + math.exp(-1.5))
    expected = (1 - s) * math.log1p(math.exp(-0.05 * 1.5)) + s * math.exp(-0.05 * 1.5)
    assert loss_of(DiscoPop(DiscoPopConfig())) == pytest.approx(expected, abs=1e-12)
