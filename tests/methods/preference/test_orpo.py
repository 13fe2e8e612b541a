"""ORPO: the worked pair, its stable log odds, and SFT as its limit."""

import math

import mpmath
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.orpo import Orpo, OrpoConfig, log1mexp, log_odds_ratio, orpo_loss
from tests.methods.preference.extremes import check_extremes, check_pairs_are_apart
from tests.methods.preference.toy_pair import gradient_of, loss_of, random_sides, toy

ORPO = Orpo(OrpoConfig())


def test_known_answers():
    chosen, rejected = toy()
    ratio = log_odds_ratio(chosen.mean_logps, rejected.mean_logps)
    assert ratio.item() == pytest.approx(1.0943442769, abs=1e-10)
    assert math.log1p(math.exp(-ratio.item())) == pytest.approx(0.2887507843, abs=1e-10)
    assert loss_of(ORPO) == pytest.approx(2.0288750784, abs=1e-10)
    assert gradient_of(ORPO) == pytest.approx((-0.1715009317, 0.0052788401), abs=1e-10)


def test_odds_are_those_of_the_definition():
    p, q = torch.tensor([0.9, 0.2, 0.5], dtype=torch.float64), torch.tensor([0.4, 0.7, 0.5], dtype=torch.float64)
    expected = ((p / (1 - p)) / (q / (1 - q))).log()
    torch.testing.assert_close(log_odds_ratio(p.log(), q.log()), expected)
    torch.testing.assert_close(log_odds_ratio(q.log(), p.log()), -expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log1mexp_is_exact_at_both_ends(dtype):
    """Against 60 digits: where 1 - exp(x) cancels, and where exp(x) is lost beside 1."""
    x = torch.tensor([-1e-6, -1e-3, -0.1, -0.6931, -0.6932, -5.0, -16.0, -50.0, -1e4], dtype=dtype)
    with mpmath.workdps(60):
        expected = [float(mpmath.log(1 - mpmath.exp(mpmath.mpf(float(value))))) for value in x]
    torch.testing.assert_close(log1mexp(x).double(), torch.tensor(expected, dtype=torch.float64), rtol=3e-7, atol=1e-30)


def test_a_sure_response_has_finite_odds_and_gradients():
    """log p = 0, which rounding brings about: odds without a bound otherwise."""
    chosen = torch.tensor([0.0, -1e-9, 0.0, -3.0], requires_grad=True)
    rejected = torch.tensor([-2.0, 0.0, 0.0, -1e-9], requires_grad=True)
    losses = orpo_loss(chosen, rejected, 0.1)
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(chosen.grad).all() and torch.isfinite(rejected.grad).all()


def test_weight_0_is_sft_on_the_chosen_response():
    method = Orpo(OrpoConfig(weight=0.0))
    chosen, rejected = random_sides()
    torch.testing.assert_close(method.losses(chosen, rejected), -chosen.mean_logps)
    assert gradient_of(method) == (-1 / 6, 0.0)


def test_a_prompt_constant_does_not_cancel():
    assert loss_of(ORPO, toy(W=-13.0, L=-16.0)) != pytest.approx(loss_of(ORPO), abs=1e-3)


def test_the_reference_is_not_in_it():
    assert not Orpo.referenced
    assert loss_of(ORPO, toy(Wr=3.0, Lr=-99.0)) == loss_of(ORPO)
    assert ORPO.rewards(toy()[0]).item() == pytest.approx(-0.2)


def test_extremes():
    check_extremes(ORPO)
    check_pairs_are_apart(ORPO)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValidationError):
        TypeAdapter(OrpoConfig).validate_python({"weight": -0.1})
