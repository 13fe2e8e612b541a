"""Robust DPO: the worked pair, DPO as its limit, and that its mean over swapped labels is the clean loss."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.robust_dpo import RobustDpo, RobustDpoConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, random_sides, toy


def test_known_answers():
    method = RobustDpo(RobustDpoConfig())
    assert loss_of(method) == pytest.approx(0.6022070478, abs=1e-10)
    assert loss_of(method, at_reference()) == pytest.approx(math.log(2), abs=1e-12)
    expected = 0.1 * (-0.9 / (1 + math.exp(0.15)) - 0.1 / (1 + math.exp(-0.15))) / 0.8
    assert gradient_of(method) == pytest.approx((expected, -expected), abs=1e-12)


def test_without_smoothing_it_is_dpo():
    sides = random_sides()
    found = RobustDpo(RobustDpoConfig(label_smoothing=0.0, beta=0.3)).losses(*sides)
    torch.testing.assert_close(found, Dpo(DpoConfig(beta=0.3)).losses(*sides))


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.4])
def test_its_expectation_over_swapped_labels_is_the_clean_loss(rate):
    """Which cDPO's is not."""
    chosen, rejected = random_sides()
    method = RobustDpo(RobustDpoConfig(label_smoothing=rate))
    expected = (1 - rate) * method.losses(chosen, rejected) + rate * method.losses(rejected, chosen)
    torch.testing.assert_close(expected, Dpo(DpoConfig()).losses(chosen, rejected))


def test_it_has_no_lower_bound():
    """It falls as -beta D e/(1 - 2e)."""
    found = loss_of(RobustDpo(RobustDpoConfig()), toy(W=1e4, Wr=0.0, L=0.0, Lr=0.0))
    assert found == pytest.approx(-0.1 * 1e4 * 0.1 / 0.8, rel=1e-9)


@pytest.mark.parametrize("value", [-0.1, 0.5, 0.7])
def test_smoothing_out_of_range(value):
    with pytest.raises(ValidationError):
        TypeAdapter(RobustDpoConfig).validate_python({"label_smoothing": value})
