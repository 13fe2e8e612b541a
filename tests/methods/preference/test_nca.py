"""NCA: the worked pair, and that the chosen response's likelihood does not run away."""

import math

import pytest

from methods.preference.nca import Nca, NcaConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, toy

NCA = Nca(NcaConfig(beta=0.1))


def test_known_answers():
    assert loss_of(NCA) == pytest.approx(1.3508248141, abs=1e-10)
    assert loss_of(NCA, at_reference()) == pytest.approx(2 * math.log(2), abs=1e-12)
    assert gradient_of(NCA) == pytest.approx((-0.0212531219, 0.0243751302), abs=1e-10)


def test_chosen_response_has_an_optimum():
    """sigmoid(beta a_w) = 2/3, that is beta a_w = log 2: beyond it it is pulled back."""
    for log_ratio, sign in ((6.0, -1), (8.0, 1)):  # log 2 / 0.1 = 6.93
        assert math.copysign(1, gradient_of(NCA, toy(W=-13 + log_ratio))[0]) == sign
    assert gradient_of(NCA, toy(W=-13 + math.log(2) / 0.1))[0] == pytest.approx(0, abs=1e-12)


def test_a_constant_of_the_prompt_does_not_cancel():
    assert loss_of(NCA, toy(W=-12 + 3.7, L=-15 + 3.7)) != pytest.approx(loss_of(NCA), abs=1e-3)
