"""DIL: the worked pair for each estimator, their common optimum, and InfoPO as one of them."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.dil import Dil, DilConfig, lsif_loss
from methods.preference.infopo import Infopo, InfopoConfig
from tests.methods.preference.extremes import check_extremes, check_pairs_are_apart
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, random_sides, side, toy

LSIF, BCE, UKL = (Dil(DilConfig(estimator=name)) for name in ("lsif", "bce", "ukl"))


@pytest.mark.parametrize(
    ("method", "loss"), [(LSIF, -2.5343421079), (BCE, 0.7873386717), (UKL, 12.6065306597)], ids=["lsif", "bce", "ukl"]
)
def test_known_answers(method, loss):
    assert loss_of(method) == pytest.approx(loss, abs=1e-10)


def test_gradients():
    assert gradient_of(LSIF) == pytest.approx((-math.exp(1), math.exp(-1)), abs=1e-12)
    sigmoid = 1 / (1 + math.e), 1 / (1 + math.exp(0.5))
    assert gradient_of(BCE) == pytest.approx((-sigmoid[0], sigmoid[1]), abs=1e-12)
    assert gradient_of(UKL) == pytest.approx((-1.0, 0.6065306597), abs=1e-10)


def test_at_the_reference():
    assert loss_of(LSIF, at_reference()) == -0.5 and gradient_of(LSIF, at_reference()) == (-1.0, 1.0)
    assert loss_of(BCE, at_reference()) == pytest.approx(2 * math.log(2))
    assert gradient_of(BCE, at_reference()) == (-0.5, 0.5)
    assert loss_of(UKL, at_reference()) == 14.0 and gradient_of(UKL, at_reference()) == (-1.0, 1.0)


def test_ukl_is_infopo():
    sides = random_sides()
    assert torch.equal(UKL.losses(*sides), Infopo(InfopoConfig()).losses(*sides))


@pytest.mark.parametrize("method", [LSIF, BCE, UKL], ids=["lsif", "bce", "ukl"])
def test_the_density_ratio_is_the_optimum(method):
    """Of a free ratio for each of three answers: the derivative of the expected loss vanishes, at a minimum."""
    p_w, p_l = torch.tensor([0.6, 0.3, 0.1]).double(), torch.tensor([0.2, 0.3, 0.5]).double()

    def expected(log_ratio):
        one = side(log_ratio, torch.zeros(3))
        nothing = side(torch.zeros(3), torch.zeros(3))
        return (p_w * method.losses(one, nothing)).sum() + (p_l * method.losses(nothing, one)).sum()

    best = (p_w / p_l).log().requires_grad_()
    value = expected(best)
    (gradient,) = torch.autograd.grad(value, best)
    torch.testing.assert_close(gradient, torch.zeros(3).double(), rtol=0, atol=1e-12)
    for seed in range(10):
        step = 0.3 * torch.randn(3, generator=torch.Generator().manual_seed(seed)).double()
        assert expected(best.detach() + step) > value


def test_the_chosen_reference_matters_but_for_ukl():
    for method, matters in ((LSIF, True), (BCE, True), (UKL, False)):
        assert (loss_of(method, toy(Wr=-12.0)) != loss_of(method)) == matters


def test_tangents_of_lsif():
    """From a_w = 2 and from 2 a_l = 2 on, where exp goes on as its tangent."""
    chosen = torch.tensor([1.9, 3.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.9, 3.0], dtype=torch.float64, requires_grad=True)
    losses = lsif_loss(chosen, rejected, 2.0)
    e2 = math.exp(2)
    assert losses.tolist() == pytest.approx([-math.exp(1.9) + math.exp(1.8) / 2, -2 * e2 + 0.5 * e2 * 5])
    losses.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-math.exp(1.9), -e2])
    assert rejected.grad.tolist() == pytest.approx([math.exp(1.8), e2])


@pytest.mark.parametrize("method", [LSIF, BCE, UKL], ids=["lsif", "bce", "ukl"])
def test_extremes(method):
    check_extremes(method)
    check_pairs_are_apart(method)


@pytest.mark.parametrize("wrong", [{"estimator": "kl"}, {"exponent_max": 89.0}, {"beta": 0.1}])
def test_what_makes_no_sense_is_refused(wrong):
    if "beta" in wrong:
        with pytest.raises(TypeError):
            DilConfig(**wrong)
    else:
        with pytest.raises(ValidationError):
            TypeAdapter(DilConfig).validate_python(wrong)
