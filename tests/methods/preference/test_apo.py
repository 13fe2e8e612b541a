"""APO: the worked pair in both variants, and which way each response is moved."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.apo import Apo, ApoConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, random_sides

ZERO, DOWN = Apo(ApoConfig(variant="zero")), Apo(ApoConfig(variant="down"))


def test_known_answers():
    assert loss_of(ZERO) == pytest.approx(0.9625234160, abs=1e-10)
    assert loss_of(DOWN) == pytest.approx(0.9875493421, abs=1e-10)
    assert loss_of(ZERO, at_reference()) == 1.0
    assert loss_of(DOWN, at_reference()) == 1.0


def test_gradients():
    """beta s (1 - s) of each sigmoid."""

    def slope(x):
        return 0.1 * math.exp(x) / (1 + math.exp(x)) ** 2

    assert gradient_of(ZERO) == pytest.approx((-slope(0.1), slope(-0.05)), abs=1e-12)
    assert gradient_of(DOWN) == pytest.approx((slope(0.1) - slope(0.15), slope(0.15)), abs=1e-12)


def test_which_way_responses_move():
    """zero: chosen up, rejected down. down: at margins of 0 or more, both fall and the rejected one faster."""
    dW, dL = gradient_of(ZERO)
    assert dW < 0 < dL
    dW, dL = gradient_of(DOWN)
    assert 0 < dW < dL


def test_losses_are_between_0_and_2():
    sides = random_sides(200)
    for variant in ("zero", "down"):
        losses = Apo(ApoConfig(variant=variant, beta=10.0)).losses(*sides)
        assert ((losses >= 0) & (losses <= 2)).all() and losses.min() < 0.01 and losses.max() > 1.9
    assert not torch.equal(ZERO.losses(*sides), DOWN.losses(*sides))


def test_unknown_variant():
    with pytest.raises(ValidationError):
        TypeAdapter(ApoConfig).validate_python({"variant": "up"})
