"""RPO: the worked pair, DPO as its limit, and that the likelihood is a mean over each response's tokens."""

import math

import pytest
import torch

from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.rpo import Rpo, RpoConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, random_sides

RPO = Rpo(RpoConfig(beta=0.1, eta=1.0))


def test_known_answers():
    """-W/n_w = 2: DPO's 0.6209570478 and 2 eta."""
    assert loss_of(RPO) == pytest.approx(2.6209570478, abs=1e-10)
    assert loss_of(Rpo(RpoConfig(beta=0.1))) == pytest.approx(0.6209570478 + 0.01, abs=1e-10)
    assert loss_of(RPO, at_reference()) == pytest.approx(math.log(2) + 13 / 6, abs=1e-12)
    assert gradient_of(RPO) == pytest.approx((-0.0462570155 - 1 / 6, 0.0462570155), abs=1e-10)


def test_without_likelihood_it_is_dpo():
    sides = random_sides()
    found = Rpo(RpoConfig(beta=0.3, eta=0.0)).losses(*sides)
    torch.testing.assert_close(found, Dpo(DpoConfig(beta=0.3)).losses(*sides))


def test_each_response_has_a_mean_of_its_own():
    chosen, rejected = random_sides()
    expected = Dpo(DpoConfig()).losses(chosen, rejected) - chosen.logps / chosen.tokens
    torch.testing.assert_close(RPO.losses(chosen, rejected), expected)
