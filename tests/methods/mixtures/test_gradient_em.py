"""Gradient EM: one inner step is gradient descent, many are EM; step sizes of gate and experts."""

import numpy as np
import pytest

from methods.mixtures.data import SyntheticMixture, SyntheticMixtureConfig
from methods.mixtures.em import Em, EmConfig
from methods.mixtures.gradient_descent import GradientDescent, GradientDescentConfig
from methods.mixtures.gradient_em import GradientEm, GradientEmConfig
from methods.mixtures.mixture import MixtureData
from tests.methods.mixtures.brute import ALL, Case


def data_of(case: Case) -> MixtureData:
    return MixtureData(case.mixture, case.x, case.y, case.parameters())


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
@pytest.mark.parametrize("rates", [{"eta_beta": 0.3}, {"eta_beta": 0.3, "eta_w": 0.7, "ridge": 0.01}])
def test_one_inner_step_is_gradient_descent_bit_for_bit(case: Case, rates: dict[str, float]) -> None:
    data = data_of(case)
    one, other = data.start, data.start
    for _ in range(5):
        one, work = GradientEm(GradientEmConfig(inner_steps=1, **rates)).iterate(data, one)
        other, same = GradientDescent(GradientDescentConfig(**rates)).iterate(data, other)
        assert np.array_equal(one.w, other.w) and np.array_equal(one.beta, other.beta)
        assert work == same == (1, 1)


def test_more_inner_steps_are_another_method() -> None:
    data = data_of(ALL[0])
    two, work = GradientEm(GradientEmConfig(inner_steps=2)).iterate(data, data.start)
    descent = GradientDescent(GradientDescentConfig())
    twice = descent.iterate(data, descent.iterate(data, data.start)[0])[0]
    assert not np.allclose(two.beta, twice.beta) and work == (2, 2)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_many_inner_steps_are_em(case: Case) -> None:
    data = data_of(case)
    many, _ = GradientEm(GradientEmConfig(inner_steps=3000, eta_beta=0.5, eta_w=1.0)).iterate(data, data.start)
    exact, _ = Em(EmConfig(ridge=0.0)).iterate(data, data.start)
    for one, two in zip(many, exact, strict=True):
        if case.name == "two softmax":  # only differences of a point's logits count
            one, two = (part - part.mean(-2, keepdims=True) if part.ndim == 3 else part for part in (one, two))
        np.testing.assert_allclose(one, two, atol=1e-3)


def test_gate_has_a_step_size_of_its_own() -> None:
    data = SyntheticMixture(SyntheticMixtureConfig(n=50, d=3)).load(1)[0]
    plain, _ = GradientEm(GradientEmConfig(eta_beta=0.2)).iterate(data, data.start)
    other, _ = GradientEm(GradientEmConfig(eta_beta=0.2, eta_w=0.4)).iterate(data, data.start)
    assert np.array_equal(plain.beta, other.beta) and not np.allclose(plain.w, other.w)
