"""EWC: the penalty's known answers, and the Fisher information against closed forms."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from methods.examples import Examples
from methods.kinds.causal import Causal
from methods.penalty.ewc import Ewc, EwcConfig, drawn, fisher_of, mean_squared_gradients, quadratic
from methods.penalty.l2_sp import L2Sp, L2SpConfig
from tests.methods.mix.fakes import BOS, FakeContext, byte_llama, encoded
from tests.models import random_examples, tiny_llama


class Softmax(torch.nn.Module):
    """A 'causal LM' whose next-token logits are one vector, whatever came before."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits, dtype=torch.float64))
        self.unused = torch.nn.Parameter(torch.ones(3))
        self.head = torch.nn.Identity()

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, position_ids=None, use_cache=None):
        return SimpleNamespace(logits=self.head(self.logits.expand(*input_ids.shape, -1)))


PROBABILITIES = np.array([0.5, 0.3, 0.2])
SOFTMAX = np.log(PROBABILITIES).tolist()


def one_token(counts):
    """Sequences of BOS-like 0 and one token, each token as often as `counts` says."""
    tokens = [token for token, count in enumerate(counts) for _ in range(count)]
    return Examples.of([[0, token] for token in tokens], [1] * len(tokens))


def fisher(model, sequences):
    return fisher_of(
        SimpleNamespace(kind=Causal(), unsharded=lambda: model, steps=lambda what, total: range(total)), sequences
    )


def test_all_twos_is_the_sum_form_of_l2():
    """Because of the 1/2: with F = 2 and the same lambda."""
    torch.manual_seed(0)
    weights, start = torch.randn(5, 3), torch.randn(5, 3)
    ewc = Ewc(EwcConfig(weight=0.7))
    ewc._fisher = {"w": torch.full((5, 3), 2.0)}
    l2 = L2Sp(L2SpConfig(weight=0.7, reduction="sum"))
    l2.prepare(SimpleNamespace(trained_parameters=15))
    for found, expected in zip(ewc.on_weights("w", weights, start), l2.on_weights("w", weights, start), strict=True):
        torch.testing.assert_close(found, expected)


def test_gradient_is_that_of_the_value():
    torch.manual_seed(1)
    weights, start, information = torch.randn(7).requires_grad_(), torch.randn(7), torch.rand(7)
    value, gradient = quadratic(weights, start, information)
    (expected,) = torch.autograd.grad(value, weights)
    torch.testing.assert_close(gradient, expected)
    assert quadratic(start, start, information)[0] == 0


def test_minimiser_of_a_quadratic_loss():
    """f = sum (theta - 1)^2 from theta0 = 0, lambda 1: theta_j = 2 / (2 + F_j); where F is 0 nothing holds."""
    ewc = Ewc(EwcConfig(weight=1.0))
    ewc._fisher = {"w": torch.tensor([0.0, 2.0, 6.0])}
    theta = torch.zeros(3)
    for _ in range(2000):
        theta = theta - 0.05 * (2 * (theta - 1) + ewc.on_weights("w", theta, torch.zeros(3))[1])
    torch.testing.assert_close(theta, torch.tensor([1.0, 0.5, 0.25]))


def test_true_fisher_of_a_softmax_in_closed_form():
    """E_{y~p}[(1{y=j} - p_j)^2] = p_j (1 - p_j): labels as often as the model gives them."""
    found = fisher(Softmax(SOFTMAX), one_token([5, 3, 2]))
    expected = torch.tensor(PROBABILITIES * (1 - PROBABILITIES), dtype=torch.float32)
    torch.testing.assert_close(found["logits"], expected)
    assert torch.equal(found["unused"], torch.zeros(3)), "what the output does not depend on"


def test_empirical_fisher_differs_from_the_true_one():
    """Labels of frequency q: q_j (1 - p_j)^2 + (1 - q_j) p_j^2."""
    q = np.array([0.1, 0.1, 0.8])
    found = fisher(Softmax(SOFTMAX), one_token([1, 1, 8]))
    expected = q * (1 - PROBABILITIES) ** 2 + (1 - q) * PROBABILITIES**2
    torch.testing.assert_close(found["logits"], torch.tensor(expected, dtype=torch.float32))
    assert not np.allclose(expected, PROBABILITIES * (1 - PROBABILITIES), rtol=0.2)


def test_a_sequence_is_one_sample():
    """Squared gradient of the *sum* over its tokens: of two independent tokens twice that of one, in expectation."""
    counts = [5, 3, 2]
    pairs = [[0, a, b] for a in range(3) for b in range(3) for _ in range(counts[a] * counts[b])]
    found = fisher(Softmax(SOFTMAX), Examples.of(pairs, [1] * len(pairs)))
    expected = torch.tensor(2 * PROBABILITIES * (1 - PROBABILITIES), dtype=torch.float32)
    torch.testing.assert_close(found["logits"], expected)
    # Tokens before the target are no labels.
    again = fisher(Softmax(SOFTMAX), Examples.of(pairs, [2] * len(pairs)))
    torch.testing.assert_close(again["logits"], expected / 2)


def test_fisher_of_a_transformer_by_per_example_gradients():
    """Against transformers' own loss, one sequence at a time; a batch's squared gradient is another number."""
    model, examples = tiny_llama().eval(), random_examples(5)
    expected = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for index in range(5):
        ids = torch.from_numpy(examples.sequence(index)).long()[None]
        labels = ids.clone()
        labels[:, : int(examples.targets[index])] = -100
        model.zero_grad()
        model(input_ids=ids, labels=labels, num_items_in_batch=1).loss.backward()
        for name, parameter in model.named_parameters():
            expected[name] += parameter.grad.square() / 5
    model.zero_grad()
    found = fisher(model, examples)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4, msg=name)
    assert all(parameter.grad is None for parameter in model.parameters()), "no gradient is left behind"


def test_no_sequences_is_no_information():
    (found,) = mean_squared_gradients([], [torch.ones(2)])
    assert torch.equal(found, torch.zeros(2))


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_share_the_sequences(rank, monkeypatch):
    """Two processes: what one contributes is its own sequences' part of the mean over all."""
    sequences = one_token([5, 3, 2])
    monkeypatch.setattr("methods.penalty.ewc.Ranks", lambda: SimpleNamespace(rank=rank, count=2))
    parts = []
    monkeypatch.setattr("methods.penalty.ewc.distributed.all_reduce", lambda value: parts.append(value.clone()))
    fisher(Softmax(SOFTMAX), sequences)
    tokens = [int(sequences.sequence(index)[1]) for index in range(rank, 10, 2)]
    squares = sum((np.eye(3)[token] - PROBABILITIES) ** 2 for token in tokens)
    torch.testing.assert_close(parts[0], torch.tensor(squares / 10, dtype=torch.float32))


def test_drawn_examples():
    data = Examples.of([[1, 2, 3, 4], [1, 2], [1, 2, 3, 4, 5], [9, 9, 9, 9]], [2, 1, 4, 1])
    few = drawn(data, 2, 10, seed=0)
    assert len(few) == 2
    every = drawn(data, 100, 10, seed=0)
    assert sorted(every.sequence(index).tolist() for index in range(4)) == sorted(
        data.sequence(index).tolist() for index in range(4)
    )
    cut = drawn(data, 100, 3, seed=0)
    assert len(cut) == 3, "one has no target among its first three tokens"
    assert cut.lengths.max() == 3
    assert few.digest() == drawn(data, 2, 10, seed=0).digest() != drawn(data, 2, 10, seed=5).digest()
    with pytest.raises(ValueError, match=r"penalty\.max_length=2: no example has a token"):
        drawn(Examples.of([[1, 2, 3]], [2]), 1, 2, seed=0)


TEXTS = [("copy 12:", " 12"), ("copy 7:", " 7"), ("sort 321:", " 123")]


def test_prepared_from_context_free_samples():
    context = FakeContext(byte_llama(), TEXTS)
    ewc = Ewc(EwcConfig(samples=6, max_length=9, batch_size=4, weight=2.0))
    report = ewc.prepare(context)
    (asked,) = context.asked
    assert asked.prompts == [[BOS]] * 6 and asked.sampling.max_new_tokens == 8
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == (1.0, 1.0, 0)
    assert report["ewc/sequences"] == 6 and report["ewc/fisher_mean"] > 0
    name, weights = next(
        (n, p.detach().flatten()) for n, p in context.model.named_parameters() if n.endswith("q_proj.weight")
    )
    value, gradient = ewc.on_weights(name, weights + 0.1, weights)
    assert value.item() == pytest.approx(ewc._fisher[name].sum().item() * 0.01, rel=1e-3)
    torch.testing.assert_close(gradient, 2.0 * ewc._fisher[name] * 0.1, rtol=1e-3, atol=1e-6)


def test_prepared_from_the_data():
    context = FakeContext(byte_llama(), TEXTS)
    ewc = Ewc(EwcConfig(fisher_on="data", samples=2, max_length=64))
    report = ewc.prepare(context)
    assert not context.asked, "nothing is generated"
    assert report["ewc/sequences"] == 2
    expected = fisher(context.model, drawn(encoded(TEXTS), 2, 64, seed=0))
    for name, values in expected.items():
        torch.testing.assert_close(ewc._fisher[name], values.flatten())


def test_what_decides_the_cache_is_the_sequences():
    def decided(**changes):
        context = FakeContext(byte_llama(), TEXTS)
        Ewc(EwcConfig(fisher_on="data", max_length=64, **changes)).prepare(context)
        ((what, decides),) = context.decided
        assert what == "fisher"
        return decides

    assert decided(samples=3) == decided(samples=3, weight=5.0)
    assert decided(samples=3) == decided(samples=300), "the same three examples"
    assert decided(samples=3) != decided(samples=2)


def test_without_bos_the_penalty_names_its_own_key():
    context = FakeContext(byte_llama(), TEXTS)
    context.tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=1, eos_token="<eos>", pad_token_id=0)
    with pytest.raises(ValueError, match=r"penalty\.start_token=null: .*no BOS token.*penalty\.start_token='<eos>'"):
        Ewc(EwcConfig()).prepare(context)
