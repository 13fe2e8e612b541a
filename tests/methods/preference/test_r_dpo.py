"""R-DPO: the worked pair, DPO as its limit, and the optimum of a reward that pays for length."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.r_dpo import RDpo, RDpoConfig
from tests.methods.preference.toy_pair import gradient_of, loss_of, optimum, random_sides, side, toy

R_DPO = RDpo(RDpoConfig())


def test_known_answers():
    assert loss_of(R_DPO) == pytest.approx(0.5981388694, abs=1e-10)
    assert gradient_of(R_DPO)[0] == pytest.approx(-0.1 / (1 + math.exp(0.2)), abs=1e-12)
    shorter = side(-10.0, -11.0, 5), side(-12.0, -11.5, 8)  # log-ratios 1 and -0.5 as well
    assert loss_of(RDpo(RDpoConfig(alpha=0.01)), shorter) == pytest.approx(0.634946, abs=5e-7)


def test_without_a_price_it_is_dpo():
    sides = random_sides()
    found = RDpo(RDpoConfig(alpha=0.0)).losses(*sides)
    torch.testing.assert_close(found, Dpo(DpoConfig()).losses(*sides))


def test_a_longer_chosen_response_is_pushed_less():
    longer, shorter = toy(n_w=50), toy(n_l=50)
    assert -gradient_of(R_DPO, longer)[0] < -gradient_of(Dpo(DpoConfig()))[0] < -gradient_of(R_DPO, shorter)[0]


def test_optimum():
    """Labels of Bradley and Terry for r: pi proportional to ref exp((r - alpha n) / beta)."""
    reference = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64).log()
    reward = torch.tensor([0.0, 0.3, -0.4, 0.8, 0.1], dtype=torch.float64)
    tokens = torch.tensor([3, 9, 1, 12, 5], dtype=torch.float64)
    found = optimum(RDpo(RDpoConfig(beta=0.5, alpha=0.05)), reference, reward, tokens)
    expected = (reference + (reward - 0.05 * tokens) / 0.5).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_is_logged_as_reward():
    """r itself, so that the margin that is logged is that of the loss."""
    chosen, rejected = toy()
    margin = (R_DPO.rewards(chosen) - R_DPO.rewards(rejected)).item()
    assert math.log1p(math.exp(-margin)) == pytest.approx(loss_of(R_DPO), abs=1e-12)


def test_alpha_out_of_range():
    with pytest.raises(ValidationError):
        TypeAdapter(RDpoConfig).validate_python({"alpha": -0.1})
