"""DPO: the worked pair, its gradient, symmetries, and the optimum of RLHF that it stands for."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.dpo import Dpo, DpoConfig, dpo_loss
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, optimum, random_sides, toy

DPO = Dpo(DpoConfig())


def test_known_answers():
    assert loss_of(DPO) == pytest.approx(0.6209570478, abs=1e-10)
    assert loss_of(DPO, at_reference()) == pytest.approx(math.log(2), abs=1e-12)
    assert loss_of(Dpo(DpoConfig(beta=1.0))) == pytest.approx(-math.log(1 / (1 + math.exp(-1.5))), abs=1e-12)


def test_gradient():
    """-beta sigmoid(-beta D) (grad W - grad L)."""
    assert gradient_of(DPO) == pytest.approx((-0.0462570155, 0.0462570155), abs=1e-10)


def test_swapping_the_responses_swaps_the_sign_of_the_margin():
    chosen, rejected = random_sides()
    margin = dpo_loss(rejected.log_ratio, chosen.log_ratio, 0.3) - dpo_loss(chosen.log_ratio, rejected.log_ratio, 0.3)
    torch.testing.assert_close(margin, 0.3 * (chosen.log_ratio - rejected.log_ratio))


def test_a_constant_of_the_prompt_cancels():
    assert loss_of(DPO, toy(W=-12 + 3.7, L=-15 + 3.7)) == pytest.approx(loss_of(DPO), abs=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_optimum_is_that_of_rlhf(beta):
    """With labels of Bradley and Terry: pi proportional to ref exp(r / beta)."""
    reference = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64).log()
    reward = torch.tensor([0.0, 0.3, -0.4, 0.8, 0.1], dtype=torch.float64)
    found = optimum(Dpo(DpoConfig(beta=beta)), reference, reward)
    torch.testing.assert_close(found, (reference + reward / beta).log_softmax(-1), rtol=0, atol=1e-5)


def test_what_is_logged():
    metrics = DPO.metrics(*toy())
    expected = {
        "reward_margin": 0.15, "reward_accuracy": 1, "chosen_logps": -12, "rejected_logps": -15,
        "chosen_log_ratio": 1, "rejected_log_ratio": -0.5,
    }  # fmt: skip
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected)


def test_beta_out_of_range():
    with pytest.raises(ValidationError):
        TypeAdapter(DpoConfig).validate_python({"beta": 0.0})
