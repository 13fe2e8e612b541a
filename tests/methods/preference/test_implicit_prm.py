"""Implicit PRM: the formulas by hand, prefix values on a tree that can be enumerated, scores, the whole method."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.implicit_prm import (
    ImplicitPrm,
    ImplicitPrmConfig,
    outcome_loss,
    prefix_values,
    response_score,
    step_rewards,
    token_rewards,
    weighted_vote,
)
from methods.preference.implicit_prm_kto import ImplicitPrmKto, paired_kto_losses
from methods.preference.nca import Nca, NcaConfig
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

RATIOS = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
PAIRS = grouped_texts([("copy 12:", [" 12", " 21"]), ("sort 321:", [" 123", " 3"])], [1.0, 0.0, 1.0, 0.0])


def pair(chosen, rejected):
    return given([chosen, rejected], [0.0, 0.0], [2], [1.0, 0.0])


# Losses ---------------------------------------------------------------------------------------------------------------


def test_of_one_response():
    reward = 0.05 * RATIOS.sum()
    assert reward.sigmoid().item() == pytest.approx(0.518741, abs=5e-7)
    losses = outcome_loss(RATIOS.sum().repeat(2), torch.tensor([True, False]), 0.05)
    assert losses.tolist() == pytest.approx([0.656350, 0.731350], abs=5e-7)
    expected = F.binary_cross_entropy_with_logits(reward.repeat(2), torch.tensor([1.0, 0.0]).double(), reduction="none")
    torch.testing.assert_close(losses, expected)


def test_at_the_reference():
    loss, gradient = loss_and_gradient(
        ImplicitPrm(ImplicitPrmConfig()), given([-3.0] * 2, [-3.0] * 2, None, [1.0, 0.0])
    )
    assert loss / 2 == pytest.approx(math.log(2))
    assert gradient == pytest.approx([-0.025, 0.025])
    assert loss_and_gradient(Dpo(DpoConfig(beta=0.05)), pair(0.0, 0.0))[0] == pytest.approx(math.log(2))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_far_from_the_reference(size):
    method = ImplicitPrm(ImplicitPrmConfig())
    loss, gradient = loss_and_gradient(method, given([size, size], [0.0] * 2, None, [1.0, 0.0], torch.float32))
    assert math.isfinite(loss) and all(map(math.isfinite, gradient))


def test_losses_on_pairs():
    """Of r+ = 0.1 and r- = -0.2, whose log-ratios are 2 and -4; both reference points: 0 of y-, 0.1 of y+."""
    kto = loss_and_gradient(ImplicitPrmKto(ImplicitPrmConfig()), pair(2.0, -4.0))[0]

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    assert kto == pytest.approx(((1 - sigmoid(0.1)) + (1 - sigmoid(0.1 + 0.2))) / 2)
    dpo = loss_and_gradient(Dpo(DpoConfig(beta=0.05)), pair(2.0, -4.0))[0]
    assert dpo == pytest.approx(-math.log(sigmoid(0.3)))
    nca = loss_and_gradient(Nca(NcaConfig(beta=0.05)), pair(2.0, -4.0))[0]
    assert nca == pytest.approx(-math.log(sigmoid(0.1)) - (math.log(sigmoid(-0.1)) + math.log(sigmoid(0.2))) / 2)


def test_reference_points_have_no_gradient_and_are_means():
    chosen = torch.tensor([2.0, -8.0], requires_grad=True)
    rejected = torch.tensor([6.0, -2.0], requires_grad=True)
    losses = paired_kto_losses(chosen, rejected, 0.1)
    # The mean log-ratio of y- is 2, that of y+ below 0.
    expected = (1 - torch.sigmoid(0.1 * (chosen - 2.0)) + 1 - torch.sigmoid(-0.1 * rejected)) / 2
    torch.testing.assert_close(losses, expected)
    found = torch.autograd.grad(losses.sum(), (chosen, rejected))
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), (chosen, rejected)))


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("layout", [{}, {"packing": True}, {"micro": 1}])
def test_one_sequence_at_a_time(live, layout):
    """The whole way from texts; pairs are taken apart."""
    context = PreferenceContext(PAIRS, byte_llama(1), byte_llama(0))
    config = ImplicitPrmConfig(beta=0.3, reference="live" if live else "cached")
    method = started(ImplicitPrm(config), context)
    batches = micro_batches(context, **layout)
    losses = [method.loss(forward_of(method, context, batch)) for batch in batches]
    assert sum(method.count(batch) for batch in batches) == 4
    examples, total, right = context.examples, 0.0, 0
    for index, label in enumerate((1, 0, 1, 0)):
        words = examples.prompt(index).tolist(), examples.response(index).tolist()
        ratio = logps_by_hand(context, *words) - logps_by_hand(context, *words, role="reference")
        total += math.log1p(math.exp(-0.3 * ratio if label else 0.3 * ratio))
        right += (ratio > 0) == label
    assert sum(loss.sum.item() for loss in losses) == pytest.approx(total, rel=1e-5)
    assert sum(loss.metrics["accuracy"].item() for loss in losses) == right


# Steps ----------------------------------------------------------------------------------------------------------------


def test_values_and_rewards():
    assert prefix_values(RATIOS, 0.05).tolist() == pytest.approx([0.1, 0.05, 0.075])
    assert token_rewards(RATIOS, 0.05).tolist() == pytest.approx([0.1, -0.05, 0.025])
    assert step_rewards(RATIOS, [1, 2, 3], 0.05).tolist() == pytest.approx([0.1, -0.05, 0.025])
    assert step_rewards(RATIOS, [2, 3], 0.05).tolist() == pytest.approx([0.05, 0.025])
    assert step_rewards(RATIOS, [2, 3], 0.05, accumulative=True).tolist() == pytest.approx([0.05, 0.075])
    for ends in ([3], [1, 3], [2, 3], [1, 2, 3]):
        assert step_rewards(RATIOS, ends, 0.05).sum().item() == pytest.approx(0.05 * 1.5), "they telescope"


def test_scores():
    steps = step_rewards(RATIOS, [1, 2, 3], 0.05)
    found = {how: response_score(steps, how).item() for how in ("min", "sum", "mean")}
    assert found == pytest.approx({"min": -0.05, "sum": 0.075, "mean": 0.025})
    assert response_score(step_rewards(RATIOS, [2, 3], 0.05)).item() == pytest.approx(0.025), "of steps, not tokens"


def test_votes():
    answers, scores = ["4", "5", "5", "4"], torch.tensor([3.0, 1.0, 1.0, -3.0])
    assert weighted_vote(answers, scores) == "5"  # 0.953 + 0.047 against 2 x 0.731
    assert weighted_vote(answers, torch.tensor([3.0, 1.0, 1.0, 0.0]), squashed=False) == "4"
    assert weighted_vote(["a", "b"], torch.zeros(2)) == "a"


def test_prefix_values_are_exact_on_a_tree():
    """Two binary steps: pi proportional to ref exp(r / beta), with r shifted so that its normaliser is 1."""
    beta, generator = 0.7, torch.Generator().manual_seed(0)
    first = torch.randn(2, generator=generator, dtype=torch.float64).softmax(0)
    second = torch.randn(2, 2, generator=generator, dtype=torch.float64).softmax(1)
    reference = first[:, None] * second
    reward = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    reward = reward - beta * (reference * (reward / beta).exp()).sum().log()
    policy = reference * (reward / beta).exp()
    assert policy.sum().item() == pytest.approx(1.0)
    for a, b in itertools.product(range(2), repeat=2):
        log_ratio_K = torch.stack([
            (policy[a].sum() / first[a]).log(), (policy[a, b] / policy[a].sum() / second[a, b]).log(),
        ])  # fmt: skip
        exact = beta * (second[a] * (reward[a] / beta).exp()).sum().log()
        found = prefix_values(log_ratio_K, beta)
        assert found.tolist() == pytest.approx([exact.item(), reward[a, b].item()], abs=1e-10)


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [[], [1, 2], [2, 2, 3], [0, 3], [3, 4]])
def test_ends_that_are_none(ends):
    with pytest.raises(ValueError, match=r"^ends=\[.*\]: must increase from above 0 to the 3 tokens"):
        step_rewards(RATIOS, ends, 0.05)


def test_bad_scores():
    with pytest.raises(ValueError, match=r"^step_rewards=\[\]"):
        response_score(RATIOS[:0])
    with pytest.raises(ValueError, match=r"^reduce=max: must be min, sum or mean"):
        response_score(RATIOS, "max")
    with pytest.raises(ValidationError):
        TypeAdapter(ImplicitPrmConfig).validate_python({"beta": 0.0})
