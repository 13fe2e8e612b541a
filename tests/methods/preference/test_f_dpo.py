"""f-DPO: the worked pair under each divergence, its limits, and the optimum that each stands for."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.divergences import f_score
from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.f_dpo import FDpo, FDpoConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, optimum, random_sides, toy

CASES = [
    ("reverse_kl", 0.5, 0.150000, 0.620957),
    ("forward_kl", 0.5, 0.128084, 0.631154),
    ("js", 0.5, 0.066082, 0.660652),
    ("alpha", 0.1, 0.146434, 0.622608),
    ("alpha", 0.3, 0.140339, 0.625438),
    ("alpha", 0.5, 0.135499, 0.627691),
    ("alpha", 0.7, 0.131783, 0.629425),
    ("alpha", 0.9, 0.129083, 0.630687),
]


def f_dpo(divergence, alpha=0.5, beta=0.1):
    return FDpo(FDpoConfig(divergence=divergence, alpha=alpha, beta=beta))


@pytest.mark.parametrize(("divergence", "alpha", "logit", "loss"), CASES)
def test_known_answers(divergence, alpha, logit, loss):
    method = f_dpo(divergence, alpha)
    assert loss_of(method) == pytest.approx(loss, abs=5e-7)
    chosen, rejected = (method.rewards(one).item() for one in toy())
    assert chosen - rejected == pytest.approx(logit, abs=5e-7)
    assert loss_of(method, at_reference()) == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize(("divergence", "loss"), [
    ("forward_kl", 0.6311543836), ("js", 0.6606521625), ("alpha", 0.6276909471),
])  # fmt: skip
def test_known_answers_to_more_digits(divergence, loss):
    assert loss_of(f_dpo(divergence)) == pytest.approx(loss, abs=1e-10)


@pytest.mark.parametrize(("divergence", "slopes"), [
    ("reverse_kl", (1.0, 1.0)),
    ("forward_kl", (math.exp(-1), math.exp(0.5))),
    ("js", (1 / (1 + math.exp(1)), 1 / (1 + math.exp(-0.5)))),
    ("alpha", (math.exp(-0.5), math.exp(0.25))),
])  # fmt: skip
def test_gradient(divergence, slopes):
    """-beta sigmoid(-logit) times the slope of each score by its log-ratio."""
    method = f_dpo(divergence)
    weight = 0.1 * (1 - math.exp(-loss_of(method)))
    expected = (-weight * slopes[0], weight * slopes[1])
    assert gradient_of(method) == pytest.approx(expected, abs=1e-12)


def test_reverse_kl_is_dpo():
    sides = random_sides()
    torch.testing.assert_close(f_dpo("reverse_kl", beta=0.3).losses(*sides), Dpo(DpoConfig(beta=0.3)).losses(*sides))


@pytest.mark.parametrize(("alpha", "divergence"), [(1e-7, "reverse_kl"), (1 - 1e-7, "forward_kl")])
def test_limits_of_alpha(alpha, divergence):
    sides = random_sides()
    found = f_dpo("alpha", alpha).losses(*sides)
    torch.testing.assert_close(found, f_dpo(divergence).losses(*sides), rtol=1e-4, atol=1e-4)


def test_margins_of_js_saturate():
    """A chosen response that is far above the reference already is pushed no further."""
    assert abs(gradient_of(f_dpo("js"), toy(W=-13 + 30.0))[0]) < 1e-12
    assert abs(gradient_of(f_dpo("reverse_kl"), toy(W=-13 + 30.0))[0]) > 1e-4


@pytest.mark.parametrize(("divergence", "alpha"), [
    ("reverse_kl", 0.5), ("forward_kl", 0.5), ("js", 0.5), ("alpha", 0.3), ("alpha", 0.7),
])  # fmt: skip
def test_optimum(divergence, alpha):
    """With labels of Bradley and Terry, beta f'(pi/ref) is the reward up to a constant."""
    reference = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64).log()
    reward = torch.tensor([0.0, 0.3, -0.4, 0.2, 0.1], dtype=torch.float64)
    found = optimum(f_dpo(divergence, alpha, beta=2.0), reference, reward)
    left = 2.0 * f_score(divergence, found - reference, alpha) - reward
    torch.testing.assert_close(left, left.mean().expand(5), rtol=0, atol=1e-5)
    assert (found - reference).abs().max() > 0.05


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_a_response_that_was_dropped_is_pushed_back(divergence):
    """Log-ratio -10^4 of the chosen one, fp32: the gradient is a number, and not 0 as after a clamp."""
    leaf = torch.tensor([-1e4], requires_grad=True)
    zero = torch.zeros(1)
    sides = [type(toy()[0])(logps, zero, zero + 1) for logps in (leaf, zero)]
    loss = f_dpo(divergence).losses(*sides).sum()
    loss.backward()
    assert math.isfinite(loss.item()) and math.isfinite(leaf.grad.item()) and leaf.grad.item() < -0.01


@pytest.mark.parametrize("given", [{"alpha": 0.0}, {"alpha": 1.0}, {"divergence": "pearson"}])
def test_out_of_range(given):
    with pytest.raises(ValidationError):
        TypeAdapter(FDpoConfig).validate_python(given)
