"""MC-PO: the worked candidates, DPO as its limit, the likelihood whose gradient it estimates, what it draws."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.dpo import dpo_loss
from methods.preference.mc_po import McPo, McPoConfig, draw, narrowed, ranking_losses, rewards_now
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

# Rewards 0.1 of the preferred response and of three candidates, at beta 0.1.
TOY = {"logps": [1.0, -0.5, 0.7, 0.2], "sizes": [4]}
CANDIDATES = [-0.05, 0.07, 0.02]
WEIGHTS = [0.312500, 0.352342, 0.335158]
RANKED = grouped_texts(
    [("copy 12:", [" 12", " 1", " 21", " 2.."]), ("sort 321:", [" 123", " 3", " 321"]), ("flip 7:", [" 7", " 8"]),
     ("name:", [" x", " y", " z", " xyz", " zz"])],
    [1.0, 0.5, 0.5, 0.0, 1.0, 0.5, 0.0, 1.0, 0.0, 1.0, 0.5, 0.5, 0.0, 0.0],
)  # fmt: skip


def generator(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


# The loss -------------------------------------------------------------------------------------------------------------


def test_known_answers():
    """Of all three candidates, and of the first alone: DPO's worked pair."""
    assert loss_and_gradient(McPo(McPoConfig(beta=0.1)), given(**TOY))[0] == pytest.approx(1.322894, abs=5e-7)
    loss, gradient = loss_and_gradient(McPo(McPoConfig(beta=0.1)), given([1.0, -0.5], sizes=[2]))
    assert loss == pytest.approx(0.6209570478, abs=1e-10)
    assert gradient == pytest.approx([-0.0462570155, 0.0462570155], abs=1e-10)


def test_one_negative_is_dpo():
    rewards = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 20
    found = ranking_losses(rewards.T.flatten(), torch.arange(9).repeat_interleave(2))
    torch.testing.assert_close(found, dpo_loss(rewards[0], rewards[1], 1.0))


def test_groups_of_different_sizes():
    rewards = torch.tensor([0.3, -1.0, 0.2, 0.5, 2.0, 0.1], dtype=torch.float64)
    found = ranking_losses(rewards, torch.tensor([0, 0, 0, 1, 1, 2]))
    expected = [-rewards[:3].log_softmax(0)[0], -rewards[3:5].log_softmax(0)[0], 0.0]
    assert found.tolist() == pytest.approx([float(value) for value in expected])


def test_order_of_the_candidates_does_not_matter():
    method = McPo(McPoConfig(beta=0.1))
    turned = given([1.0, 0.2, -0.5, 0.7], sizes=[4])
    assert loss_and_gradient(method, turned)[0] == pytest.approx(loss_and_gradient(method, given(**TOY))[0])


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_log_ratios(size):
    responses = given([size, -size, 0.0], None, [3], None, torch.float32)
    loss, gradient = loss_and_gradient(McPo(McPoConfig(beta=1.0)), responses)
    assert math.isfinite(loss) and np.isfinite(gradient).all()


# The kernel -----------------------------------------------------------------------------------------------------------


def test_weights_of_the_kernel():
    """Drawn as often as softmax(r) says; four standard deviations of 6,000 draws are 0.026."""
    draws = generator()
    counts = np.bincount([draw(CANDIDATES, "mc", 1, draws)[0] for _ in range(6_000)])
    assert counts / 6_000 == pytest.approx(WEIGHTS, abs=0.026)
    assert np.exp(CANDIDATES) / np.exp(CANDIDATES).sum() == pytest.approx(WEIGHTS, abs=5e-7)
    sharp = np.bincount([draw([0.0, 2.0, 1.0], "mc", 1, draws)[0] for _ in range(6_000)], minlength=3)
    assert sharp / 6_000 == pytest.approx([0.0900, 0.6652, 0.2447], abs=0.026)


def test_several_are_drawn_without_replacement():
    """The second in proportion to what is left."""
    draws = generator()
    weights = np.array([0.0900, 0.6652, 0.2447])
    pairs = [tuple(draw([0.0, 2.0, 1.0], "mc", 2, draws)) for _ in range(6_000)]
    assert all(first != second for first, second in pairs)
    both = np.mean([pair == (1, 2) for pair in pairs])
    assert both == pytest.approx(weights[1] * weights[2] / (1 - weights[1]), abs=0.026)


def test_limits():
    assert draw([0.0, 5.0, 1e4], "mc", 1, generator()) == [2], "a large beta: argmax"
    drawn = [draw([1e-9, 0.0], "mc", 1, generator(seed))[0] for seed in range(200)]
    assert drawn == [draw([-3.0, 3.0], "random", 1, generator(seed))[0] for seed in range(200)], "beta 0: uniform"
    assert 60 < sum(drawn) < 140
    assert draw(CANDIDATES, "max", 2, generator()) == [1, 2] and draw(CANDIDATES, "min", 1, generator()) == [0]
    assert sorted(draw(CANDIDATES, "mc", 7, generator())) == [0, 1, 2], "no more than there are"


def test_the_gradient_is_that_of_the_likelihood():
    """Of all candidates at once, with weights of p: -grad r(y_0) + E_p[grad r]; a draw is unbiased for the second."""
    generator_ = torch.Generator().manual_seed(0)
    reference = torch.randn(6, generator=generator_, dtype=torch.float64).log_softmax(0)
    logits = torch.randn(6, generator=generator_, dtype=torch.float64).requires_grad_()

    def rewards():
        return 0.7 * (logits.log_softmax(0) - reference)

    nll = -(reference + rewards())[0] + (reference + rewards()).logsumexp(0)
    (exact,) = torch.autograd.grad(nll, logits)
    weights = (reference + rewards()).softmax(0).detach()
    (estimated,) = torch.autograd.grad(-rewards()[0] + (weights * rewards()).sum(), logits)
    torch.testing.assert_close(estimated, exact)


# Rollout --------------------------------------------------------------------------------------------------------------


def method_on(context, **settings):
    return started(McPo(McPoConfig(beta=0.3, **settings)), context)


def kept(batch):
    """The data set's index of every response that is left, by group."""
    assert batch.group_S is not None
    groups = batch.group_S.tolist()
    return [[i for i, g in zip(batch.example_S.tolist(), groups, strict=True) if g == group] for group in set(groups)]


def by_hand(context, index, beta=0.3):
    words = RANKED.prompt(index).tolist(), RANKED.response(index).tolist()
    return beta * (logps_by_hand(context, *words) - logps_by_hand(context, *words, role="reference"))


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kernel", ["mc", "random", "max", "min"])
def test_the_preferred_response_and_one_negative_are_left(kernel, packing):
    context = PreferenceContext(RANKED)
    method = method_on(context, kernel=kernel)
    (data,) = micro_batches(context, packing=packing)
    batch = method.rollout(data, step=2)
    assert method.count(batch) == 4 and len(batch.example_S) == 8
    bounds = RANKED.groups.tolist()
    for first, negative in kept(batch):
        group = bounds.index(first)
        assert first < negative < bounds[group + 1]
        rewards = [by_hand(context, index) for index in range(first + 1, bounds[group + 1])]
        drawn = draw(rewards, kernel, 1, generator([context.seed, 2, first]))
        assert negative == first + 1 + drawn[0]
    for row, index in enumerate(batch.example_S.tolist()):
        own = batch.sequence_BT == row
        assert batch.input_ids_BT[own].tolist() == RANKED.sequence(index).tolist()
        assert batch.target_mask_BT[own].tolist() == [place >= RANKED.targets[index] for place in range(int(own.sum()))]
        assert batch.label_S[row] == RANKED.labels[index]


def test_the_loss_of_a_step_is_dpo_on_what_is_left():
    context = PreferenceContext(RANKED)
    method = method_on(context)
    (data,) = micro_batches(context)
    batch = method.rollout(data, step=0)
    loss = method.loss(forward_of(method, context, batch))
    margins = [by_hand(context, first) - by_hand(context, negative) for first, negative in kept(batch)]
    assert loss.sum.item() == pytest.approx(sum(math.log1p(math.exp(-margin)) for margin in margins), rel=1e-4)
    assert loss.metrics["reward_margin"].item() == pytest.approx(sum(margins), rel=1e-4)
    loss.sum.backward()
    assert any(parameter.grad.abs().max() > 1e-4 for parameter in context.model.parameters())


@pytest.mark.parametrize("negatives", [2, "all"])
def test_several_negatives(negatives):
    context = PreferenceContext(RANKED)
    method = method_on(context, negatives=negatives)
    (data,) = micro_batches(context)
    batch = method.rollout(data, step=0)
    sizes = {first: len(rest) for first, *rest in kept(batch)}
    most = 99 if negatives == "all" else negatives
    assert sizes == {first: min(size, most) for first, size in ((0, 3), (4, 2), (7, 1), (9, 4))}
    loss = method.loss(forward_of(method, context, batch)).sum.item()
    expected = 0.0
    for group in kept(batch):
        rewards = np.array([by_hand(context, index) for index in group])
        expected += np.log(np.exp(rewards).sum()) - rewards[0]
    assert loss == pytest.approx(expected, rel=1e-4)


def test_draws_are_decided_by_seed_step_and_example():
    """Neither by the batch they are drawn in, nor by what was drawn before."""
    context = PreferenceContext(RANKED)
    method = method_on(context, kernel="random")

    def drawn(step, micro=None):
        found = [pair for batch in micro_batches(context, micro=micro) for pair in kept(method.rollout(batch, step))]
        return sorted(found)

    whole = drawn(5)
    torch.manual_seed(99)
    assert drawn(5, micro=1) == drawn(5, micro=2) == whole
    assert any(drawn(step) != whole for step in range(4))
    context.seed += 1
    assert any(drawn(step) != whole for step in range(5, 9))
    assert McPo.couples is None


def test_draws_follow_the_policy_and_give_it_no_gradient():
    """With a reward that a candidate has won it is drawn; the pass that says so leaves no trace."""
    context = PreferenceContext(RANKED)
    method = method_on(context)
    (data,) = micro_batches(context)
    rewards = rewards_now(method, data, 0.3)
    assert not rewards.requires_grad and context.model.training
    expected = [by_hand(context, index) for index in data.example_S.tolist()]
    assert rewards.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    for winner in (1, 2, 3):
        won = torch.zeros(14)
        won[winner] = 100.0
        assert narrowed(data, won, "mc", 1, [(0, 0, i) for i in range(4)]).example_S[1] == data.example_S[winner]
    optimizer = torch.optim.SGD(context.model.parameters(), lr=0.5)
    before = [kept(method.rollout(data, step)) for step in range(6)]
    for _ in range(5):
        optimizer.zero_grad()
        method.loss(forward_of(method, context, method.rollout(data, 0))).sum.backward()
        optimizer.step()
    assert [kept(method.rollout(data, step)) for step in range(6)] != before, "the same draws, another policy"


def test_a_live_reference_gives_the_same():
    losses = []
    for reference in ("cached", "live"):
        context = PreferenceContext(RANKED, byte_llama(2), byte_llama(3))
        method = started(McPo(McPoConfig(beta=0.3, reference=reference)), context)
        (data,) = micro_batches(context)
        losses.append(method.loss(forward_of(method, context, method.rollout(data, 1))).sum.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_batch_without_targets_stays_without():
    context = PreferenceContext(RANKED)
    method = method_on(context)
    (data,) = micro_batches(context)
    data.target_mask_BT[:] = False
    batch = method.rollout(data, 0)
    assert batch.target_count == 0 and method.count(batch) == 0
    assert method.loss(forward_of(method, context, batch)).sum.item() == 0


@pytest.mark.parametrize(("key", "value"), [
    ("beta", 0.0), ("kernel", "softmax"), ("negatives", 0), ("negatives", "some"),
])  # fmt: skip
def test_out_of_range(key, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(McPoConfig).validate_python({key: value})
    assert caught.value.errors()[0]["loc"][0] == key
