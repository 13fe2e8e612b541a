"""RRHF on pairs: the worked pair in both orders, and both forms of its SFT term."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.rrhf import Rrhf, RrhfConfig
from tests.methods.preference.extremes import check_extremes, check_pairs_are_apart
from tests.methods.preference.toy_pair import gradient_of, loss_of, random_sides, toy

RRHF = Rrhf(RrhfConfig())
MEAN = Rrhf(RrhfConfig(nll="mean"))
RANK = Rrhf(RrhfConfig(weight=0.0))


def test_known_answers():
    """-2 and -3 per token are in the right order."""
    assert loss_of(RANK) == 0.0
    assert loss_of(MEAN) == pytest.approx(2.0, abs=1e-12)
    assert loss_of(RRHF) == pytest.approx(12.0, abs=1e-12)
    assert loss_of(Rrhf(RrhfConfig(weight=0.1))) == pytest.approx(1.2, abs=1e-12)
    assert gradient_of(RANK) == (0.0, 0.0)
    assert gradient_of(RRHF) == (-1.0, 0.0)
    assert gradient_of(MEAN) == pytest.approx((-1 / 6, 0.0))


def test_known_answers_of_a_pair_in_the_wrong_order():
    """-2 and -1.5 per token: a hinge of 0.5."""
    wrong = toy(L=-7.5)
    assert loss_of(RANK, wrong) == pytest.approx(0.5, abs=1e-12)
    assert loss_of(MEAN, wrong) == pytest.approx(2.5, abs=1e-12)
    assert gradient_of(RANK, wrong) == pytest.approx((-1 / 6, 1 / 5))
    assert gradient_of(RRHF, wrong) == pytest.approx((-1 - 1 / 6, 1 / 5))


def test_the_order_is_that_of_the_mean_and_not_of_the_sum():
    """Chosen: 10 tokens of 1 nat; rejected: 2 tokens of 2 nats, whose sum is the larger."""
    assert loss_of(RANK, toy(W=-10.0, n_w=10, L=-4.0, n_l=2)) == 0.0
    assert loss_of(RANK, toy(W=-4.0, n_w=2, L=-10.0, n_l=10)) == 1.0


def test_a_tie_has_no_loss():
    assert loss_of(RANK, toy(L=-10.0)) == 0.0
    chosen, rejected = random_sides()
    assert (RANK.losses(chosen, rejected) * RANK.losses(rejected, chosen) == 0).all()
    torch.testing.assert_close(
        RANK.losses(chosen, rejected) + RANK.losses(rejected, chosen), (chosen.mean_logps - rejected.mean_logps).abs()
    )


def test_the_reference_is_not_in_it():
    assert not Rrhf.referenced
    assert loss_of(RRHF, toy(Wr=3.0, Lr=-99.0)) == loss_of(RRHF)
    assert RRHF.metrics(*toy())["reward_margin"].item() == 1.0


@pytest.mark.parametrize("method", [RRHF, MEAN])
def test_extremes(method):
    check_extremes(method)
    check_pairs_are_apart(method)


@pytest.mark.parametrize("wrong", [{"weight": -0.1}, {"nll": "batch"}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(RrhfConfig).validate_python(wrong)
