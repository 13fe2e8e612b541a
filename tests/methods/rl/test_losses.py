"""Losses of policy gradients: known numbers, gradients, limits, and equality with TRL's GRPOTrainer."""

import math
from types import SimpleNamespace

import pytest
import torch

from methods.rl.losses import aggregated, clipped, kl_estimates, log_ratios, policy_losses, units
from tests.methods.rl.given import flat, padded, ragged

RATIOS = [[1.0, 1.5], [0.5, 1.0, 1.0, 0.7]]
BATCH = ragged([2, 4])
ADVANTAGE = flat([[1.0] * 2, [-1.0] * 4])
OLD = torch.zeros(6)
LOGPS = flat(RATIOS).log()
ALL = torch.ones(6)


def mean(losses, how, mask=ALL, batch=BATCH, longest=8):
    return (aggregated(losses, mask, batch, how, longest) / units(mask, batch, how)).item()


def test_clip_by_hand():
    losses = policy_losses(LOGPS, LOGPS - OLD, ADVANTAGE)
    torch.testing.assert_close(losses, flat([[-1, -1.2], [0.8, 1, 1, 0.8]]))
    assert mean(losses, "sequence") == pytest.approx(-0.1)
    assert mean(losses, "local_token") == mean(losses, "token") == pytest.approx(0.2333333)
    assert mean(losses, "constant") == pytest.approx(0.0875)
    assert mean(losses, "length") == pytest.approx((-2.2 + 3.6) / 2)
    higher = policy_losses(LOGPS, LOGPS - OLD, ADVANTAGE, clip_high=0.28)
    torch.testing.assert_close(higher[:2], torch.tensor([-1, -1.28]))
    assert mean(higher, "token") == pytest.approx(0.22)


def test_clipped_tokens_have_no_gradient():
    logps = LOGPS.clone().requires_grad_()
    policy_losses(logps, logps - OLD, ADVANTAGE).sum().backward()
    assert [value == 0 for value in logps.grad.tolist()] == [False, True, True, False, False, True]
    low, high = clipped(LOGPS - OLD, ADVANTAGE, 0.2, 0.2)
    assert low.tolist() == [False, False, True, False, False, True]
    assert high.tolist() == [False, True, False, False, False, False]


def test_ratios_of_sequences():
    mean_ratio = log_ratios(LOGPS, OLD, BATCH, "sequence")
    assert mean_ratio.exp()[[0, 2]].tolist() == pytest.approx([1.2247449, 0.7691606])
    losses = policy_losses(LOGPS, mean_ratio, ADVANTAGE)
    assert losses[[0, 2]].tolist() == pytest.approx([-1.2, 0.8])
    summed = log_ratios(LOGPS, OLD, BATCH, "sequence_sum")
    assert summed.exp()[[0, 2]].tolist() == pytest.approx([1.5, 0.35])
    assert policy_losses(LOGPS, summed, ADVANTAGE)[[0, 2]].tolist() == pytest.approx([-1.2, 0.8])


def test_the_first_step_is_reinforce():
    """Ratio 1: the loss is 0 for balanced advantages, its gradient that of -A log pi, whatever the clip."""
    logps = torch.randn(6, requires_grad=True)
    for settings in (
        {},
        {"form": "cispo", "ratio_cap": 5.0},
        {"clip_low": 100.0, "clip_high": 100.0},
        {"form": "sapo"},
    ):
        losses = policy_losses(logps, logps - logps.detach(), ADVANTAGE, **settings)
        (gradient,) = torch.autograd.grad(losses.sum(), logps)
        torch.testing.assert_close(gradient, -ADVANTAGE)
    balanced = flat([[2.0] * 2, [-1.0] * 4])
    assert policy_losses(logps, logps - logps.detach(), balanced).sum().item() == pytest.approx(0.0, abs=1e-6)


def test_dual_clip_bounds_the_loss_of_bad_tokens():
    logps = torch.tensor([10.0, 1.1, 1.0]).log()
    advantage = torch.tensor([-1.0, -1.0, 1.0])
    assert policy_losses(logps, logps, advantage).tolist() == pytest.approx([10.0, 1.1, -1.0])
    assert policy_losses(logps, logps, advantage, dual_clip=3.0).tolist() == pytest.approx([3.0, 1.1, -1.0])


def test_vespo_weighs_by_the_sequence():
    """phi(1) = 1, and far away sequences count little."""
    logps = torch.zeros(1)
    weights = [
        -float(policy_losses(logps - 1, torch.tensor([math.log(w)]), torch.ones(1), "vespo")) for w in (1, 3, 0.2)
    ]
    assert [-weight for weight in weights] == pytest.approx([1.0, 9 * math.exp(3 - 9), 0.04 * math.exp(3 - 0.6)])


@pytest.mark.parametrize(
    ("logp", "reference", "expected"),
    [(-1.0, -1.5, (0.5, 0.125, 0.106531)), (-1.5, -1.0, (-0.5, 0.125, 0.148721))],
)
def test_kl_estimates(logp, reference, expected):
    for name, value in zip(("k1", "k2", "k3"), expected, strict=True):
        found = kl_estimates(torch.tensor([logp]), torch.tensor([reference]), name)
        assert found.item() == pytest.approx(value, abs=1e-6)


def test_expectations_and_gradients_of_kl_estimates():
    """k1 and k3 are unbiased; as losses, k1 has no gradient, k2 that of the KL, k3 that of the forward KL."""
    reference = torch.tensor([0.5, 0.5], dtype=torch.float64)
    logits = torch.tensor([0.7, 0.3], dtype=torch.float64).log().requires_grad_()
    expected = {"k1": (0.0822829, 0.0), "k2": (0.0787662, 0.1779326), "k3": (0.0822829, 0.2)}
    for name, (value, slope) in expected.items():
        logps = logits.log_softmax(0)
        probabilities = logps.exp().detach()
        estimate = (probabilities * kl_estimates(logps, reference.log(), name)).sum()
        (gradient,) = torch.autograd.grad(estimate, logits)
        assert estimate.item() == pytest.approx(value, abs=1e-7)
        assert gradient[0].item() == pytest.approx(slope, abs=1e-7)
    logps = logits.log_softmax(0)
    (true,) = torch.autograd.grad((logps.exp() * (logps - reference.log())).sum(), logits)
    assert true[0].item() == pytest.approx(0.1779326, abs=1e-7)


def test_equal_lengths_make_aggregations_equal():
    batch, losses = ragged([3, 3]), torch.randn(6)
    ones = torch.ones(6)
    of = {how: mean(losses, how, ones, batch) for how in ("sequence", "token", "local_token", "constant")}
    assert of["sequence"] == pytest.approx(of["token"]) == pytest.approx(of["local_token"])
    assert of["constant"] == pytest.approx(of["sequence"] * 3 / 8)


def test_accumulation_leaves_all_but_the_local_mean():
    """Two micro-batches: sums and units add up to those of one."""
    lengths, losses = [1, 5, 2, 3], torch.randn(11)
    whole, parts = ragged(lengths), [ragged(lengths[:2]), ragged(lengths[2:])]
    pieces = losses.split([6, 5])
    for how in ("sequence", "token", "constant", "length", "local_token"):
        ones = [torch.ones_like(piece) for piece in pieces]
        total = sum(aggregated(p, one, b, how, 8) for p, one, b in zip(pieces, ones, parts, strict=True))
        count = sum(units(one, b, how) for one, b in zip(ones, parts, strict=True))
        same = (total / count).item() == pytest.approx(mean(losses, how, torch.ones(11), whole), abs=1e-6)
        assert same == (how != "local_token")


def test_masked_tokens_and_empty_responses():
    """What does not count adds nothing and is no division by 0."""
    losses, mask = torch.randn(6, requires_grad=True), torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    for how in ("sequence", "token", "local_token", "constant", "length"):
        value = aggregated(losses, mask, BATCH, how, 8)
        (gradient,) = torch.autograd.grad(value, losses)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert (gradient[mask == 0] == 0).all()
    assert units(mask, BATCH, "token") == 2
    assert units(mask, BATCH, "sequence") == 2
    empty = ragged([0, 2])
    assert aggregated(torch.ones(2), torch.ones(2), empty, "sequence", 8).item() == 1.0
    assert log_ratios(torch.ones(2), torch.zeros(2), empty, "sequence").tolist() == [1.0, 1.0]


# TRL -----------------------------------------------------------------------------------------------------------------

OURS = {  # form, ratio, aggregation
    "grpo": ("clip", "token", "sequence"),
    "bnpo": ("clip", "token", "local_token"),
    "dr_grpo": ("clip", "token", "constant"),
    "dapo": ("clip", "token", "token"),
    "cispo": ("cispo", "token", "token"),
    "sapo": ("sapo", "token", "sequence"),
    "vespo": ("vespo", "sequence_sum", "token"),
    "luspo": ("clip", "token", "length"),
}


def theirs(loss_type, logps, old, reference, advantage, mask, beta, level):
    """TRL's loss on the same numbers, from its trainer's own function."""
    trainer = pytest.importorskip("trl").GRPOTrainer
    metrics = {"train": __import__("collections").defaultdict(list)}
    fake = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **more: (logps, torch.zeros_like(logps), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level=level, beta=beta, loss_type=loss_type, epsilon_low=0.2,
        epsilon_high=5.0 if loss_type == "cispo" else 0.28, use_vllm=False, vllm_importance_sampling_correction=False,
        args=SimpleNamespace(
            delta=None, use_bias_correction_kl=False, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
            vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0, steps_per_generation=1,
        ),
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, max_completion_length=8,
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, **more: x
        ),
        get_gamma_weights=trainer.get_gamma_weights, _entropy_bonus_enabled=False, _metrics=metrics,
    )  # fmt: skip
    ids = torch.zeros_like(mask).long()
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": mask[:, :1], "completion_ids": ids, "completion_mask": mask,
        "advantages": advantage, "old_per_token_logps": old, "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    return trainer._compute_loss(fake, SimpleNamespace(training=True), inputs)


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", OURS)
def test_equals_trl(loss_type, level, beta):
    form, ratio, aggregation = OURS[loss_type]
    if level == "sequence":
        if form == "vespo":
            pytest.skip("its ratio is that of the sequence anyway")
        ratio = "sequence"
    generator = torch.Generator().manual_seed(1)
    batch = ragged([3, 5, 1, 8])
    count = batch.target_count
    logps = (torch.randn(count, generator=generator) - 2).requires_grad_()
    old = logps.detach() + 0.3 * torch.randn(count, generator=generator)
    reference = logps.detach() + 0.5 * torch.randn(count, generator=generator)
    advantage_S = torch.tensor([1.3, -0.7, 0.4, -1.0])
    advantage = advantage_S[batch.sequence_K]
    ones = torch.ones(count)

    ratio_K = log_ratios(logps, old, batch, ratio)
    cap = 5.0 if form == "cispo" else None
    losses = policy_losses(logps, ratio_K, advantage, form, 0.2, 0.28, cap)
    if beta:
        losses = losses + beta * kl_estimates(logps, reference, "k3")
    own = aggregated(losses, ones, batch, aggregation, 8) / units(ones, batch, aggregation)
    (own_gradient,) = torch.autograd.grad(own, logps)

    told = [padded(values, batch) for values in (logps, old, reference)]
    other = theirs(loss_type, *told, advantage_S, padded(ones, batch), beta, level)
    (other_gradient,) = torch.autograd.grad(other, logps)
    torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(own_gradient, other_gradient, atol=1e-6, rtol=1e-5)
