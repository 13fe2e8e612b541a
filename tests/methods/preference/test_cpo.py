"""CPO: the worked pair, both forms of its likelihood, and DPO with a uniform reference as its limit."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.base import Side
from methods.preference.cpo import Cpo, CpoConfig
from methods.preference.dpo import Dpo, DpoConfig
from tests.methods.preference.extremes import check_extremes, check_pairs_are_apart
from tests.methods.preference.toy_pair import gradient_of, loss_of, random_sides, side, toy

CPO = Cpo(CpoConfig())
MEAN = Cpo(CpoConfig(nll="mean"))
PLAIN = Cpo(CpoConfig(alpha=0.0))


def test_known_answers():
    """The likelihood of the chosen response: 12 nats, or 2 per token."""
    assert loss_of(PLAIN) == pytest.approx(0.5543552445, abs=1e-10)
    assert loss_of(MEAN) == pytest.approx(2.5543552445, abs=1e-10)
    assert loss_of(CPO) == pytest.approx(12.5543552445, abs=1e-10)


def test_gradients():
    """beta sigmoid(-beta (W - L)) = 0.1 sigmoid(-0.3), and the likelihood's."""
    push = 0.1 * torch.sigmoid(torch.tensor(-0.3, dtype=torch.float64)).item()
    assert gradient_of(PLAIN) == pytest.approx((-push, push), abs=1e-12)
    assert gradient_of(CPO) == pytest.approx((-push - 1, push), abs=1e-12)
    assert gradient_of(MEAN) == pytest.approx((-push - 1 / 6, push), abs=1e-12)


def test_without_likelihood_it_is_dpo_with_a_uniform_reference():
    chosen, rejected = random_sides()
    uniform = [side(one.logps, -7.0) for one in (chosen, rejected)]
    dpo = Dpo(DpoConfig(beta=0.3)).losses(*uniform)
    torch.testing.assert_close(Cpo(CpoConfig(beta=0.3, alpha=0.0)).losses(chosen, rejected), dpo)


def test_a_prompt_constant_cancels_without_likelihood():
    chosen, rejected = random_sides()
    shift = torch.linspace(-3, 3, 7, dtype=torch.float64)
    moved = [Side(one.logps + shift, one.reference, one.tokens) for one in (chosen, rejected)]
    torch.testing.assert_close(PLAIN.losses(*moved), PLAIN.losses(chosen, rejected))
    torch.testing.assert_close(CPO.losses(*moved), CPO.losses(chosen, rejected) - shift)


def test_the_two_forms_are_one_for_single_tokens():
    chosen, rejected = random_sides()
    single = [side(one.logps, 0.0) for one in (chosen, rejected)]
    torch.testing.assert_close(CPO.losses(*single), MEAN.losses(*single))
    assert not torch.allclose(CPO.losses(chosen, rejected), MEAN.losses(chosen, rejected))


def test_the_reference_is_not_in_it():
    assert not Cpo.referenced
    assert loss_of(CPO, toy(Wr=3.0, Lr=-99.0)) == loss_of(CPO)
    chosen, _ = toy(Wr=0.0)  # what the base gives a method without a reference
    assert CPO.rewards(chosen).item() == pytest.approx(-1.2)


@pytest.mark.parametrize("method", [CPO, MEAN, PLAIN])
def test_extremes(method):
    check_extremes(method)
    check_pairs_are_apart(method)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"alpha": -1.0}, {"nll": "batch"}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(CpoConfig).validate_python(wrong)
