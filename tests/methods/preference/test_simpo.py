"""SimPO: the worked pair, CPO as its limit, and what its margin and lengths do."""

import dataclasses
import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.cpo import Cpo, CpoConfig
from methods.preference.simpo import Simpo, SimpoConfig
from tests.methods.preference.extremes import check_extremes, check_pairs_are_apart
from tests.methods.preference.toy_pair import gradient_of, loss_of, random_sides, side, toy

SIMPO = Simpo(SimpoConfig(beta=2.0, gamma=1.0))


def test_known_answers():
    """Argument of the sigmoid: 2 (-2) - 2 (-3) - 1 = 1."""
    assert loss_of(SIMPO) == pytest.approx(0.3132616875, abs=1e-10)
    assert loss_of(SIMPO) == pytest.approx(math.log1p(math.exp(-1)), abs=1e-12)
    assert gradient_of(SIMPO) == pytest.approx((-0.0896471405, 0.1075765685), abs=1e-10)


@pytest.mark.parametrize(("gamma", "loss"), [(0.3, 1.742476), (1.4, 2.718267)])
def test_known_answers_of_a_pair_in_the_wrong_order(gamma, loss):
    """Mean log-probabilities -2 and -1.5, beta 2.5."""
    method = Simpo(SimpoConfig(beta=2.5, gamma=gamma))
    assert loss_of(method, toy(L=-7.5)) == pytest.approx(loss, abs=5e-7)


def test_gamma_is_that_of_the_paper():
    """The authors' code takes beta (difference - gamma / beta): with a ratio of 0.5, gamma is 1 at beta 2."""
    chosen, rejected = random_sides()
    code = -torch.nn.functional.logsigmoid(2.0 * (chosen.mean_logps - rejected.mean_logps - 0.5))
    torch.testing.assert_close(SIMPO.losses(chosen, rejected), code)


def test_of_single_tokens_without_margin_it_is_cpo_without_likelihood():
    chosen, rejected = random_sides()
    single = [side(one.logps, 0.0) for one in (chosen, rejected)]
    cpo = Cpo(CpoConfig(beta=0.7, alpha=0.0))
    torch.testing.assert_close(Simpo(SimpoConfig(beta=0.7, gamma=0.0)).losses(*single), cpo.losses(*single))


def test_a_response_written_twice_has_the_same_reward():
    twice = toy(W=-24.0, n_w=12)
    assert loss_of(SIMPO, twice) == loss_of(SIMPO)
    assert gradient_of(SIMPO, twice)[0] == pytest.approx(gradient_of(SIMPO)[0] / 2, rel=1e-12)


def test_the_reference_is_not_in_it():
    assert not Simpo.referenced and Simpo.frozen == ()
    assert loss_of(SIMPO, toy(Wr=3.0, Lr=-99.0)) == loss_of(SIMPO)


def test_rewards():
    assert SIMPO.rewards(toy()[0]).item() == -4.0
    metrics = SIMPO.metrics(*toy())
    assert metrics["reward_margin"].item() == 2.0 and metrics["reward_accuracy"].item() == 1


def test_extremes():
    check_extremes(SIMPO)
    check_pairs_are_apart(SIMPO)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"gamma": -0.1}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(SimpoConfig).validate_python(wrong)


def test_there_is_no_choice_of_a_reference():
    assert {field.name for field in dataclasses.fields(SimpoConfig)} == {"beta", "gamma"}
