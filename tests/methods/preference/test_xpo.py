"""XPO and online DPO: the worked pair, the bonus on the reference's response alone, ties, whose responses they are."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.online_dpo import OnlineDpo, OnlineDpoConfig
from methods.preference.xpo import Xpo, XpoConfig, xpo_losses
from tests.methods.mix.fakes import byte_llama, encoded
from tests.methods.preference.given import (
    PreferenceContext,
    forward_of,
    given,
    logps_by_hand,
    loss_and_gradient,
    micro_batches,
    started,
)

COMPLETIONS = encoded([("copy 12:", " 12"), ("sort 321:", " 123"), ("flip 7:", " 7")])
REWARD = {"function": f"{__name__}.smallest_letter"}
# The policy's response and the reference's: log pi, log ref of the worked pair. The better one has the larger reward.
WON = {"logps": [-10.0, -12.0], "reference": [-11.0, -11.5], "sizes": [2], "labels": [1.0, 0.0]}
LOST = {"logps": [-12.0, -10.0], "reference": [-11.5, -11.0], "sizes": [2], "labels": [0.0, 1.0]}
ONE_EPOCH = {"batch_size": 3, "micro_batch_size": 3, "packing": False}


def smallest_letter(prompts, responses):
    """Some order of all texts."""
    return [-float(ord(min(response, default="~"))) for response in responses]


def without_metrics(method):
    """A method on given numbers, of whose tokens nothing can be said."""
    method.written_metrics = lambda responses: {}
    return method


def xpo(**settings):
    return without_metrics(Xpo(XpoConfig(reward=REWARD, **settings)))


def online_dpo(**settings):
    return without_metrics(OnlineDpo(OnlineDpoConfig(reward=REWARD, **settings)))


# The loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "responses", "expected"), [
    (0.01, WON, 0.500957), (0.01, LOST, 0.520957), (1e-5, WON, 0.620837), (1e-5, LOST, 0.620857), (0.0, WON, 0.620957),
])  # fmt: skip
def test_known_answers(alpha, responses, expected):
    """The reference's response lost, and won: its log-likelihood is added, -12 and -10."""
    loss, gradient = loss_and_gradient(xpo(alpha=alpha), given(**responses))
    assert loss == pytest.approx(expected, abs=5e-7)
    of_dpo = [-0.0462570155, 0.0462570155] if responses is WON else [0.0462570155, -0.0462570155]
    assert gradient == pytest.approx([of_dpo[0], of_dpo[1] + alpha], abs=1e-9), "the second is the reference's"


def test_ipo():
    loss, gradient = loss_and_gradient(xpo(alpha=0.0, loss="ipo"), given(**WON))
    assert loss == pytest.approx(12.25) and gradient == pytest.approx([-7.0, 7.0])


def test_an_independent_implementation():
    """Written in one line from the formula, over a batch with winners of both kinds."""
    generator = torch.Generator().manual_seed(0)
    logps = torch.randn(12, generator=generator, dtype=torch.float64, requires_grad=True)
    reference, scores = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    responses = given([0.0] * 12, reference.tolist(), [2] * 6, scores.tolist())
    vars(responses)["logps_K"] = logps
    loss = xpo(alpha=0.03, beta=0.7).loss_of(responses).sum
    expected = 0.0
    for policy, other in zip(range(0, 12, 2), range(1, 12, 2), strict=True):
        better, worse = (policy, other) if scores[policy] > scores[other] else (other, policy)
        margin = 0.7 * ((logps[better] - reference[better]) - (logps[worse] - reference[worse]))
        expected = expected + torch.log(1 + torch.exp(-margin)) + 0.03 * logps[other]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(one, logps)[0] for one in (loss, expected)))


def test_alpha_0_is_online_dpo():
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(3, 8, generator=generator).tolist()
    responses = [given(numbers[0], numbers[1], [2] * 4, numbers[2]) for _ in range(2)]
    assert loss_and_gradient(xpo(alpha=0.0), responses[0]) == loss_and_gradient(online_dpo(), responses[1])


@pytest.mark.parametrize(("ties", "preference"), [("skip", 0.0), ("first", 0.6209570478)])
def test_ties(ties, preference):
    """The pair says nothing, or the first is preferred; the bonus is there either way."""
    tied = {**WON, "labels": [0.5, 0.5]}
    loss, gradient = loss_and_gradient(xpo(alpha=0.01, ties=ties), given(**tied))
    assert loss == pytest.approx(preference - 0.12)
    assert gradient == pytest.approx([0.0, 0.01] if ties == "skip" else [-0.046257, 0.056257], abs=5e-7)
    metrics = xpo(ties=ties).loss_of(given(**tied)).metrics
    assert metrics["decided"].item() == (ties == "first")


def test_what_is_logged():
    both = given([*WON["logps"], *LOST["logps"]], [*WON["reference"], *LOST["reference"]], [2, 2], [1.0, 0.0, 0.0, 1.0])
    metrics = xpo().loss_of(both).metrics
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx({
        "decided": 2, "reward_margin": 0.3, "reward_accuracy": 2, "reference_sample_logps": -22,
    })  # fmt: skip


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_extreme_log_ratios(size, loss):
    responses = given([size, -size], [0.0, 0.0], [2], [1.0, 0.0], torch.float32)
    value, gradient = loss_and_gradient(xpo(loss=loss), responses)
    assert math.isfinite(value) and np.isfinite(gradient).all()


def test_the_bonus_is_unbounded_below():
    bonus = torch.tensor([-1e3, -1e6]).double()
    assert xpo_losses(torch.zeros(2), torch.zeros(2), bonus, 0.1, 1.0, "sigmoid").tolist() == [-1e3, -1e6]


# Rollout --------------------------------------------------------------------------------------------------------------


def running(class_, config, **models):
    context = PreferenceContext(COMPLETIONS, **models, training=ONE_EPOCH)
    method = started(class_(config(reward=REWARD, max_new_tokens=5, **models.pop("settings", {}))), context)
    (data,) = micro_batches(context)
    return method, context, data


@pytest.mark.parametrize(("class_", "config", "roles"), [
    (Xpo, XpoConfig, ["policy", "reference"]), (OnlineDpo, OnlineDpoConfig, ["policy", "policy"]),
])  # fmt: skip
def test_whose_responses_they_are(class_, config, roles):
    """Also where policy and reference are the same: two draws, not one twice."""
    method, context, data = running(class_, config, policy=byte_llama(0), reference=byte_llama(0))
    batch = method.rollout(data, 0)
    assert [asked.role for asked in context.sampled] == roles
    assert {asked.sampling.temperature for asked in context.sampled} == {1.0}
    first, second = (batch.input_ids_BT[side::2].tolist() for side in (0, 1))
    assert first != second and batch.group_S.tolist() == [0, 0, 1, 1, 2, 2]
    prompts = [context.examples.prompt(index).tolist() for index in data.example_S.tolist()]
    assert all(asked.prompts == prompts for asked in context.sampled)
    again = method.rollout(data, 0)
    assert again.input_ids_BT.tolist() == batch.input_ids_BT.tolist()
    assert method.rollout(data, 1).input_ids_BT.tolist() != batch.input_ids_BT.tolist()


def test_online_dpo_can_take_the_second_from_the_reference():
    context = PreferenceContext(COMPLETIONS)
    method = started(OnlineDpo(OnlineDpoConfig(reward=REWARD, second="reference", max_new_tokens=4)), context)
    method.rollout(micro_batches(context)[0], 0)
    assert [asked.role for asked in context.sampled] == ["policy", "reference"]


def test_a_step_one_sequence_at_a_time():
    method, context, data = running(Xpo, XpoConfig, policy=byte_llama(1), reference=byte_llama(0))
    batch = method.rollout(data, 0)
    loss = method.loss(forward_of(method, context, batch))
    expected, rows = 0.0, []
    for row in range(6):
        own = batch.sequence_BT == row
        tokens, target = batch.input_ids_BT[own], batch.target_mask_BT[own]
        words = tokens[~target].tolist(), tokens[target].tolist()
        logps = logps_by_hand(context, *words)
        rows.append((logps, logps - logps_by_hand(context, *words, role="reference"), float(batch.label_S[row])))
    for policy, other in zip(rows[0::2], rows[1::2], strict=True):
        margin = 0.1 * (policy[1] - other[1]) * (1 if policy[2] > other[2] else -1)
        expected += (math.log1p(math.exp(-margin)) if policy[2] != other[2] else 0.0) + 1e-5 * other[0]
    assert loss.sum.item() == pytest.approx(expected, rel=1e-4)
    assert any(first[2] != second[2] for first, second in zip(rows[0::2], rows[1::2], strict=True))
    loss.sum.backward()
    assert any(parameter.grad.abs().max() > 1e-5 for parameter in context.model.parameters())


def test_alpha_of_each_epoch():
    context = PreferenceContext(COMPLETIONS, training={**ONE_EPOCH, "batch_size": 2})
    method = started(Xpo(XpoConfig(reward=REWARD, alpha=[0.3, 0.2], max_new_tokens=2)), context)
    (data,) = micro_batches(context)
    found = []
    for step in range(5):
        method.rollout(data, step)
        found.append(method.alpha_now())
    assert found == [0.3, 0.3, 0.2, 0.2, 0.2]


def test_online_dpo_finds_what_is_rewarded():
    """Some steps with a reward for one letter: it is written more often."""
    prompts = encoded([(f"{word} {number}:", " 1") for word in ("copy", "flip") for number in range(8)])
    context = PreferenceContext(prompts, byte_llama(0), byte_llama(0))
    method = started(OnlineDpo(OnlineDpoConfig(reward={"function": f"{__name__}.letters"}, max_new_tokens=2)), context)
    (data,) = micro_batches(context)
    optimizer = torch.optim.Adam(context.model.parameters(), lr=2e-2)
    rewards = []
    for step in range(16):
        batch = method.rollout(data, step)
        rewards.append(batch.label_S.mean().item())
        loss = method.loss(forward_of(method, context, batch)).sum / 16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.2


def letters(prompts, responses):
    """The share of lower-case letters."""
    return [sum(letter.islower() for letter in response) / max(len(response), 1) for response in responses]


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), [("alpha", -1e-5), ("alpha", [1e-5, -1.0]), ("alpha", "small")])
def test_out_of_range(key, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(XpoConfig).validate_python({"reward": REWARD, key: value})
    assert caught.value.errors()[0]["loc"][0] == key


def test_no_alpha_at_all():
    with pytest.raises(ValueError, match=r"^method\.alpha=\[\]: must be a number, or a list of one or more$"):
        XpoConfig(reward=REWARD, alpha=[])
