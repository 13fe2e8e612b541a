"""EXO: the worked pair, and that it is a KL divergence to the label."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.divergences import kl
from methods.preference.exo import Exo, ExoConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, random_sides, toy

EXO = Exo(ExoConfig(label_smoothing=0.1))


def test_known_answers():
    assert loss_of(EXO) == pytest.approx(0.4313884572, abs=1e-10)
    assert loss_of(EXO, at_reference()) == pytest.approx(0.5108256238, abs=1e-10)
    assert gradient_of(EXO) == pytest.approx((-0.0508938, 0.0508938), abs=1e-7)


@pytest.mark.parametrize("smoothing", [1e-3, 0.1, 0.4])
def test_it_is_the_kl_to_the_label(smoothing):
    chosen, rejected = random_sides()
    scores = 0.1 * torch.stack([chosen.log_ratio, rejected.log_ratio], -1)
    label = torch.tensor([1 - smoothing, smoothing], dtype=torch.float64).log()
    expected = kl(scores.log_softmax(-1), label.expand_as(scores))
    torch.testing.assert_close(Exo(ExoConfig(label_smoothing=smoothing)).losses(chosen, rejected), expected)


@pytest.mark.parametrize("smoothing", [1e-3, 0.1])
def test_it_is_0_where_the_policy_agrees_with_the_label(smoothing):
    method = Exo(ExoConfig(label_smoothing=smoothing))
    pair = toy(W=math.log((1 - smoothing) / smoothing) / 0.1, Wr=0.0, L=0.0, Lr=0.0)
    assert loss_of(method, pair) == pytest.approx(0.0, abs=1e-12)
    assert gradient_of(method, pair) == pytest.approx((0.0, 0.0), abs=1e-12)


def test_limits_of_large_margins():
    """log 1/(1 - e) where the policy is sure of the chosen one, log 1/e where it is of the other."""
    assert loss_of(EXO, toy(W=1e4)) == pytest.approx(-math.log(0.9), abs=1e-9)
    assert loss_of(EXO, toy(W=-1e4)) == pytest.approx(-math.log(0.1), abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_smoothing_out_of_range(value):
    with pytest.raises(ValidationError):
        TypeAdapter(ExoConfig).validate_python({"label_smoothing": value})
