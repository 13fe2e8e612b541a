"""InfoPO: the worked pair, the bounds it comes from, its optimum over a few answers, and its overflow guard."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.divergences import exp_then_linear
from methods.preference.base import Side
from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.infopo import Infopo, InfopoConfig, infopo_loss
from tests.methods.preference.extremes import check_extremes, check_pairs_are_apart
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, random_sides, side, toy

INFOPO = Infopo(InfopoConfig())
DOUBLE = torch.float64


def test_known_answers():
    """12 + exp(-0.5); as a function of the log-ratios it is -1 + exp(-0.5)."""
    assert loss_of(INFOPO) == pytest.approx(12.6065306597, abs=1e-10)
    assert loss_of(INFOPO) + toy()[0].reference.item() == pytest.approx(-0.3934693403, abs=1e-10)
    assert gradient_of(INFOPO) == pytest.approx((-1.0, 0.6065306597), abs=1e-10)


def test_at_the_reference_both_weights_are_1():
    assert loss_of(INFOPO, at_reference()) == 13.0 + 1.0
    assert gradient_of(INFOPO, at_reference()) == (-1.0, 1.0)


def test_weight_of_the_rejected_response_is_its_likelihood_ratio():
    """The chosen one's is 1, whatever the margin; DPO's two are one number."""
    for ratio in (-300.0, -5.0, 0.0, 5.0):
        dW, dL = gradient_of(INFOPO, toy(L=-14.5 + ratio))
        assert dW == -1.0 and dL == pytest.approx(math.exp(ratio), rel=1e-12)
    assert math.exp(5.0) == pytest.approx(148.4, abs=0.05)
    dW, dL = gradient_of(Dpo(DpoConfig()), toy(L=-20.0))
    assert dW == -dL


def test_as_the_rejected_response_becomes_unlikely_it_is_sft():
    assert gradient_of(INFOPO, toy(L=-1e4)) == (-1.0, 0.0)
    assert loss_of(INFOPO, toy(L=-1e4)) == 12.0


def test_what_it_is_invariant_to():
    """To the chosen reference. A nat more in the rejected one's scales its weight; prompt constants do not cancel."""
    assert loss_of(INFOPO, toy(Wr=-99.0)) == loss_of(INFOPO)
    assert gradient_of(INFOPO, toy(Lr=-13.5))[1] == pytest.approx(0.6065306597 / math.e, abs=1e-10)
    assert loss_of(INFOPO, toy(W=-11.0, L=-14.0)) != pytest.approx(loss_of(INFOPO), abs=1e-2)


# Where it comes from -----------------------------------------------------------------------------------------


def test_infonce_with_the_log_ratio_as_critic_is_dpo():
    chosen, rejected = toy()
    critics = torch.stack([chosen.log_ratio, rejected.log_ratio], -1)
    infonce = -critics.log_softmax(-1)[0, 0].item()
    assert infonce == pytest.approx(0.2014132780, abs=1e-10)
    assert infonce == pytest.approx(loss_of(Dpo(DpoConfig(beta=1.0))), abs=1e-12)


def nwj(p, q, critic):
    """E_p[f] - exp(-1) E_q[exp(f)], through the loss: f = 1 + a."""
    log_ratio = critic - 1
    return 1 - (p[:, None] * q[None] * infopo_loss(log_ratio[:, None], log_ratio[None])).sum().item()


def test_nwj_is_tight_at_the_log_density_ratio():
    p, q = torch.tensor([0.6, 0.3, 0.1], dtype=DOUBLE), torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE)
    ratio = (p / q).log()
    assert (p * ratio).sum().item() == pytest.approx(0.4982235820, abs=1e-10)
    assert nwj(p, q, 1 + ratio) == pytest.approx(0.4982235820, abs=1e-10)
    assert nwj(p, q, 1 + ratio / 2) == pytest.approx(0.3790948317, abs=1e-10)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = 1 + ratio + torch.randn(3, generator=generator, dtype=DOUBLE)
        assert nwj(p, q, other) < 0.4982235820


UNIFORM = [1 / 3, 1 / 3, 1 / 3]
P_W = torch.tensor([0.6, 0.3, 0.1], dtype=DOUBLE)


def expected_loss(method, logits, p_l):
    """Over independent chosen and rejected answers, ref uniform."""
    logps = logits.log_softmax(-1)
    reference = torch.tensor(UNIFORM, dtype=DOUBLE).log()
    chosen, rejected = (index.flatten() for index in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
    ones = torch.ones(9, dtype=DOUBLE)
    sides = [Side(logps[index], reference[index], ones) for index in (chosen, rejected)]
    weights = P_W[chosen] * torch.tensor(p_l, dtype=DOUBLE)[rejected]
    return (weights * method.losses(*sides)).sum()


def minimised(method, p_l):
    """The policy that plain gradient descent on its logits ends at, and its loss."""
    logits = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    for _ in range(600):
        (gradient,) = torch.autograd.grad(expected_loss(method, logits, p_l), logits)
        logits = (logits - 2 * gradient).detach().requires_grad_()
    return logits.detach().softmax(-1), expected_loss(method, logits.detach(), p_l).item()


@pytest.mark.parametrize(
    ("p_l", "mu", "optimum", "loss"),
    [
        (UNIFORM, 0.0, [0.6, 0.3, 0.1], 1.8979457),
        ([0.1, 0.3, 0.6], 0.507055, [0.743443, 0.213211, 0.043345], 1.448319),
        ([0.3, 0.4, 0.3], 0.026628, [0.647509, 0.244573, 0.107918], 1.879256),
    ],
)
def test_optimum_over_three_answers(p_l, mu, optimum, loss):
    """pi = p_w / (p_l / ref + mu); the chosen distribution itself where the rejected answers come from ref."""
    found, value = minimised(INFOPO, p_l)
    torch.testing.assert_close(found, torch.tensor(optimum, dtype=DOUBLE), rtol=0, atol=1e-6)
    assert value == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(found, P_W / (3 * torch.tensor(p_l, dtype=DOUBLE) + mu), rtol=0, atol=2e-6)


def test_loss_at_the_optimum_is_1_plus_the_entropy():
    entropy = -(P_W * P_W.log()).sum().item()
    value = expected_loss(INFOPO, P_W.log(), UNIFORM).item()
    assert value == pytest.approx(1 + entropy, abs=1e-12)
    assert value - math.log(3) == pytest.approx(0.7993334, abs=5e-8)  # of the log-ratios


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_dpo_imitates_the_chosen_distribution_at_beta_1_alone(beta):
    """Its optimum is ref (p_w / p_l)^(1/beta), for rejected answers from ref too."""
    found, _ = minimised(Dpo(DpoConfig(beta=beta)), UNIFORM)
    expected = P_W ** (1 / beta)
    torch.testing.assert_close(found, expected / expected.sum(), rtol=0, atol=1e-6)
    assert (((found - P_W).abs().max() < 1e-6) == (beta == 1.0)).item()


# Overflow ----------------------------------------------------------------------------------------------------


def test_exp_is_exact_below_its_tangent():
    x = torch.linspace(-60, 5, 200, dtype=DOUBLE, requires_grad=True)
    torch.testing.assert_close(exp_then_linear(x, 5.0), x.exp(), rtol=1e-15, atol=0)
    (gradient,) = torch.autograd.grad(exp_then_linear(x, 5.0).sum(), x)
    torch.testing.assert_close(gradient, x.exp().detach(), rtol=1e-15, atol=0)


def test_beyond_it_goes_on_as_its_tangent():
    x = torch.tensor([5.0, 6.0, 100.0], dtype=DOUBLE, requires_grad=True)
    values = exp_then_linear(x, 5.0)
    torch.testing.assert_close(values, math.exp(5) * torch.tensor([1.0, 2.0, 96.0], dtype=DOUBLE))
    (gradient,) = torch.autograd.grad(values.sum(), x)
    torch.testing.assert_close(gradient, torch.full((3,), math.exp(5), dtype=DOUBLE))


@pytest.mark.parametrize("exponent_max", [40.0, 1.0])
def test_extremes(exponent_max):
    method = Infopo(InfopoConfig(exponent_max=exponent_max))
    check_extremes(method)
    check_pairs_are_apart(method)


def test_what_is_logged():
    chosen, rejected = random_sides()
    metrics = INFOPO.metrics(chosen, rejected)
    ratios = rejected.log_ratio.exp()
    assert metrics["rejected_ratio"].item() / 7 == pytest.approx(ratios.mean().item())
    assert metrics["rejected_ratio_max"].item() / 7 == pytest.approx(ratios.max().item())
    assert metrics["reward_margin"].item() == pytest.approx((chosen.log_ratio - rejected.log_ratio).sum().item())
    far = INFOPO.metrics(side(0.0, 0.0), Side(*(value.float() for value in vars(side(0.0, -1e4)).values())))
    assert math.isfinite(far["rejected_ratio_max"].item())


@pytest.mark.parametrize("wrong", [0.0, -1.0, 89.0])
def test_exponents_that_fp32_does_not_hold_are_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(InfopoConfig).validate_python({"exponent_max": wrong})
