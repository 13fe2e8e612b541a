"""SPPO: the worked pair, and where its loss is 0."""

import pytest

from methods.preference.sppo import Sppo, SppoConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, toy

SPPO = Sppo(SppoConfig(beta=0.1))


def test_known_answers():
    assert loss_of(SPPO) == pytest.approx(36.25, abs=1e-10)
    assert loss_of(SPPO, at_reference()) == pytest.approx(50.0, abs=1e-10)
    assert gradient_of(SPPO) == pytest.approx((2 * (1 - 5), 2 * (-0.5 + 5)), abs=1e-10)


def test_each_log_ratio_has_a_target():
    assert loss_of(SPPO, toy(W=-13 + 5.0, L=-14.5 - 5.0)) == 0
    assert loss_of(SPPO, toy(W=-13 + 6.0, L=-14.5 - 4.0)) == pytest.approx(2.0)  # not the margin alone
    assert loss_of(Sppo(SppoConfig()), toy(W=-13 + 500.0, L=-14.5 - 500.0)) == 0


def test_a_constant_of_the_prompt_does_not_cancel():
    assert loss_of(SPPO, toy(W=-12 + 3.7, L=-15 + 3.7)) != pytest.approx(loss_of(SPPO), abs=1e-3)
