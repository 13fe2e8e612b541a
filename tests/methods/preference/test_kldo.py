"""KLDO: the worked batches, the divergence that its optimum is, its estimators, running means over a restart."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.kldo import Kldo, KldoConfig, hdo_losses, kldo_loss, log_mean_exp, log_term
from tests.methods.mix.fakes import byte_llama
from tests.methods.preference.given import (
    PreferenceContext,
    forward_of,
    given,
    grouped_texts,
    logps_by_hand,
    loss_and_gradient,
    micro_batches,
    started,
)

GOOD, BAD = torch.tensor([0.1, 0.3, -0.2]).double(), torch.tensor([-0.05, 0.4, 0.2, -0.1]).double()
# The same as rewards of a batch, at beta 0.1.
BATCH = {"logps": [1.0, 3.0, -2.0, -0.5, 4.0, 2.0, -1.0], "labels": [1.0] * 3 + [0.0] * 4, "sizes": [1] * 7}
ROWS = [("copy 12:", [" 12"]), ("sort 321:", [" 123"]), ("flip 7:", [" 7"]), ("name:", [" x"])]
LABELLED = grouped_texts(ROWS, [1.0, 0.0, 1.0, 0.0])


def method_of(**settings):
    return Kldo(KldoConfig(**settings))


def mean_loss(responses, **settings):
    loss, gradient = loss_and_gradient(method_of(**settings), responses)
    return loss / 7, [value / 7 for value in gradient]


# The loss -------------------------------------------------------------------------------------------------------------


def test_known_answers():
    assert kldo_loss(torch.tensor([0.1]), torch.tensor([-0.05])).item() == pytest.approx(-0.15, abs=1e-7)
    assert GOOD.mean().item() == pytest.approx(0.066667, abs=5e-7)
    assert log_term(BAD, "biased").item() == pytest.approx(0.133064, abs=5e-7)
    assert kldo_loss(GOOD, BAD).item() == pytest.approx(0.066398, abs=5e-7)
    assert kldo_loss(GOOD, BAD, "f_div").item() == pytest.approx(0.353571, abs=5e-7)


@pytest.mark.parametrize("estimator", ["biased", "ma"])
def test_known_answers_through_the_method(estimator):
    """In the first step the moving average is the batch's own mean, and its gradient softmax(r)."""
    loss, gradient = mean_loss(given(**BATCH), estimator=estimator)
    assert loss == pytest.approx(0.066398, abs=5e-7)
    assert gradient[:3] == pytest.approx([-0.1 / 3] * 3)
    assert gradient[3:] == pytest.approx(0.1 * np.array([0.208179, 0.326489, 0.267307, 0.198026]), abs=5e-8)


def test_f_div_through_the_method():
    loss, gradient = mean_loss(given(**BATCH), estimator="f_div")
    assert loss == pytest.approx(0.353571, abs=5e-7)
    assert gradient[3:] == pytest.approx((0.1 * (BAD - 1).exp() / 4).tolist())


def test_hellinger():
    """Both responses of the worked pair: 1.926539 together."""
    losses = hdo_losses(torch.tensor([0.1, -0.05]).double(), torch.tensor([True, False]))
    assert losses.sum().item() == pytest.approx(1.926539, abs=5e-7)
    loss, gradient = loss_and_gradient(method_of(divergence="hellinger"), given([1.0, -0.5], None, [1, 1], [1.0, 0.0]))
    assert loss == pytest.approx(1.926539, abs=5e-7)
    assert gradient == pytest.approx([-0.05 * math.exp(-0.05), 0.05 * math.exp(-0.025)])


def test_a_constant_cancels():
    for shift in (-3.0, 50.0):
        moved = kldo_loss(GOOD + shift, BAD + shift)
        torch.testing.assert_close(moved, kldo_loss(GOOD, BAD))
    assert abs(kldo_loss(GOOD + 1, BAD + 1, "f_div").item() - kldo_loss(GOOD, BAD, "f_div").item()) > 0.1


def test_at_the_reference_the_loss_is_0():
    for settings in ({"estimator": "biased"}, {"normalize": True}, {"shift": True}):
        assert mean_loss(given([-2.0] * 7, [-2.0] * 7, [1] * 7, BATCH["labels"]), **settings)[0] == pytest.approx(0)


def test_order_does_not_matter():
    order = [6, 2, 0, 5, 1, 4, 3]
    turned = given([BATCH["logps"][i] for i in order], None, [1] * 7, [BATCH["labels"][i] for i in order])
    assert mean_loss(turned)[0] == pytest.approx(mean_loss(given(**BATCH))[0], abs=1e-14)


def test_optimum_over_free_rewards_is_the_divergence():
    """D+ (1/2, 1/4, 1/4), D- (1/4, 1/4, 1/2): -KL(D+ || D-), at log(dD+/dD-) up to a constant."""
    plus, minus = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 2, 2])
    rewards = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([rewards], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = kldo_loss(rewards[plus], rewards[minus])
        loss.backward()
        return loss

    optimizer.step(closure)
    divergence = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert kldo_loss(rewards[plus], rewards[minus]).item() == pytest.approx(-divergence, abs=1e-9)
    expected = torch.tensor([2.0, 1.0, 0.5]).double().log()
    torch.testing.assert_close(rewards.detach() - rewards.detach()[1], expected, rtol=0, atol=1e-5)


def test_unbounded_below():
    """Where the two kinds can be told apart."""
    losses = [kldo_loss(torch.tensor([size]), torch.tensor([-size])).item() for size in (1.0, 100.0, 1e4)]
    assert losses == [-2.0, -200.0, -2e4]


def test_a_kind_that_the_batch_has_none_of():
    empty = BAD[:0]
    assert kldo_loss(GOOD, empty, "ma").item() == pytest.approx(-GOOD.mean().item())
    assert kldo_loss(empty, BAD).item() == pytest.approx(log_term(BAD, "biased").item())
    for labels in ([1.0] * 3, [0.0] * 3):
        method = method_of(normalize=True, shift=True)
        loss, gradient = loss_and_gradient(method, given([1.0, 2.0, 3.0], None, [1] * 3, labels))
        method.after_step(0)
        assert math.isfinite(loss) and np.isfinite(gradient).all()


@pytest.mark.parametrize(("settings", "expected"), [
    ({"estimator": "biased"}, 1.0), ({"estimator": "ma"}, 1.0), ({"estimator": "f_div"}, 1.0),
    ({"divergence": "hellinger"}, 1.0), ({"normalize": True}, 1.0), ({"shift": True}, 1.0),
])  # fmt: skip
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_log_ratios(size, settings, expected):
    method = method_of(**settings)
    for logps in ([0.1, -0.2, 0.3, 0.0], [size, -size, size, -size], [-size, size, 0.0, 0.0]):
        responses = given(logps, [0.0] * 4, [1] * 4, [1.0, 0.0, 0.0, 1.0], torch.float32)
        loss, gradient = loss_and_gradient(method, responses)
        method.after_step(0)
        assert math.isfinite(loss) and np.isfinite(np.square(np.float32(gradient)).sum(dtype=np.float32))


# Normalised -----------------------------------------------------------------------------------------------------------


def test_normalized_by_hand():
    """The log term 0.133064 is scaled to 0.066667, and its gradient with it; the factor has none."""
    responses = given(**BATCH)
    loss, gradient = mean_loss(responses, normalize=True, estimator="biased")
    factor = 0.066667 / 0.133064
    assert loss == pytest.approx(0.0, abs=1e-6)
    assert gradient[:3] == pytest.approx([-0.1 / 3] * 3)
    expected = 0.1 * factor * np.array([0.208179, 0.326489, 0.267307, 0.198026])
    assert gradient[3:] == pytest.approx(expected, abs=1e-6)


def test_normalized_leaves_a_small_log_term_alone():
    assert kldo_loss(GOOD + 1, BAD, normalize=True).item() == pytest.approx(kldo_loss(GOOD + 1, BAD).item(), abs=1e-8)


# Running means --------------------------------------------------------------------------------------------------------


def test_the_moving_average_by_hand():
    """m is 0.9 of the former and 0.1 of the batch's; the loss is the batch's own."""
    method = method_of(beta=1.0)
    first, second = [0.5, -1.0], [2.0, 0.0]
    for step, bad in enumerate((first, second)):
        loss, gradient = loss_and_gradient(method, given([0.0, *bad], None, [1] * 3, [1.0, 0.0, 0.0]))
        method.after_step(step)
    now, before = (np.exp(bad).mean() for bad in (second, first))
    assert loss / 3 == pytest.approx(math.log(now))
    m = 0.9 * before + 0.1 * now
    assert gradient[1:] == pytest.approx((3 * np.exp(second) / (2 * m)).tolist())
    assert method.state_dict()["log_mean"] == pytest.approx(math.log(m))


def test_the_shift_by_hand():
    """It cancels but in the weaker bound."""
    batches = ([0.5, -1.0, 2.0], [2.0, 0.0, 1.0])
    found = {}
    for estimator in ("biased", "ma", "f_div"):
        for shift in (False, True):
            method = method_of(beta=1.0, estimator=estimator, shift=shift)
            for step, logps in enumerate(batches):
                found[estimator, shift] = loss_and_gradient(method, given(logps, None, [1] * 3, [1.0, 0.0, 0.0]))
                method.after_step(step)
    for estimator in ("biased", "ma"):
        assert found[estimator, True][0] == pytest.approx(found[estimator, False][0])
        assert found[estimator, True][1] == pytest.approx(found[estimator, False][1])
    mean = 0.9 * 0.5 + 0.1 * 1.0
    expected = -(2.0 - mean) + (math.exp(-mean - 1) + math.exp(1 - mean - 1)) / 2
    assert found["f_div", True][0] / 3 == pytest.approx(expected)


def test_a_step_of_several_micro_batches_moves_the_means_once():
    """By all of them together, whatever their order."""
    parts = [([0.0, 0.5, -1.0], [1.0, 0.0, 0.0]), ([1.0, 2.0], [1.0, 0.0]), ([4.0], [1.0])]
    states = []
    for order in (parts, parts[::-1]):
        method = method_of(beta=1.0)
        for logps, labels in order:
            loss_and_gradient(method, given(logps, None, [1] * len(logps), labels))
        method.after_step(0)
        states.append(method.state_dict())
    assert states[0] == pytest.approx(states[1])
    assert states[0]["log_mean"] == pytest.approx(math.log((np.exp([0.5, -1.0]).mean() + math.exp(2)) / 2))
    assert states[0]["mean"] == pytest.approx((-0.5 / 3 + 1.5 + 4) / 3)


def test_running_means_survive_a_restart():
    steps = [[0.5, -1.0, 2.0], [2.0, 0.0, 1.0], [-3.0, 0.2, 0.1], [0.3, 0.4, 0.5]]

    def train(method, some):
        found = []
        for logps in some:
            found.append(loss_and_gradient(method, given(logps, None, [1] * 3, [1.0, 0.0, 0.0])))
            method.after_step(0)
        return found

    settings = {"estimator": "ma", "shift": True, "normalize": True}
    whole = train(method_of(**settings), steps)
    first, second = method_of(**settings), method_of(**settings)
    begun = train(first, steps[:2])
    second.load_state_dict(first.state_dict())
    assert begun + train(second, steps[2:]) == whole


def test_the_moving_average_does_not_leave_its_range():
    """The weights of the gradient sum to at most 10, however much the batch outdoes the mean."""
    method = method_of(beta=1.0)
    for step, bad in enumerate(([-1e4, -2e4], [1e4, 9e3])):
        _, gradient = loss_and_gradient(method, given([0.0, *bad], None, [1] * 3, [1.0, 0.0, 0.0], torch.float32))
        method.after_step(step)
    assert sum(gradient[1:]) / 3 == pytest.approx(10.0, rel=1e-3)


def test_log_mean_exp():
    torch.testing.assert_close(log_mean_exp(BAD), BAD.exp().mean().log())


# From texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True])
def test_one_sequence_at_a_time(packing):
    context = PreferenceContext(LABELLED, byte_llama(1), byte_llama(0))
    method = started(method_of(beta=0.3), context)
    (batch,) = micro_batches(context, packing=packing)
    assert method.count(batch) == 4 and Kldo.couples == "micro-batch"
    loss = method.loss(forward_of(method, context, batch))
    examples = context.examples
    rewards = []
    for index in range(4):
        words = examples.prompt(index).tolist(), examples.response(index).tolist()
        ratio = logps_by_hand(context, *words) - logps_by_hand(context, *words, role="reference")
        rewards.append(0.3 * ratio)
    expected = -(rewards[0] + rewards[2]) / 2 + math.log((math.exp(rewards[1]) + math.exp(rewards[3])) / 2)
    assert loss.sum.item() / 4 == pytest.approx(expected, rel=1e-4)
    assert loss.metrics["bad_reward"].item() / 4 == pytest.approx((rewards[1] + rewards[3]) / 2, rel=1e-4)


def test_pairs_are_taken_apart():
    pairs = grouped_texts([("copy 12:", [" 12", " 21"]), ("sort 321:", [" 123", " 3"])], [1.0, 0.0, 1.0, 0.0])
    context = PreferenceContext(pairs)
    started(method_of(), context)
    assert context.examples.groups.tolist() == [0, 1, 2, 3, 4]
    assert context.examples.labels.tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(("key", "value"), [
    ("beta", 0.0), ("estimator", "f-div"), ("divergence", "js"), ("normalize", "yes please"),
])  # fmt: skip
def test_out_of_range(key, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(KldoConfig).validate_python({key: value})
    assert caught.value.errors()[0]["loc"] == (key,)
