"""BCO: the worked pair, and the running mean: what is in it, when, and that it survives."""

import math
from types import SimpleNamespace

import pytest
import torch

from methods.preference import bco
from methods.preference.bco import Bco, BcoConfig, bco_loss
from tests.methods.preference.toy_pair import at_reference, gradient_of, loss_of, random_sides, toy

ZERO = Bco(BcoConfig(beta=0.1, delta="zero"))


def running(**config):
    return Bco(BcoConfig(beta=0.1, **config))


def test_known_answers():
    assert loss_of(ZERO) == pytest.approx(1.3128563081, abs=1e-10)
    assert loss_of(ZERO, at_reference()) == pytest.approx(2 * math.log(2), abs=1e-12)
    assert gradient_of(ZERO) == pytest.approx((-0.0475020813, 0.0487502604), abs=1e-10)
    chosen, rejected = toy()
    assert bco_loss(chosen.log_ratio, rejected.log_ratio, 0.1, 0.025).item() == pytest.approx(1.3127002817, abs=1e-10)


def test_mean_is_that_of_the_steps_before():
    """The pair's mean reward is (0.1 - 0.05)/2 = 0.025; the first step is taken with 0."""
    method = running()
    assert loss_of(method) == pytest.approx(1.3128563081, abs=1e-10)
    assert method.delta == 0
    method.after_step(0)
    assert method.delta == pytest.approx(0.025, abs=1e-15)
    assert loss_of(method) == pytest.approx(1.3127002817, abs=1e-10)


def test_mean_is_over_all_responses_of_all_steps():
    method, rewards = running(), []
    for step, (count, seed) in enumerate([(3, 0), (7, 1), (2, 2)]):
        chosen, rejected = random_sides(count, seed)
        method.losses(chosen, rejected)
        method.after_step(step)
        rewards += [chosen.log_ratio, rejected.log_ratio]
        assert method.delta == pytest.approx(0.1 * torch.cat(rewards).mean().item(), abs=1e-12)


def test_micro_batches_change_nothing():
    chosen, rejected = random_sides()
    whole, split = running(), running()
    whole.losses(chosen, rejected)
    for part in (slice(0, 2), slice(2, 7)):
        split.losses(*(type(one)(one.logps[part], one.reference[part], one.tokens[part]) for one in (chosen, rejected)))
    for method in (whole, split):
        method.after_step(0)
    assert whole.delta == pytest.approx(split.delta, abs=1e-12) and whole.delta != 0


def test_no_gradient_flows_through_the_mean():
    """And what is only evaluated does not enter it."""
    method = running()
    gradient_of(method)
    with torch.no_grad():
        loss_of(method, toy(W=100.0))
    method.after_step(0)
    assert method.delta == pytest.approx(0.025, abs=1e-15)
    dW, dL = gradient_of(method)
    assert dW == pytest.approx(-0.1 / (1 + math.exp(0.1 - 0.025)), abs=1e-12)
    assert dL == pytest.approx(0.1 / (1 + math.exp(0.025 + 0.05)), abs=1e-12)


def test_mean_survives_a_restart(tmp_path):
    """Interrupted after two of four steps: bit for bit; through a file, as checkpoints are."""

    def train(method, steps):
        found = []
        for step in steps:
            found.append(method.losses(*random_sides(seed=step)))
            method.after_step(step)
        return found

    whole, first, second = running(), running(), running()
    expected = train(whole, range(4))
    train(first, range(2))
    torch.save(first.state_dict(), tmp_path / "method.pt")
    second.load_state_dict(torch.load(tmp_path / "method.pt", weights_only=True))
    for a, b in zip(train(second, range(2, 4)), expected[2:], strict=True):
        assert torch.equal(a, b)
    assert second.state_dict() == whole.state_dict()


def test_without_a_shift_nothing_is_kept():
    method = Bco(BcoConfig(beta=0.1, delta="zero"))
    loss_of(method)
    method.after_step(0)
    assert method.delta == 0


def test_what_is_logged():
    method = running()
    loss_of(method)
    method.after_step(0)
    assert method.metrics(*random_sides(4))["delta"].item() == pytest.approx(4 * 0.025)


@pytest.mark.parametrize("has_pairs", [True, False])
def test_processes_share_one_mean(monkeypatch, has_pairs):
    """As one of two: what both have seen is in it, also where this one had no pairs in the step."""
    others = [(0.3, 4), (0.1, 2)]  # sum and number of the rewards of the other's two micro-batches
    monkeypatch.setattr(bco, "Ranks", lambda: SimpleNamespace(exchange=lambda own: [own, others]))
    method = running()
    if has_pairs:
        loss_of(method)
    method.after_step(0)
    assert method.delta == pytest.approx((0.05 + 0.4) / 8 if has_pairs else 0.4 / 6, abs=1e-15)


def test_a_constant_of_the_prompt_does_not_cancel():
    assert loss_of(ZERO, toy(W=-12 + 3.7, L=-15 + 3.7)) != pytest.approx(loss_of(ZERO), abs=1e-3)
