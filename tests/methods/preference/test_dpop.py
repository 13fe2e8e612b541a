"""DPOP: the worked pair on both sides of the reference, and DPO as its limit."""

import math

import pytest
import torch

from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.dpop import Dpop, DpopConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, random_sides, side, toy

DPOP = Dpop(DpopConfig())


def test_known_answers():
    """Nothing is added where pi(y_w) is above ref; log pi(y_w) 0.2 below it costs 10 of the margin."""
    assert loss_of(DPOP) == pytest.approx(0.6209570478, abs=1e-10)
    assert loss_of(DPOP, (side(-11.2, -11.0, 5), side(-12.0, -11.5, 8))) == pytest.approx(1.291419, abs=5e-7)
    assert loss_of(DPOP, at_reference()) == pytest.approx(math.log(2), abs=1e-12)


def test_gradients():
    assert gradient_of(DPOP) == pytest.approx((-0.0462570155, 0.0462570155), abs=1e-10)
    margin = 0.1 * (-0.2 + 0.5 - 50 * 0.2)
    weight = 0.1 / (1 + math.exp(margin))
    assert gradient_of(DPOP, toy(W=-13.2)) == pytest.approx((-51 * weight, weight), abs=1e-10)


def test_without_penalty_it_is_dpo():
    sides = random_sides()
    found = Dpop(DpopConfig(penalty=0.0)).losses(*sides)
    torch.testing.assert_close(found, Dpo(DpoConfig()).losses(*sides))


def test_dpo_only_where_the_chosen_response_is_above_the_reference():
    chosen, rejected = random_sides(50)
    is_above = chosen.log_ratio >= 0
    same = DPOP.losses(chosen, rejected) == Dpo(DpoConfig()).losses(chosen, rejected)
    assert same[is_above].all() and not same[~is_above].any() and is_above.any() and not is_above.all()
