"""FLOW: the known answers of the paper's formulas, and its limits."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from methods.batch import Batch, place_in_sequence
from methods.examples import Examples
from methods.finetune.flow import Flow, FlowConfig, check_losses, flow_temperature, flow_weights
from methods.finetune.sft import Sft, SftConfig
from methods.forward import Forward
from methods.kinds.causal import Causal, frozen
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
        loss = method.loss(Forward(Causal(), {"policy": model}, batch)).sum
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


@pytest.mark.parametrize("loss", [math.inf, math.nan, -0.5])
def test_a_loss_that_makes_no_sense_is_refused_with_its_example(loss):
    with pytest.raises(ValueError, match=r"must be finite and not negative, got .* for example 7 and 1 more"):
        check_losses(np.array([0.5, loss, 0.2, loss]), np.array([6, 7, 8, 9]))


@pytest.mark.parametrize("losses", [[np.nan, np.nan], []])
def test_no_loss_at_all_is_refused(losses):
    with pytest.raises(ValueError, match=r"method.temperature=median: must have a loss"):
        flow_temperature(np.array(losses))


def test_a_median_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"median loss must be > 0, got 0.0; give a number"):
        flow_temperature(np.array([0.0, 0.0, 0.0, 2.0]))


@pytest.mark.parametrize("losses", [[0.8] * 5, [0.8, 0.8000001, 0.7999999], [0.8]])
def test_equal_losses_are_refused_with_the_way_out(losses):
    with pytest.raises(ValueError, match=r"losses must differ, got 0.8 for all \d; .*; give a number"):
        flow_temperature(np.array(losses))


def test_losses_that_differ_little_are_not_equal():
    assert flow_temperature(np.array([0.8, 0.801])) == pytest.approx(0.8005)


@pytest.mark.parametrize("temperature", [1e30, math.inf])
def test_infinite_temperature_is_sft(temperature):
    """Bit for bit."""
    examples = random_examples()
    batches = batches_of(examples).of_step(0)
    weights = flow_weights(np.linspace(0.1, 3, len(examples)), temperature)
    flow = gradients(built(Flow, FlowConfig(), weights), tiny_llama(), batches)
    sft = gradients(built(Sft, SftConfig()), tiny_llama(), batches)
    assert flow[0] == sft[0]
    assert all(torch.equal(a, b) for a, b in zip(flow[1], sft[1], strict=True))


def test_equal_losses_scale_sft_by_exp_minus_one():
    examples = random_examples()
    batches = batches_of(examples).of_step(0)
    weights = flow_weights(np.full(len(examples), 0.8), 0.8)
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
            return SimpleNamespace(logits=self.head(self.table))

    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, 3, 4, 0, 1]])
    mask = torch.tensor([[False, False, True, True, True, True]])
    batch = Batch(ids, None, mask, torch.zeros_like(ids), torch.tensor([1]))
    model = Logits()
    method = built(Flow, FlowConfig(), [0.9, 0.25])
    loss = method.loss(Forward(Causal(), {"policy": model}, batch))
    assert loss.sum.requires_grad and not method.weights_n.requires_grad
    loss.sum.backward()
    expected = torch.zeros_like(model.table)
    probabilities = model.table.detach().softmax(-1)
    for place in range(2, 6):
        onehot = torch.nn.functional.one_hot(ids[0, place], 5)
        expected[0, place - 1] = 0.25 * (probabilities[0, place - 1] - onehot)
    torch.testing.assert_close(model.table.grad, expected)


class OneProcess:
    """The part of a run's context that `prepare` uses: `measure` as `Context` describes it."""

    def __init__(self, model, examples, micro=12):
        self.model, self.examples, self.micro = model, examples, micro

    def measure(self, what, values, per="example"):
        found = {}
        with frozen(self.model):
            for batch in batches_of(self.examples, micro=self.micro).once():
                for example, value in self._of(batch, values(self.model, batch), per):
                    found[example] = value
        return np.concatenate([found[example] for example in range(len(self.examples))])

    def _of(self, batch, measured, per):
        owner = batch.example_S if per == "example" else batch.example_K
        for example in batch.example_S.tolist():
            yield example, measured[owner == example].double().numpy()


class Given:
    """A context whose base losses are given."""

    def __init__(self, losses, counts):
        lengths = np.array(counts) + 2  # two tokens of each prompt
        self.examples = Examples.of([[1] * length for length in lengths], [2] * len(lengths))
        self.losses = np.array(losses, dtype=np.float64)

    def measure(self, what, values, per="example"):
        return self.losses


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
    report = method.prepare(OneProcess(tiny_llama(), random_examples()))
    assert report["flow/temperature"] == 2.5
    assert report["flow/weight_mean"] == pytest.approx(1.0)


def test_a_sample_without_targets_counts_neither_for_the_median_nor_for_the_mean():
    method = built(Flow, FlowConfig(normalize=True))
    report = method.prepare(Given([0.5, math.nan, 1.0, 2.0], [3, 0, 2, 2]))
    assert report["flow/temperature"] == 1.0
    assert method.weights_n[1] == 0
    assert method.weights_n[[0, 2, 3]].mean() == pytest.approx(1.0)


def test_nan_of_a_sample_with_targets_is_refused():
    with pytest.raises(ValueError, match=r"got nan for example 2$"):
        built(Flow, FlowConfig()).prepare(Given([0.5, math.nan, math.nan, 2.0], [3, 0, 2, 2]))


def test_infinite_loss_is_refused_also_with_a_temperature_of_ones_own():
    with pytest.raises(ValueError, match=r"got inf for example 1$"):
        built(Flow, FlowConfig(temperature=1.0)).prepare(Given([0.5, math.inf, 1.0], [1, 1, 1]))


def test_infinite_loss_of_a_token_names_its_example():
    method = built(Flow, FlowConfig(granularity="token"))
    with pytest.raises(ValueError, match=r"got inf for example 2$"):
        method.prepare(Given([0.5, 0.1, 1.0, math.inf], [2, 0, 2]))


def test_equal_losses_pass_with_a_temperature_of_ones_own():
    method = built(Flow, FlowConfig(temperature=0.8))
    assert method.prepare(Given([0.8, 0.8], [1, 1]))["flow/weight_mean"] == pytest.approx(math.exp(-1))


def test_a_temperature_at_which_every_weight_is_zero_is_refused():
    with pytest.raises(ValueError, match=r"method.temperature=0.0001: must be large enough .* loss is 0.5"):
        built(Flow, FlowConfig(temperature=1e-4)).prepare(Given([0.5, 0.7], [1, 1]))


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_state_survives_and_is_not_measured_again(granularity):
    examples = random_examples()
    config = FlowConfig(granularity=granularity)
    first, second = built(Flow, config), built(Flow, config)
    report = first.prepare(OneProcess(tiny_llama(), examples))
    second.load_state_dict(first.state_dict())
    assert second.prepare(OneProcess(None, examples)) == report  # no model: nothing may be measured
    assert torch.equal(second.weights_n, first.weights_n)
    (batch,) = batches_of(examples).of_step(0)
    losses = [method.loss(Forward(Causal(), {"policy": tiny_llama()}, batch)).sum for method in (first, second)]
    assert torch.equal(*losses)


# Token-wise --------------------------------------------------------------------------------------------------


def test_token_wise_known_answer():
    """w = exp(-nll / tau) of each token, tau the median of all four: 0.75."""
    method = built(Flow, FlowConfig(granularity="token"))
    report = method.prepare(Given([0.2, 0.5, 1.0, 2.0], [1, 0, 3]))
    assert report["flow/temperature"] == 0.75
    np.testing.assert_allclose(method.weights_n, [0.765928, 0.513417, 0.263597, 0.069483], atol=5e-7)


@pytest.mark.parametrize(
    ("mask", "sequences", "places"),
    [
        # two rows, padded; the second sequence has no target
        ([[0, 1, 1, 1], [0, 0, 0, 0]], [[0, 0, 0, 0], [1, 1, -1, -1]], [0, 1, 2]),
        # two sequences in a row, then one
        ([[0, 1, 1, 0, 1], [0, 0, 1, 1, 0]], [[0, 0, 0, 1, 1], [2, 2, 2, 2, -1]], [0, 1, 0, 0, 1]),
        # sequences numbered in another order than they lie, one with a hole in its targets
        ([[0, 1, 0, 1], [0, 1, 0, 1]], [[2, 2, 0, 0], [1, 1, 1, 1]], [0, 0, 0, 1]),
        ([[0, 0, 0]], [[0, 0, -1]], []),
    ],
)
def test_place_in_sequence(mask, sequences, places):
    sequence_BT = torch.tensor(sequences)
    batch = Batch(torch.zeros_like(sequence_BT), None, torch.tensor(mask).bool(), sequence_BT, torch.tensor([4, 9, 1]))
    assert place_in_sequence(batch).tolist() == places


@pytest.mark.parametrize(("micro", "packing"), [(12, False), (3, False), (1, False), (4, True), (12, True)])
def test_every_token_gets_its_own_weight_whatever_the_layout(micro, packing):
    """The loss is sum over tokens of exp(-base loss / tau) times the loss: here the base model is the model itself."""
    examples, model = random_examples(), tiny_llama()
    method = built(Flow, FlowConfig(granularity="token"))
    tau = method.prepare(OneProcess(model, examples))["flow/temperature"]
    expected, base = 0.0, []
    for index in range(len(examples)):
        ids = torch.from_numpy(examples.sequence(index)).long()
        logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        begin = int(examples.targets[index])
        nll = -logps[begin - 1 : -1].gather(1, ids[begin:, None])[:, 0].detach().double()
        expected += float((torch.exp(-nll / tau) * nll).sum())
        base.append(nll.numpy())
    assert tau == pytest.approx(np.median(np.concatenate(base)), rel=1e-5)
    batches = batches_of(examples, micro=micro, packing=packing).of_step(0)
    assert not packing or max(len(batch.example_S) / len(batch.input_ids_BT) for batch in batches) > 1
    total, _ = gradients(method, model, batches)
    assert total == pytest.approx(expected, rel=1e-4)


def test_token_wise_with_one_token_each_is_sample_wise():
    examples = random_examples(8)
    single = Examples(examples.tokens, examples.starts, examples.lengths - 1)
    found = []
    for granularity in ("sequence", "token"):
        method = built(Flow, FlowConfig(granularity=granularity))
        method.prepare(OneProcess(tiny_llama(), single))
        found.append(gradients(method, tiny_llama(), batches_of(single, batch_size=8).of_step(0)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)


# Numbers of the paper ----------------------------------------------------------------------------------------


def test_arithmetic_of_the_published_gaps():
    gaps = {"commonsense": 2.52, "mmlu": 3.73, "mbpp": 10.00, "gsm8k": -0.83}
    general = [gaps[column] for column in ("commonsense", "mmlu", "mbpp")]
    assert np.mean(general) == pytest.approx(5.417, abs=5e-4)
    assert np.mean(list(gaps.values())) == pytest.approx(3.855, abs=5e-4)


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


RHO, TAU, MU = 0.5, 0.8, math.sqrt(2 / 7)  # the numbers of beta = 0.5, rho = 0.5, |e| = 1
Q = np.array([[1 - MU**2, -RHO * MU**2], [-RHO * MU**2, RHO**2 * (1 - MU**2)]])


def test_linear_theory_in_numbers():
    assert MU == pytest.approx(math.sqrt(TAU / (TAU + 2))) == pytest.approx(0.534522, abs=5e-7)
    np.testing.assert_allclose(sorted(np.linalg.eigvalsh(Q)), [0.142857, 0.75], atol=5e-7)
    start = np.array([1.0, 0.0])
    for steps, expected in {1: (0.714286, -0.142857), 5: (0.223349, -0.055822), 20: (0.002985, -0.000746)}.items():
        np.testing.assert_allclose(np.linalg.matrix_power(Q, steps) @ start, expected, atol=5e-7)
    vanilla = -RHO * np.array([[0, 1], [1, 0]])
    np.testing.assert_allclose(np.linalg.matrix_power(vanilla, 5) @ start, [0, -0.03125], atol=1e-12)
    np.testing.assert_allclose(MU * (np.eye(2) - Q), [[0.1527, 0.0764], [0.0764, 0.4391]], atol=5e-5)


def test_linear_theory_best_errors():
    """With Sigma = I: 1 at both ends, 0.5 for the best average, 0.4667 for the best FLOW (beta = 0.5 after 2 steps)."""
    s = np.array([[1, RHO], [RHO, 1]])

    def error(off):  # off = theta - theta_f; theta_p is at e = (1, 0)
        return float((off - [1, 0]) @ (off - [1, 0]) + off @ s @ off)

    assert error(np.array([1.0, 0.0])) == error(np.zeros(2)) == 1.0
    assert min(error(np.array([omega, 0.0])) for omega in np.linspace(0, 1, 1001)) == pytest.approx(0.5)
    best = (math.inf, 0.0, 0)
    for beta in np.arange(1, 101) / 100:
        mu2 = beta * (1 - RHO**2) / ((1 + beta) * (1 - beta * RHO**2))
        q = np.array([[1 - mu2, -RHO * mu2], [-RHO * mu2, RHO**2 * (1 - mu2)]])
        off = np.array([1.0, 0.0])
        for step in range(1, 200):
            off = q @ off
            best = min(best, (error(off), float(beta), step))
    assert best[0] == pytest.approx(0.4667, abs=5e-5)
    assert best[1:] == (0.5, 2)


def test_linear_theory_weighted_covariance_by_sampling():
    """E[w x x^T] = mu (I - Q) with w from `flow_weights` itself."""
    generator = np.random.default_rng(0)
    covariance = np.array([[1, RHO, 0], [RHO, 1, 0], [0, 0, 1.0]])
    x = generator.multivariate_normal(np.zeros(3), covariance, 400_000)
    w = flow_weights(x[:, 0] ** 2, TAU)  # e = (1, 0, 0): the residual of theta_p is x_1
    measured = (w[:, None, None] * x[:, :, None] * x[:, None, :]).mean(0)
    expected = np.array([[0.1527, 0.0764, 0], [0.0764, 0.4391, 0], [0, 0, 0.5345]])
    np.testing.assert_allclose(measured, expected, atol=4e-3)
    assert w.mean() == pytest.approx(MU, abs=2e-3)
