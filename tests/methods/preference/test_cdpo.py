"""cDPO: the worked pair, DPO as its limit, and where its loss is smallest."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.cdpo import CDpo, CDpoConfig, cdpo_loss
from methods.preference.dpo import Dpo, DpoConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, random_sides, toy


def test_known_answers():
    method = CDpo(CDpoConfig())
    assert loss_of(method) == pytest.approx(0.6359570478, abs=1e-10)
    assert loss_of(method, at_reference()) == pytest.approx(math.log(2), abs=1e-12)
    expected = 0.1 * (-0.9 / (1 + math.exp(0.15)) + 0.1 / (1 + math.exp(-0.15)))
    assert gradient_of(method) == pytest.approx((expected, -expected), abs=1e-12)


def test_without_smoothing_it_is_dpo():
    sides = random_sides()
    found = CDpo(CDpoConfig(label_smoothing=0.0, beta=0.3)).losses(*sides)
    torch.testing.assert_close(found, Dpo(DpoConfig(beta=0.3)).losses(*sides))


def test_smoothing_is_the_mean_over_swapped_labels():
    chosen, rejected = random_sides()
    method, dpo = CDpo(CDpoConfig(label_smoothing=0.2)), Dpo(DpoConfig())
    expected = 0.8 * dpo.losses(chosen, rejected) + 0.2 * dpo.losses(rejected, chosen)
    torch.testing.assert_close(method.losses(chosen, rejected), expected)


@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.3])
def test_margin_of_the_smallest_loss(smoothing):
    """beta D = log((1 - e)/e), where the loss is the label's entropy."""
    best = math.log((1 - smoothing) / smoothing)
    method = CDpo(CDpoConfig(label_smoothing=smoothing))
    pair = toy(W=best / 0.1, Wr=0.0, L=0.0, Lr=0.0)
    assert gradient_of(method, pair) == pytest.approx((0.0, 0.0), abs=1e-12)
    entropy = -smoothing * math.log(smoothing) - (1 - smoothing) * math.log(1 - smoothing)
    assert loss_of(method, pair) == pytest.approx(entropy, abs=1e-12)
    margins = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    losses = cdpo_loss(margins, torch.zeros_like(margins), 1.0, smoothing)
    assert margins[losses.argmin()].item() == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize("value", [-0.1, 0.5, 1.0])
def test_smoothing_out_of_range(value):
    with pytest.raises(ValidationError):
        TypeAdapter(CDpoConfig).validate_python({"label_smoothing": value})
