"""SimPER: the worked pair, and what its gradient is weighed by."""

import math

import pytest

from methods.preference.simper import Simper, SimperConfig
from tests.methods.preference.extremes import check_extremes, check_pairs_are_apart
from tests.methods.preference.toy_pair import gradient_of, loss_of, random_sides, toy

SIMPER = Simper(SimperConfig())


def test_known_answers():
    """-exp(-2) + exp(-3)."""
    assert loss_of(SIMPER) == pytest.approx(-0.0855482149, abs=1e-10)
    assert gradient_of(SIMPER) == pytest.approx((-math.exp(-2) / 6, math.exp(-3) / 5), abs=1e-12)


def test_it_is_between_minus_1_and_1():
    assert loss_of(SIMPER, toy(W=0.0, L=-1e4)) == -1.0
    assert loss_of(SIMPER, toy(W=-1e4, L=0.0)) == 1.0
    losses = SIMPER.losses(*random_sides(200))
    assert ((losses > -1) & (losses < 1)).all()


def test_swapped_it_changes_its_sign():
    chosen, rejected = random_sides()
    assert (SIMPER.losses(chosen, rejected) == -SIMPER.losses(rejected, chosen)).all()


def test_an_unlikely_response_is_left_alone():
    dW, dL = gradient_of(SIMPER, toy(L=-500.0))
    assert abs(dL) < 1e-40 and dW == pytest.approx(-math.exp(-2) / 6)


def test_the_reference_is_not_in_it():
    assert not Simper.referenced
    assert loss_of(SIMPER, toy(Wr=3.0, Lr=-99.0)) == loss_of(SIMPER)
    assert SIMPER.rewards(toy()[0]).item() == pytest.approx(math.exp(-2))


def test_extremes():
    check_extremes(SIMPER)
    check_pairs_are_apart(SIMPER)
