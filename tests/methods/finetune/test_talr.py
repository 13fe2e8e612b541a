"""TALR: the known answers of its formulas, its limits, and DFT as its special case."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.batch import Batch
from methods.finetune.sft import Sft, SftConfig
from methods.finetune.talr import Talr, TalrConfig, median, talr_tau, talr_weights
from methods.forward import Forward
from methods.kinds.causal import Causal
from tests.models import batches_of, random_examples, tiny_llama

FOUR = [0.99, 0.9, 0.5, 0.05]
THREE = [[0.9, 0.8], [0.5, 0.5, 0.5], [0.99, 0.2, 0.9, 0.9]]
NO_FLOORS = {"w_min": 0.0, "p_min": 0.0}


def batch_of(counts, padding=0):
    """A batch of sequences with a prompt of one token and as many target tokens as said."""
    width = max(counts) + 1 + padding
    sequence_BT = torch.full((len(counts), width), -1)
    target_mask_BT = torch.zeros(len(counts), width, dtype=torch.bool)
    for row, count in enumerate(counts):
        sequence_BT[row, : count + 1] = row
        target_mask_BT[row, 1 : count + 1] = True
    return Batch(torch.ones_like(sequence_BT), None, target_mask_BT, sequence_BT, torch.arange(len(counts)))


def given(probabilities, padding=0):
    """What the objective sees of a model that gives these probabilities to the targets of each sequence."""
    flat = [p for sequence in probabilities for p in sequence]
    logps_K = torch.tensor(flat, dtype=torch.float64).log().requires_grad_()
    batch = batch_of([len(sequence) for sequence in probabilities], padding)
    return SimpleNamespace(batch=batch, token_logps=lambda: logps_K, logps_K=logps_K)


def mean_loss(forward, **config):
    method = Talr(TalrConfig(**config))
    return method.loss(forward).sum.item() / method.count(forward.batch)


def gradients(method, model, batches):
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = method.loss(Forward(Causal(), {"policy": model}, batch)).sum
        loss.backward()
        total += loss.item()
    return total, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("tau", "weights", "loss"),
    [
        (1.0, FOUR, 0.150284),
        (0.5, [0.9801, 0.81, 0.25, 0.0025], 0.068992),
        (2.0, [0.994987, 0.948683, 0.707107, 0.223607], 0.317487),
        (1e9, [1, 1, 1, 1], 0.951073),
    ],
)
def test_known_answers_at_fixed_temperatures(tau, weights, loss):
    forward = given([FOUR])
    found = talr_weights(forward.logps_K, tau, **NO_FLOORS)
    np.testing.assert_allclose(found, weights, atol=5e-7)
    assert mean_loss(forward, tau=tau, **NO_FLOORS) == pytest.approx(loss, abs=5e-7)


@pytest.mark.parametrize("w_min", [0.0, 0.01])
def test_known_answer_at_the_median_of_the_sequences(w_min):
    forward = given(THREE)
    tau = talr_tau(-forward.logps_K, forward.batch, "seq_median")
    assert float(tau) == pytest.approx(0.457552, abs=5e-7)
    weights = [0.794319, 0.614043, *[0.219830] * 3, 0.978274, 0.029674, 0.794319, 0.794319]
    np.testing.assert_allclose(talr_weights(forward.logps_K, tau, w_min, 1e-6), weights, atol=5e-7)
    assert mean_loss(forward, w_min=w_min) == pytest.approx(0.100311, abs=5e-7)


def test_floor_lifts_the_weights_below_it():
    weights = talr_weights(torch.tensor([0.9, 0.2, 1e-9]).log(), 0.457552, 0.05, 0.0)
    np.testing.assert_allclose(weights, [0.794319, 0.05, 0.05], atol=5e-7)


def test_probabilities_are_clamped_before_the_power():
    """At tau = 6 the smallest weight of p >= 1e-6 is 0.1, above the floor."""
    logps = torch.tensor([-100.0, math.log(1e-6)])
    np.testing.assert_allclose(talr_weights(logps, 6.0, 0.01, 1e-6), [0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(talr_weights(logps, 6.0, 0.0, 0.0), [math.exp(-100 / 6), 0.1], rtol=1e-6)


def test_median_is_the_mean_of_the_two_middle_values():
    """numpy's, not torch's lower one."""
    for values in ([3.0, 1.0, 2.0], [4.0, 1.0, 3.0, 2.0], [5.0]):
        assert float(median(torch.tensor(values))) == np.median(values)
    forward = given(THREE[:2])
    tau = talr_tau(-forward.logps_K, forward.batch, "seq_median")
    assert float(tau) == pytest.approx((0.164252 + 0.693147) / 2, abs=1e-6)


def test_median_of_tokens_and_a_number():
    forward = given(THREE)
    losses = -forward.logps_K
    assert float(talr_tau(losses, forward.batch, "token_median")) == np.median(losses.detach())
    assert float(talr_tau(losses, forward.batch, 3)) == 3.0


def test_temperature_has_a_lower_bound():
    fitted = given([[1.0, 1.0], [1.0]])
    for tau in ("seq_median", "token_median"):
        assert float(talr_tau(-fitted.logps_K, fitted.batch, tau)) == pytest.approx(1e-6)
    loss = Talr(TalrConfig()).loss(fitted).sum
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(fitted.logps_K.grad).all()
    with pytest.raises(ValidationError):
        TypeAdapter(TalrConfig).validate_python({"tau": 0.0})


@pytest.mark.parametrize("normalize", ["tokens", "weight_sum"])
@pytest.mark.parametrize("tau", ["seq_median", "token_median", 0.7])
def test_gradient_has_no_term_of_the_weights(tau, normalize):
    """That of the loss with w frozen, by finite differences; wrt a token's logits it is w (softmax - onehot) / n."""
    torch.manual_seed(0)
    batch = batch_of([2, 3, 1, 4])
    logits_KV = torch.randn(batch.target_count, 5, dtype=torch.float64, requires_grad=True)
    targets_K = torch.randint(5, (batch.target_count,))

    def logps(logits):
        return logits.log_softmax(-1).gather(1, targets_K[:, None])[:, 0]

    method = Talr(TalrConfig(tau=tau, normalize=normalize))
    (
        method.loss(SimpleNamespace(batch=batch, token_logps=lambda: logps(logits_KV))).sum / batch.target_count
    ).backward()
    with torch.no_grad():
        weights = talr_weights(logps(logits_KV), talr_tau(-logps(logits_KV), batch, tau), 0.01, 1e-6)
        weights /= batch.target_count if normalize == "tokens" else weights.sum()
        onehot = torch.nn.functional.one_hot(targets_K, 5)
        expected = weights[:, None] * (logits_KV.softmax(-1) - onehot)
        torch.testing.assert_close(logits_KV.grad, expected)
        for place in [(0, 0), (3, 2), (9, 4)]:
            ends = []
            for side in (1e-6, -1e-6):
                moved = logits_KV.clone()
                moved[place] += side
                ends.append(float((weights * -logps(moved)).sum()))
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(logits_KV.grad[place]), rel=1e-5, abs=1e-9)


def test_where_a_token_is_pushed_hardest():
    """w (1 - p) is largest at p = 1 / (1 + tau), w l at l = tau, where it is tau / e."""
    p = torch.linspace(1e-4, 1 - 1e-4, 100_001, dtype=torch.float64)
    for tau in (0.3, 1.0, 2.5):
        weights = talr_weights(p.log(), tau, **NO_FLOORS)
        assert float(p[(weights * (1 - p)).argmax()]) == pytest.approx(1 / (1 + tau), abs=1e-4)
        cap = weights * -p.log()
        assert float(-p.log()[cap.argmax()]) == pytest.approx(tau, abs=1e-3)
        assert float(cap.max()) == pytest.approx(tau / math.e, rel=1e-6)


def test_weights_solve_the_entropic_problem():
    """w / sum w minimises sum w l + tau sum w log w over the simplex; its value is -tau log sum exp(-l / tau)."""
    losses, tau = -np.log(FOUR), 0.7
    weights = talr_weights(-torch.from_numpy(losses), tau, **NO_FLOORS).numpy()

    def objective(w):
        return float((w * losses).sum() + tau * (w * np.log(w)).sum())

    best = objective(weights / weights.sum())
    assert best == pytest.approx(-tau * math.log(np.exp(-losses / tau).sum()), abs=1e-12)
    others = np.random.default_rng(0).dirichlet(np.ones(4), 500)
    assert all(objective(other) > best for other in others)


def test_padding_and_sequences_without_targets_change_nothing():
    plain, padded = given(THREE), given([THREE[0], [], THREE[1], [], [], THREE[2]], padding=5)
    for config in ({}, {"tau": "token_median"}, {"normalize": "weight_sum"}):
        assert mean_loss(padded, **config) == mean_loss(plain, **config)


@pytest.mark.parametrize("normalize", ["tokens", "weight_sum"])
@pytest.mark.parametrize("tau", ["seq_median", "token_median", 1.0])
def test_batch_without_targets_gives_zero_with_a_graph(tau, normalize):
    """And as many metrics as any other, all 0: another process may have targets."""
    (batch,) = batches_of(random_examples(3), batch_size=3).of_step(0)
    model, method = tiny_llama(), Talr(TalrConfig(tau=tau, normalize=normalize))
    full = method.loss(Forward(Causal(), {"policy": model}, batch))
    batch.target_mask_BT[:] = False
    loss = method.loss(Forward(Causal(), {"policy": model}, batch))
    assert loss.sum.item() == 0
    loss.sum.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    assert {name: float(value) for name, value in loss.metrics.items()} == dict.fromkeys(full.metrics, 0.0)


@pytest.mark.parametrize(
    "config", [{"w_min": 1.0}, {"tau": 1e30, "w_min": 0.0}, {"w_min": 1.0, "normalize": "weight_sum"}]
)
def test_limits_are_sft_bit_for_bit(config):
    batches = batches_of(random_examples(), micro=4).of_step(0)
    talr = gradients(Talr(TalrConfig(**config)), tiny_llama(), batches)
    sft = gradients(Sft(SftConfig()), tiny_llama(), batches)
    assert talr[0] == sft[0]
    assert all(torch.equal(a, b) for a, b in zip(talr[1], sft[1], strict=True))


def test_packing_changes_nothing_inside_a_micro_batch():
    examples = random_examples()
    method = Talr(TalrConfig())
    padded = gradients(method, tiny_llama(), batches_of(examples).of_step(0))
    packed = gradients(method, tiny_llama(), batches_of(examples, packing=True).of_step(0))
    assert packed[0] == pytest.approx(padded[0], rel=1e-5)
    for a, b in zip(packed[1], padded[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_micro_batch_is_the_scope_of_the_median():
    """Part of the run's identity therefore; with a number for tau it would change nothing."""
    examples = random_examples()
    assert Talr.couples == "micro-batch"
    whole, split = batches_of(examples).of_step(0), batches_of(examples, micro=3).of_step(0)
    for tau, alike in (("seq_median", False), (0.8, True)):
        method = Talr(TalrConfig(tau=tau))
        a, b = (gradients(method, tiny_llama(), batches)[0] for batches in (whole, split))
        assert (a == pytest.approx(b, rel=1e-5)) == alike


def test_sum_of_weights_gives_the_weighted_mean_of_each_micro_batch():
    """One micro-batch: sum w l / sum w. Several: the mean of theirs, by their tokens, when the loop has divided."""
    first, second = given(THREE), given([[0.3, 0.6], [0.7]])
    method = Talr(TalrConfig(normalize="weight_sum"))

    def weighted_mean(forward):
        losses = -forward.logps_K.detach()
        weights = talr_weights(-losses, talr_tau(losses, forward.batch, "seq_median"), 0.01, 1e-6)
        return float((weights * losses).sum() / weights.sum())

    assert mean_loss(first, normalize="weight_sum") == pytest.approx(weighted_mean(first), rel=1e-12)
    together = (method.loss(first).sum + method.loss(second).sum).item() / (9 + 3)
    assert together == pytest.approx((9 * weighted_mean(first) + 3 * weighted_mean(second)) / 12, rel=1e-12)


def test_weights_that_are_all_zero_give_no_nan():
    forward = given([[1e-9, 1e-8]])
    loss = Talr(TalrConfig(tau=1e-6, normalize="weight_sum", **NO_FLOORS)).loss(forward).sum
    loss.backward()
    assert loss.item() == 0 and not forward.logps_K.grad.any()


def test_tiny_probabilities_do_not_underflow():
    """exp(log p / tau) in logarithms: p = e^-200 is 0 in fp32, p^(1/100) is not."""
    assert float(talr_weights(torch.tensor([-200.0]), 100.0, **NO_FLOORS)) == pytest.approx(math.exp(-2), rel=1e-6)


def test_what_is_logged():
    forward = given(THREE)
    metrics = Talr(TalrConfig()).loss(forward).metrics
    mean = {name: float(value) / 9 for name, value in metrics.items()}
    assert mean["tau"] == pytest.approx(0.457552, abs=5e-7)
    assert mean["share_p_above_0.2"] == pytest.approx(8 / 9)  # p = 0.2 is not above it
    assert mean["weight"] == pytest.approx(
        (0.794319 + 0.614043 + 3 * 0.219830 + 0.978274 + 0.029674 + 2 * 0.794319) / 9
    )
    assert mean["unweighted_loss"] == pytest.approx(-np.log([p for row in THREE for p in row]).mean())
    assert not any(value.requires_grad for value in metrics.values())
