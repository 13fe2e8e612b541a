"""SLiC-HF: the worked pair on both sides of its hinge."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.slic import Slic, SlicConfig, slic_loss
from tests.methods.preference.extremes import check_extremes, check_pairs_are_apart
from tests.methods.preference.toy_pair import gradient_of, loss_of, random_sides, toy


@pytest.mark.parametrize(
    ("delta", "loss", "gradient"),
    [(1.0, 1.2, (-0.1, 0.0)), (5.0, 3.2, (-1.1, 1.0))],
)
def test_known_answers(delta, loss, gradient):
    """W - L = 3: beyond a margin of 1, short of one of 5 by 2."""
    method = Slic(SlicConfig(delta=delta, weight=0.1))
    assert loss_of(method) == pytest.approx(loss, abs=1e-12)
    assert gradient_of(method) == pytest.approx(gradient, abs=1e-12)


def test_a_pair_beyond_the_margin_has_the_likelihood_alone():
    chosen, rejected = random_sides()
    losses = slic_loss(chosen.logps, rejected.logps, 1.0, 0.1)
    beyond = chosen.logps - rejected.logps > 1.0
    assert beyond.any() and not beyond.all()
    torch.testing.assert_close(losses[beyond], -0.1 * chosen.logps[beyond])
    assert (losses[~beyond] > -0.1 * chosen.logps[~beyond]).all()


def test_a_prompt_constant_cancels_in_the_hinge():
    assert loss_of(Slic(SlicConfig(delta=5.0, weight=0.0)), toy(W=-2.0, L=-5.0)) == pytest.approx(2.0)


def test_neither_lengths_nor_the_reference_are_in_it():
    assert not Slic.referenced
    method = Slic(SlicConfig())
    assert loss_of(method, toy(Wr=3.0, Lr=-99.0, n_w=1, n_l=50)) == loss_of(method)


def test_extremes():
    for config in (SlicConfig(), SlicConfig(delta=5.0)):
        check_extremes(Slic(config))
        check_pairs_are_apart(Slic(config))


@pytest.mark.parametrize("wrong", [{"delta": -1.0}, {"weight": -0.1}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(SlicConfig).validate_python(wrong)
