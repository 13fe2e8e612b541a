"""FLOW: the known answers of the paper's formulas, and its limits."""

import math

import numpy as np
import pytest
import torch

from methods.finetune.flow import Flow, FlowConfig, flow_temperature, flow_weights
from methods.finetune.sft import Sft, SftConfig
from methods.kinds import Causal
from tests.models import batches_of, random_examples, tiny_llama

LOSSES = np.array([0.2, 0.5, 1.0, 2.0])


def built(method_type, config, weights=None):
    method = method_type(config)
    method.kind = Causal()
    if weights is not None:
        method.weights_n = torch.tensor(weights, dtype=torch.float64)
    return method


def gradients(method, model, batches):
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = method.loss({"policy": model}, batch).sum
        loss.backward()
        total += loss.item()
    return total, [parameter.grad.clone() for parameter in model.parameters()]


def test_known_answers():
    """Worked by hand: median of an even count is the mean of the two middle values."""
    temperature = flow_temperature(LOSSES)
    assert temperature == 0.75
    np.testing.assert_allclose(flow_weights(LOSSES, temperature), [0.765928, 0.513417, 0.263597, 0.069483], atol=5e-7)


def test_weights_solve_the_entropic_problem():
    """pi* = w / sum w minimises sum pi f + tau sum pi log pi over the simplex; its value is -tau log Z."""
    tau = flow_temperature(LOSSES)
    weights = flow_weights(LOSSES, tau)
    pi = weights / weights.sum()
    np.testing.assert_allclose(pi, [0.475016, 0.318413, 0.163479, 0.043092], atol=5e-7)

    def objective(p):
        return float((p * LOSSES).sum() + tau * (p * np.log(p)).sum())

    assert objective(pi) == pytest.approx(-tau * math.log(weights.sum()), abs=1e-12)
    assert objective(pi) == pytest.approx(-0.358305, abs=5e-7)
    generator = np.random.default_rng(0)
    assert all(objective(other) > objective(pi) for other in generator.dirichlet(np.ones(4), 500))


def test_weight_at_the_temperature_at_zero_and_in_between():
    weights = flow_weights(np.array([0.0, 0.3, 0.7, 1.4]), 0.7)
    assert weights[0] == 1.0
    assert weights[2] == pytest.approx(math.exp(-1))
    assert (np.diff(weights) < 0).all() and (weights > 0).all()


def test_scale_free_but_not_shift_free():
    def weights(losses):
        return flow_weights(losses, flow_temperature(losses))

    np.testing.assert_allclose(weights(3.7 * LOSSES), weights(LOSSES), rtol=1e-12)
    assert not np.allclose(weights(LOSSES + 0.5), weights(LOSSES))


def test_a_sample_without_targets_weighs_nothing():
    losses = np.array([np.nan, 1.0, 2.0])
    assert flow_temperature(losses) == 1.5
    assert flow_weights(losses, 1.5)[0] == 0.0


@pytest.mark.parametrize("losses", [[math.inf, 1.0], [-1.0, 1.0], [np.nan, np.nan], []])
def test_losses_that_make_no_sense_are_refused(losses):
    with pytest.raises(ValueError, match="losses must be finite"):
        flow_temperature(np.array(losses))


def test_a_median_of_zero_is_refused():
    with pytest.raises(ValueError, match="median loss must be > 0"):
        flow_temperature(np.array([0.0, 0.0, 0.0, 2.0]))


def test_infinite_temperature_is_sft():
    examples = random_examples()
    batches = batches_of(examples).of_step(0)
    weights = flow_weights(np.linspace(0.1, 3, len(examples)), math.inf)
    flow = gradients(built(Flow, FlowConfig(), weights), tiny_llama(), batches)
    sft = gradients(built(Sft, SftConfig()), tiny_llama(), batches)
    assert flow[0] == sft[0]
    assert all(torch.equal(a, b) for a, b in zip(flow[1], sft[1], strict=True))


def test_equal_losses_scale_sft_by_exp_minus_one():
    examples = random_examples()
    batches = batches_of(examples).of_step(0)
    losses = np.full(len(examples), 0.8)
    weights = flow_weights(losses, flow_temperature(losses))
    flow = gradients(built(Flow, FlowConfig(), weights), tiny_llama(), batches)
    sft = gradients(built(Sft, SftConfig()), tiny_llama(), batches)
    assert flow[0] == pytest.approx(math.exp(-1) * sft[0], rel=1e-5)
    for a, b in zip(flow[1], sft[1], strict=True):
        torch.testing.assert_close(a, math.exp(-1) * b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("micro", "packing"), [(3, False), (1, False), (4, True)])
def test_layout_changes_nothing(micro, packing):
    examples = random_examples()
    weights = np.linspace(0.05, 1, len(examples))
    method = built(Flow, FlowConfig(), weights)
    whole = gradients(method, tiny_llama(), batches_of(examples).of_step(0))
    other = gradients(method, tiny_llama(), batches_of(examples, micro=micro, packing=packing).of_step(0))
    assert other[0] == pytest.approx(whole[0], rel=1e-5)
    for a, b in zip(other[1], whole[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_gradient_with_respect_to_logits():
    """w_i (softmax - onehot), and nothing flows through w."""

    class Logits(torch.nn.Module):
        """A 'model' whose logits are its parameters."""

        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(1, 6, 5, dtype=torch.float32))
            self.head = torch.nn.Identity()

        def get_output_embeddings(self):
            return self.head

        def forward(self, input_ids, position_ids=None, use_cache=None):
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.head(self.table))

    from methods.batch import Batch

    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, 3, 4, 0, 1]])
    mask = torch.tensor([[False, False, True, True, True, True]])
    batch = Batch(ids, None, mask, torch.zeros_like(ids), torch.tensor([1]))
    model = Logits()
    method = built(Flow, FlowConfig(), [0.9, 0.25])
    loss = method.loss({"policy": model}, batch)
    assert loss.sum.requires_grad and not method.weights_n.requires_grad
    loss.sum.backward()
    expected = torch.zeros_like(model.table)
    probabilities = model.table.detach().softmax(-1)
    for place in range(2, 6):
        onehot = torch.nn.functional.one_hot(ids[0, place], 5)
        expected[0, place - 1] = 0.25 * (probabilities[0, place - 1] - onehot)
    torch.testing.assert_close(model.table.grad, expected)


class OneProcess:
    """The part of a run's context that `prepare` uses."""

    def __init__(self, model, examples, micro):
        self.model, self.kind, self.examples = model, Causal(), len(examples)
        self._batches = batches_of(examples, micro=micro)

    def role(self, name):
        assert name == "policy"
        return self.model

    def batches(self, description):
        return self._batches.in_order()


def test_prepare_measures_mean_losses_whatever_the_batching():
    examples, model = random_examples(), tiny_llama()
    found = []
    for micro in (1, 5, 12):
        method = built(Flow, FlowConfig())
        report = method.prepare(OneProcess(model, examples, micro))
        found.append(method.weights_n)
        assert model.training, "the model comes back in training mode"
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)
    losses = -report["flow/temperature"] * np.log(found[0].numpy())
    ids = torch.from_numpy(examples.sequence(0)).long()[None]
    begin = int(examples.targets[0])
    labels = ids.clone()
    labels[:, :begin] = -100
    assert losses[0] == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-4)
    assert report["flow/temperature"] == pytest.approx(np.median(losses), rel=1e-9)


def test_normalized_weights_have_mean_one_and_explicit_temperature_is_used():
    method = built(Flow, FlowConfig(temperature=2.5, normalize=True))
    report = method.prepare(OneProcess(tiny_llama(), random_examples(), 12))
    assert report["flow/temperature"] == 2.5
    assert report["flow/weight_mean"] == pytest.approx(1.0)


def test_state_survives_and_is_not_measured_again():
    examples = random_examples()
    first = built(Flow, FlowConfig())
    first.prepare(OneProcess(tiny_llama(), examples, 12))
    second = built(Flow, FlowConfig())
    second.load_state_dict(first.state_dict())
    second.prepare(OneProcess(None, examples, 12))  # no model: nothing may be measured
    assert torch.equal(second.weights_n, first.weights_n)


@pytest.mark.parametrize(("beta", "rho"), [(0.5, 0.5), (0.2, 0.8), (1.0, 0.3)])
def test_linear_theory(beta, rho):
    """Gradient descent on the exact population loss of the linear model follows the paper's closed form."""
    tau = 2 * beta * (1 - rho**2) / (1 - beta**2 * rho**2)
    mu = math.sqrt(tau / (tau + 2))
    assert mu**2 == pytest.approx(beta * (1 - rho**2) / ((1 + beta) * (1 - beta * rho**2)))
    q = np.array([[1 - mu**2, -rho * mu**2], [-rho * mu**2, rho**2 * (1 - mu**2)]])
    first = (1 + beta * rho**2) / (1 + beta)
    second = rho**2 * (1 - beta) / (1 - beta * rho**2)
    np.testing.assert_allclose(sorted(np.linalg.eigvalsh(q)), sorted([first, second]), atol=1e-12)
    place = np.array([1.0, 0.0])
    for step in range(1, 21):
        place = q @ place
        closed = np.array([first**step + second**step * beta**2 * rho**2, -beta * rho * (first**step - second**step)])
        np.testing.assert_allclose(place, closed / (1 + beta**2 * rho**2), atol=1e-12)
    if (beta, rho) == (0.5, 0.5):
        assert tau == pytest.approx(0.8)
        np.testing.assert_allclose(place, [0.002985, -0.000746], atol=1e-6)


def test_linear_theory_weighted_covariance_by_sampling():
    """E[w x x^T] = mu (I - Q) with w from `flow_weights` itself."""
    generator = np.random.default_rng(0)
    rho, tau, mu = 0.5, 0.8, 0.534522
    covariance = np.array([[1, rho, 0], [rho, 1, 0], [0, 0, 1.0]])
    x = generator.multivariate_normal(np.zeros(3), covariance, 400_000)
    w = flow_weights(x[:, 0] ** 2, tau)  # e = (1, 0, 0): the residual of theta_p is x_1
    measured = (w[:, None, None] * x[:, :, None] * x[:, None, :]).mean(0)
    expected = np.array([[0.1527, 0.0764, 0], [0.0764, 0.4391, 0], [0, 0, 0.5345]])
    np.testing.assert_allclose(measured, expected, atol=4e-3)
    assert w.mean() == pytest.approx(mu, abs=2e-3)
