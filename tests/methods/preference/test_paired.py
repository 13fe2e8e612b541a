"""What holds for every method on pairs: layout and order change nothing; gradients are numbers far from the reference.

The methods are found by importing the modules of the folder: one that is added is tested too.
"""

import importlib
import inspect
import pkgutil
import typing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import methods.preference
from methods.batch import sum_by_sequence
from methods.examples import Examples
from methods.forward import Forward
from methods.kinds.causal import Causal
from methods.preference.base import Paired, Side
from methods.preference.dpo import Dpo, DpoConfig
from tests.methods.mix.fakes import TOKENIZER
from tests.methods.preference.trl_dpo import one_batch, ours, policy, random_pairs, reference
from tests.models import batches_of

# Methods whose gradient is no number far from the reference, each with the reason.
NOT_FINITE: dict[str, str] = {}
# Settings of methods whose defaults need more than a test has.
SETTINGS = {name: {"embedding": "ngrams"} for name in ("ddpo.Ddpo", "dorpo.Dorpo")}  # others come from a hub


def paired_methods():
    """Name of each module in methods/preference that defines a method on pairs, and its class."""
    found = {}
    for module in pkgutil.iter_modules(methods.preference.__path__):
        if module.name == "base":
            continue
        named = importlib.import_module(f"methods.preference.{module.name}")
        for name, value in vars(named).items():
            is_own = inspect.isclass(value) and value.__module__ == named.__name__
            if is_own and issubclass(value, Paired) and "config" in value.__annotations__:
                found[f"{module.name}.{name}"] = value
    return found


METHODS = paired_methods()


def of_defaults(name):
    """A method with the defaults of its configuration, and a live reference where it has one."""
    kind = METHODS[name]
    config = typing.get_type_hints(kind)["config"](**SETTINGS.get(name, {}))
    live = "reference" in vars(config) and config.reference == "cached"
    method = kind(replace(config, reference="live") if live else config)
    method.kind = Causal()
    return method


class Table(torch.nn.Module):
    """A causal model that looks its logits up, by row and place: [B, T, V]."""

    def __init__(self, logits_BTV):
        super().__init__()
        self.logits_BTV = torch.nn.Parameter(logits_BTV)
        self.head = torch.nn.Identity()

    def get_output_embeddings(self):
        return self.head

    def forward(self, **_):
        return SimpleNamespace(logits=self.head(self.logits_BTV))


def far_apart(log_ratios, tokens=5):
    """Pairs whose log-ratios are given [P, 2] (chosen, rejected), as one of the models rules the response out.

    Returns a batch, its examples, and the models by role.
    """
    generator = np.random.default_rng(0)
    sequences = [np.append(1, generator.integers(65, 69, tokens)) for row in log_ratios for _ in row]
    examples = Examples.of(sequences, [1] * len(sequences), [2] * len(log_ratios), [1.0, 0.0] * len(log_ratios))
    (batch,) = batches_of(examples, batch_size=len(log_ratios)).of_step(0)
    ratio_S = torch.tensor(log_ratios).flatten()[batch.example_S] / tokens
    roles = {}
    for role, sign in (("policy", 1), ("reference", -1)):
        # The logit of the target is -c and the others are 0, so its log-probability is near -c.
        logits_BTV = torch.zeros(*batch.input_ids_BT.shape, 70)
        logits_BTV[:, :-1].scatter_(
            -1, batch.input_ids_BT[:, 1:, None], (sign * ratio_S).clamp_max(0)[:, None, None].expand(-1, tokens, 1)
        )
        roles[role] = Table(logits_BTV)
    return batch, examples, roles


def test_what_is_far_apart():
    """The log-ratios are those that were asked for, to a few nats of 10^4."""
    log_ratios = torch.tensor([(1e4, -1e4), (0.0, 1e4)])
    batch, _, roles = far_apart(log_ratios.tolist())
    with torch.no_grad():
        policy_K, reference_K = (Causal().token_logps(roles[role], batch) for role in ("policy", "reference"))
    found = sum_by_sequence(policy_K - reference_K, batch)
    torch.testing.assert_close(found, log_ratios.flatten()[batch.example_S], rtol=0, atol=30)


def test_methods_are_found():
    assert {"dpo.Dpo", "h_dpo.HDpo", "f_dpo.FDpo", "aot.Aot"} <= METHODS.keys()
    assert NOT_FINITE.keys() <= METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("log_ratios", [
    [(1e4, -1e4)], [(-1e4, 1e4)], [(1e4, 1e4)], [(-1e4, -1e4)], [(0.0, 1e4), (1e4, 0.0)], [(0.0, -1e4), (-1e4, 0.0)],
])  # fmt: skip
def test_gradients_are_numbers_far_from_the_reference(name, log_ratios):
    """Log-ratios of +-10^4 in fp32; also the gradient's norm, as clipping takes it."""
    if name in NOT_FINITE:
        pytest.skip(NOT_FINITE[name])
    batch, examples, roles = far_apart(log_ratios)
    method = of_defaults(name)
    method.context = SimpleNamespace(examples=examples, tokenizer=TOKENIZER, seed=0)
    method.prepare(method.context)
    loss = method.loss(Forward(Causal(), roles, batch))
    loss.sum.backward()
    gradient = roles["policy"].logits_BTV.grad
    assert torch.isfinite(loss.sum) and torch.isfinite(gradient).all()
    assert torch.isfinite(gradient.square().sum())
    assert all(torch.isfinite(value).all() for value in loss.metrics.values())


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_pairs_changes_nothing(name):
    """The sum over a micro-batch, also of those that couple its pairs; and which response comes first."""
    method = of_defaults(name)
    if type(method).losses is Paired.losses:
        pytest.skip("not a function of sums over tokens alone")
    generator = torch.Generator().manual_seed(0)
    logps = -20 + 5 * torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    logps[:, 2] = torch.randint(2, 9, (2, 7), generator=generator).double()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    sums = [method.losses(*(Side(*one[:, places]) for one in logps)).sum().item() for places in (slice(None), order)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-12)


def test_log_probabilities_of_a_response():
    """Each token is predicted by the logits before it, the first one by those of the prompt's last token."""
    logits = torch.tensor([[[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [1, 1, 0], [0, 2, 1]]])
    examples = Examples.of([[0, 1, 2, 1, 0]] * 2, [2, 2], [2], [1.0, 0.0])
    (batch,) = batches_of(examples, batch_size=1).of_step(0)
    model = Table(logits.repeat(2, 1, 1))
    forward = Forward(Causal(), {"policy": model, "reference": model}, batch)
    responses = of_defaults("dpo.Dpo").responses(forward)
    expected = torch.tensor([-1.5514447139, -3.0949229564, -0.8619948041])
    torch.testing.assert_close(responses.logps_K.detach(), expected.repeat(2))
    assert responses.all.logps.tolist() == pytest.approx([-5.5083624744] * 2)
    assert responses.all.mean_logps.tolist() == pytest.approx([-1.8361208248] * 2)
    assert responses.all.tokens.tolist() == [3, 3]


# DPO on a model -------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "micro-batches": lambda examples: batches_of(examples, batch_size=6, micro=2).of_step(0),
    "packed": lambda examples: batches_of(examples, batch_size=6, micro=6, packing=True, row_length=60).of_step(0),
    "packed micro-batches": lambda examples: batches_of(
        examples, batch_size=6, micro=1, packing=True, row_length=40
    ).of_step(0),
    "another order": lambda examples: batches_of(examples, batch_size=6, micro=6, seed=3).of_step(0),
    "wider padding": lambda examples: [padded(one_batch(examples), 9)],
    "two processes": lambda examples: [
        batch for rank in range(2) for batch in batches_of(examples, batch_size=6, rank=rank, world=2).of_step(0)
    ],
}


def padded(batch, width):
    """The batch with columns of padding at its right."""
    added = {"input_ids_BT": 0, "target_mask_BT": False, "sequence_BT": -1}
    wider = {name: torch.nn.functional.pad(getattr(batch, name), (0, width), value=v) for name, v in added.items()}
    return replace(batch, **wider)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_and_order_change_nothing(layout):
    """fp32, to 1e-6: loss and every gradient of DPO."""
    examples = random_pairs()
    method = Dpo(DpoConfig(reference="live"))
    expected = ours(method, [one_batch(examples)])
    found = ours(method, LAYOUTS[layout](examples))
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_cached_reference_is_the_live_one():
    examples = random_pairs()
    model = reference()

    def measure(what, values, per, role):
        measured = [np.zeros(0)] * len(examples)
        with torch.no_grad():
            for batch in batches_of(examples, micro=4).once():
                found = values(model, batch).split(torch.bincount(batch.sequence_K).tolist())
                for index, value in zip(batch.example_S.tolist(), found, strict=True):
                    measured[index] = value.double().numpy()
        assert (per, role) == ("token", "reference")
        return np.concatenate(measured)

    cached = Dpo(DpoConfig())
    cached.kind = Causal()
    cached.prepare(SimpleNamespace(examples=examples, measure=measure))
    live = Dpo(DpoConfig(reference="live"))
    batches = batches_of(examples, batch_size=6, micro=3).of_step(0)
    expected, found = ours(live, batches), ours(cached, batches)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not all(torch.equal(a, b) for a, b in zip(policy().parameters(), model.parameters(), strict=True))
