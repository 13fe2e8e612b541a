"""DORPO: the worked pair, ORPO as the limit, and which pair gets which weight."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.forward import Forward
from methods.kinds.causal import Causal
from methods.preference.base import pairs
from methods.preference.deviation import deviations
from methods.preference.dorpo import Dorpo, DorpoConfig, dorpo_loss
from methods.preference.orpo import Orpo, OrpoConfig, log_odds_ratio
from tests.methods.preference.deviating import Context, example_pairs, vectors_of
from tests.methods.preference.toy_pair import random_sides
from tests.models import batches_of, tiny_llama

DOUBLE = torch.float64
# Mean log-probabilities of a pair in the wrong order.
CHOSEN, REJECTED = torch.tensor([-2.0], dtype=DOUBLE), torch.tensor([-1.5], dtype=DOUBLE)


@pytest.mark.parametrize(("delta", "loss"), [(0.5, 1.214097), (1.0, 2.260514), (1.5, 3.312176)])
def test_known_answers(delta, loss):
    assert log_odds_ratio(CHOSEN, REJECTED).item() == pytest.approx(-0.607069, abs=5e-7)
    found = dorpo_loss(CHOSEN, REJECTED, torch.tensor([delta], dtype=DOUBLE), 0.25)
    assert found.item() == pytest.approx(loss, abs=5e-7)


def test_the_weight_is_inside_the_sigmoid():
    """By the derivative: of the second term it is lambda delta sigmoid(-delta odds) times that of the odds."""
    rejected = REJECTED.clone().requires_grad_()
    odds = log_odds_ratio(CHOSEN, rejected)
    (slope,) = torch.autograd.grad(odds.sum(), rejected)
    for delta in (0.5, 2.0):
        loss = dorpo_loss(CHOSEN, rejected, torch.tensor([delta], dtype=DOUBLE), 0.25).sum()
        (gradient,) = torch.autograd.grad(loss, rejected)
        expected = -0.25 * delta * torch.sigmoid(-delta * odds.detach()) * slope
        torch.testing.assert_close(gradient, expected)


def test_weights_of_1_are_orpo():
    chosen, rejected = random_sides()
    found = Dorpo(DorpoConfig(embedding="ngrams")).weighted_losses(chosen, rejected, torch.ones(7, dtype=DOUBLE))
    assert torch.equal(found, Orpo(OrpoConfig(weight=0.25)).losses(chosen, rejected))


def test_a_weight_of_0_leaves_a_constant():
    rejected = torch.tensor([-1e4, -1.5, 0.0], requires_grad=True)
    chosen = torch.tensor([0.0, -2.0, -1e4], requires_grad=True)
    losses = dorpo_loss(chosen, rejected, torch.zeros(3), 0.25)
    torch.testing.assert_close(losses, torch.full((3,), 0.25 * 0.6931472))
    losses.sum().backward()
    assert not chosen.grad.any() and not rejected.grad.any()


def test_extremes():
    chosen = torch.tensor([0.0, -1e4, -1e4, -1e-9], requires_grad=True)
    rejected = torch.tensor([-1e4, 0.0, -1e4, -1e-9], requires_grad=True)
    losses = dorpo_loss(chosen, rejected, torch.full((4,), 2.0), 0.25)
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(chosen.grad).all() and torch.isfinite(rejected.grad).all()


@pytest.mark.parametrize("layout", [{"micro": 12}, {"micro": 1}])
def test_each_pair_gets_the_weight_of_its_chosen_response(layout):
    """No reference is asked for."""
    examples, _ = example_pairs()
    method = Dorpo(DorpoConfig(embedding="tests.methods.preference.deviating.vectors_of"))
    assert not method.referenced and method.frozen == ()
    report = method.prepare(Context(None))
    a, b, _ = deviations([vectors_of(["a", "b", "c"])])
    assert report["deviation/weight_mean"] == pytest.approx((a + 1 + b) / 3)
    delta = {0: a, 2: 1.0, 4: b}
    model = tiny_llama()
    for batch in batches_of(examples, batch_size=3, **layout).of_step(0):
        forward = Forward(Causal(), {"policy": model}, batch)
        chosen, rejected = pairs(method.responses(forward))
        of_pair = [delta[index] for index in batch.example_S.tolist() if index in delta]
        expected = dorpo_loss(chosen.mean_logps, rejected.mean_logps, torch.tensor(of_pair), 0.25).sum()
        found = method.loss(forward)
        assert found.sum.item() == pytest.approx(expected.item(), rel=1e-6)
        assert found.metrics["weight"].item() == pytest.approx(sum(of_pair))


def test_state_survives():
    method = Dorpo(DorpoConfig(embedding="tests.methods.preference.deviating.vectors_of"))
    report = method.prepare(Context(None))
    other = Dorpo(DorpoConfig(embedding="no.such.function"))
    other.load_state_dict(method.state_dict())
    assert other.prepare(Context(None)) == report


@pytest.mark.parametrize("wrong", [{"weight": -0.1}, {"weight_min": 2.0}, {"embedding": ""}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(DorpoConfig).validate_python(wrong)
