"""Length-normalised DPO: the worked pair, and that only log-ratios per token count."""

import math

import pytest
import torch

from methods.preference.base import Side
from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.ln_dpo import LnDpo, LnDpoConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, random_sides, toy

LN = LnDpo(LnDpoConfig(beta=0.1))


def test_known_answers():
    assert loss_of(LN) == pytest.approx(0.6799027335, abs=1e-10)
    assert loss_of(LN, at_reference()) == pytest.approx(math.log(2), abs=1e-12)
    weight = -0.1 / (1 + math.exp(0.1 * (1 / 6 + 0.1)))
    assert gradient_of(LN) == pytest.approx((weight / 6, -weight / 5), abs=1e-12)
    expected = math.log1p(math.exp(-5 * (1 / 6 + 0.1)))
    assert loss_of(LnDpo(LnDpoConfig())) == pytest.approx(expected, abs=1e-12)


def test_of_single_tokens_it_is_dpo():
    chosen, rejected = random_sides()
    chosen.tokens.fill_(1), rejected.tokens.fill_(1)
    torch.testing.assert_close(LN.losses(chosen, rejected), Dpo(DpoConfig()).losses(chosen, rejected))


def test_twice_the_response_counts_the_same():
    """Where each token has the same log-ratio, length is nothing."""
    chosen, rejected = random_sides()
    twice = Side(2 * chosen.logps, 2 * chosen.reference, 2 * chosen.tokens)
    torch.testing.assert_close(LN.losses(twice, rejected), LN.losses(chosen, rejected))


def test_what_is_logged_as_reward():
    assert LN.rewards(toy()[0]).item() == pytest.approx(0.1 / 6)
