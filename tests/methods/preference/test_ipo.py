"""IPO: the worked pair in both forms, its gradient and where it is 0."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.ipo import Ipo, IpoConfig
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, optimum, random_sides, toy

SUMS, MEANS = Ipo(IpoConfig()), Ipo(IpoConfig(average=True))


def test_known_answers():
    assert loss_of(SUMS) == pytest.approx(12.25, abs=1e-10)
    assert loss_of(MEANS) == pytest.approx(22.4044444444, abs=1e-10)
    for method in (SUMS, MEANS):
        assert loss_of(method, at_reference()) == pytest.approx(25.0, abs=1e-10)


def test_gradient():
    """2 (h - 1/(2 beta)) grad h."""
    assert gradient_of(SUMS) == pytest.approx((-7.0, 7.0), abs=1e-10)
    slope = 2 * (1 / 6 + 0.1 - 5)
    assert gradient_of(MEANS) == pytest.approx((slope / 6, -slope / 5), abs=1e-10)


def test_the_two_forms_agree_on_single_tokens_only():
    chosen, rejected = random_sides()
    assert not torch.allclose(SUMS.losses(chosen, rejected), MEANS.losses(chosen, rejected))
    chosen.tokens.fill_(1), rejected.tokens.fill_(1)
    torch.testing.assert_close(SUMS.losses(chosen, rejected), MEANS.losses(chosen, rejected))


def test_a_constant_of_the_prompt_cancels_in_the_sums():
    moved = toy(W=-12 + 3.7, L=-15 + 3.7)
    assert loss_of(SUMS, moved) == pytest.approx(loss_of(SUMS), abs=1e-12)
    assert loss_of(MEANS, moved) != pytest.approx(loss_of(MEANS), abs=1e-3)


def test_it_is_0_at_a_finite_margin():
    """1/(2 beta); beyond it the margin is pulled back."""
    assert loss_of(SUMS, toy(W=-13 + 5.0, L=-14.5)) == 0
    dW, dL = gradient_of(SUMS, toy(W=-13 + 6.0, L=-14.5))
    assert dW > 0 > dL


def test_optimum_is_linear_in_the_preferences():
    """Over all pairs of A answers: log pi/ref = mean over the others of (p(y beats it) - 1/2) / beta, up to a constant.

    Which is the regression of the margins on (p - 1/2)/beta, and stays finite where p is 0 or 1.
    """
    reference = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64).log()
    reward = torch.tensor([0.0, 0.3, -0.4, 50.0, 0.1], dtype=torch.float64)
    wins = torch.sigmoid(reward[:, None] - reward).mean(1)
    expected = (reference + wins / 0.7).log_softmax(-1)
    found = optimum(Ipo(IpoConfig(beta=0.7)), reference, reward)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_is_logged_as_reward():
    chosen, rejected = toy()
    assert SUMS.rewards(chosen).item() == pytest.approx(0.1)
    assert MEANS.rewards(rejected).item() == pytest.approx(-0.01)


def test_beta_out_of_range():
    with pytest.raises(ValidationError):
        TypeAdapter(IpoConfig).validate_python({"beta": -1.0})
