"""Gradient descent: a step by hand, where it ends, what too large a step says."""

import numpy as np
import pytest

from methods.mixtures.data import SyntheticMixture, SyntheticMixtureConfig
from methods.mixtures.gradient_descent import GradientDescent, GradientDescentConfig
from methods.mixtures.mixture import MixtureData
from tests.methods.mixtures.brute import ALL
from tests.methods.mixtures.fake_context import fitted


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_step_goes_down_the_gradient(case: object) -> None:
    data = MixtureData(case.mixture, case.x, case.y, case.parameters())  # type: ignore[attr-defined]
    after, _ = GradientDescent(GradientDescentConfig(eta_beta=0.25, eta_w=2.0)).iterate(data, data.start)
    slope = case.loss_and_gradient(data.start)[1]  # type: ignore[attr-defined]
    np.testing.assert_allclose(after.beta, data.start.beta - 0.25 * slope.beta, atol=1e-13)
    np.testing.assert_allclose(after.w, data.start.w - 2.0 * slope.w, atol=1e-13)


def test_ridge_pulls_all_but_linear_experts_to_nothing() -> None:
    for case in ALL:
        data = MixtureData(case.mixture, case.x, case.y, case.parameters())
        plain, _ = GradientDescent(GradientDescentConfig()).iterate(data, data.start)
        pulled, _ = GradientDescent(GradientDescentConfig(ridge=0.1)).iterate(data, data.start)
        np.testing.assert_allclose(plain.w - pulled.w, 0.05 * data.start.w, atol=1e-14)
        pull = 0.0 if "linear" in case.name else 0.05
        np.testing.assert_allclose(plain.beta - pulled.beta, pull * data.start.beta, atol=1e-14)


def test_it_ends_where_em_does() -> None:
    data = SyntheticMixture(SyntheticMixtureConfig(n=500, d=3)).load(2)
    found = fitted(GradientDescent(GradientDescentConfig(iterations=400, eta_beta=1.0, eta_w=4.0)), data)
    assert found["loss_above_optimum/5"] > 1e-6
    assert found["loss_above_optimum/400"] == pytest.approx(0, abs=1e-10)


def test_steps_that_are_too_large_are_one_line() -> None:
    data = SyntheticMixture(SyntheticMixtureConfig(n=500, d=3)).load(2)
    with pytest.raises(
        ValueError,
        match=r"^method.eta_beta=50.0, method.eta_w=None: the loss must be finite, got (inf|nan) after iteration",
    ):
        fitted(GradientDescent(GradientDescentConfig(iterations=400, eta_beta=50.0)), data)
