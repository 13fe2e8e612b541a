"""Hinge loss: the worked pair, and that pairs far enough apart are left alone."""

import pytest

from methods.preference.hinge import Hinge, HingeConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, toy

HINGE = Hinge(HingeConfig(beta=0.1))


def test_known_answers():
    assert loss_of(HINGE) == pytest.approx(0.85, abs=1e-12)
    assert loss_of(HINGE, at_reference()) == 1.0
    assert gradient_of(HINGE) == pytest.approx((-0.1, 0.1), abs=1e-12)
    assert loss_of(Hinge(HingeConfig())) == pytest.approx(1 - 0.05 * 1.5, abs=1e-12)


@pytest.mark.parametrize(("margin", "loss", "slope"), [
    (9.9, 0.01, -0.1),
    (10.1, 0.0, 0.0),
    (1e4, 0.0, 0.0),
    (-1e4, 1001.0, -0.1),
])  # fmt: skip
def test_a_margin_of_1_over_beta_is_enough(margin, loss, slope):
    pair = toy(W=margin, Wr=0.0, L=0.0, Lr=0.0)
    assert loss_of(HINGE, pair) == pytest.approx(loss, abs=1e-9)
    assert gradient_of(HINGE, pair) == pytest.approx((slope, -slope), abs=1e-12)
