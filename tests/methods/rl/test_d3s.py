"""D3S: which responses and tokens are kept, by brute force; its schedule; GRPO inside it."""

import dataclasses
import itertools
import math

import pytest
import torch

from methods.rl.advantages import normalised
from methods.rl.d3s import D3s, D3sConfig, largest, most_variance, relaxed
from methods.rl.grpo import Grpo, GrpoConfig
from tests.methods.rl.running import RlContext, config_of, started, step

NOTHING = [{"function": "tests.methods.rl.running.nothing"}]
ALL = {"samples": 1.0, "tokens": 1.0}
STATIC = {"schedule": "constant"}


def of(values):
    return torch.as_tensor(values, dtype=torch.float64)


def variance(values, places):
    return float(of(values)[list(places)].var(correction=0))


def test_by_hand():
    values = [1, 1, 0, 0, 0, -0.5, -1, 2]
    kept = most_variance(of(values), 4)
    assert sorted(values[place] for place in kept) == [-1, -0.5, 1, 2]
    assert variance(values, kept) == pytest.approx(1.421875)
    assert max(variance(values, places) for places in itertools.combinations(range(8), 4)) == pytest.approx(1.421875)


def test_brute_force():
    generator = torch.Generator().manual_seed(0)
    for count, k in ((7, 1), (7, 3), (8, 4), (8, 5), (9, 9)):
        values = torch.randn(count, generator=generator).double() ** 3
        kept = most_variance(values, k)
        assert len(set(kept)) == k
        assert kept == sorted(kept)
        best = max(variance(values, places) for places in itertools.combinations(range(count), k))
        assert variance(values, kept) == pytest.approx(best, abs=1e-12)


def test_of_two_rewards_as_many_of_each():
    for right in (4, 6, 9):
        values = of([1.0] * right + [0.0] * (16 - right)) - right / 16
        kept = most_variance(values, 8)
        assert [int((values[kept] > 0).sum()), int((values[kept] < 0).sum())] == [4, 4]
    few = of([1, 1, 1, 1, 1, 1, 0, 0])
    assert (few[most_variance(few, 6)] == 0).sum() == 2, "of too few, all"


def test_shift_and_scale_choose_the_same():
    values = torch.randn(20, generator=torch.Generator().manual_seed(1)).double()
    kept = most_variance(values, 8)
    assert most_variance(values + 1000, 8) == kept
    assert most_variance(3 * values, 8) == kept


def test_it_is_not_the_largest_in_size():
    values = of([3.0, 2.9, 2.8, 0.1, -0.2])
    assert most_variance(values, 2) == [0, 4]


def test_equal_values_and_wrong_numbers():
    assert most_variance(torch.zeros(6), 4) == [0, 1, 4, 5], "as many from both ends"
    assert most_variance(of([1, 0, 1, 0, 1, 0]), 3) == [1, 2, 4], "else one more from above"
    advantages = normalised(of([1, 1, 1, 0, 0, 0]), torch.zeros(6, dtype=torch.long))
    assert most_variance(advantages, 3) == [1, 2, 3], "though one of the two variances rounds to more"
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"k={k}: must be between 1 and the 6 values"):
            most_variance(torch.zeros(6), k)


def test_largest_tokens():
    scores = torch.tensor([0.1, 0.0, 0.5, 0.5, 0.2])
    assert largest(scores, 0.2).tolist() == [False, False, True, False, False]
    assert largest(scores, 0.5).tolist() == [False, False, True, True, True]
    assert largest(scores, 0.21).sum() == 2
    assert largest(scores, 1.0).all()
    assert len(largest(torch.zeros(0), 0.5)) == 0
    assert largest(torch.rand(10), 0.1 + 0.2).sum() == 3


def test_schedules():
    assert [relaxed(0.5, 1.0, at) for at in (0, 0.5, 1, 2)] == [0.5, 0.75, 1, 1]
    assert [relaxed(0.2, 1.0, at, "cosine") for at in (0, 0.5, 1)] == pytest.approx([0.2, 0.6, 1.0])
    assert relaxed(0.2, 1.0, 0.25, "cosine") == pytest.approx(0.2 + 0.8 * (1 - math.sqrt(0.5)) / 2)
    assert relaxed(0.2, 1.0, 0.7, "constant") == 0.2


def d3s(**settings):
    return D3s(config_of(D3sConfig, **{"aggregation": "token", **settings}))


def running(method, steps=9):
    context = RlContext()
    context.config["training"] |= {"steps": steps, "epochs": None}
    return started(method, context), context


def laid_out(method, context, turn=0):
    ((batch,),) = method.rollouts(context.batches(), turn)
    return batch


def test_everything_kept_is_grpo():
    grpo = Grpo(config_of(GrpoConfig, aggregation="token"))
    loss, expected, _ = step(started(grpo, context := RlContext()), context)
    for settings in (ALL, {**ALL, **STATIC}):
        got, gradients, _ = step(*running(d3s(**settings)))
        assert got == loss
        assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients.items())


def test_at_the_end_of_the_run_everything_is_kept():
    """Log-probabilities were asked for before the step, so equal to rounding."""
    method, context = running(d3s(), steps=5)
    _, gradients, _ = step(method, context, turn=4)
    _, expected, _ = step(
        started(Grpo(config_of(GrpoConfig, aggregation="token")), other := RlContext()), other, turn=4
    )
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)
    assert method.report()["samples_kept"] == method.report()["tokens_kept"] == 1
    laid_out(method, context, turn=2)
    assert method.report()["samples_kept"] == 0.75
    assert method.report()["tokens_kept"] == pytest.approx(0.6)


def test_progress_counts_turns():
    method, _ = running(d3s(minibatches=2, epochs=2), steps=12)  # 4 steps a turn
    for turn, progress in ((0, 0), (1, 0.5), (2, 1)):
        method.turn = turn
        assert method.progress == progress
    method, context = running(d3s())
    context.config["training"] |= {"steps": None, "epochs": 5, "batch_size": 2}  # 2 turns an epoch
    method.turn = 3
    assert method.progress == pytest.approx(3 / 9)


def test_what_is_kept():
    """Half of the responses over all groups, a fifth of their tokens by |A| H; the loss is over those."""
    method, context = running(d3s())
    batch = laid_out(method, context)
    method.entropic = True
    episodes = method._measured(method.episodes(context.batches(), 0), batch)
    advantages = method.token_advantages(episodes, method.advantages(episodes))
    values = [float(advantage[0]) for advantage in advantages]
    kept = method.keep(episodes, advantages)
    assert len(kept) == len(batch.example_S) == 6
    best = max(variance(values, places) for places in itertools.combinations(range(12), 6))
    assert variance(values, kept) == pytest.approx(best)
    weight = batch.values_K["weight"]
    assert int(weight.sum()) == method.count(batch) == math.ceil(0.2 * len(weight) - 1e-9)
    score = torch.cat([advantages[place].abs() * episodes.entropies[place] for place in kept])
    assert float(score[weight > 0].min()) >= float(score[weight == 0].max())
    assert (score[weight > 0] > 0).all()


def test_in_every_group_and_response():
    method, context = running(d3s(scope="intra", token_scope="response", tokens=0.5))
    batch = laid_out(method, context)
    assert batch.values_S["group"].tolist() == [0, 0, 1, 1, 2, 2]
    for weight in batch.values_K["weight"].split(batch.target_mask_BT.sum(1).tolist()):
        assert int(weight.sum()) == math.ceil(len(weight) / 2)


def test_controls():
    method, context = running(d3s(choose="random", tokens=1.0))
    first = laid_out(method, context)
    assert len(first.example_S) == 6
    assert torch.equal(first.input_ids_BT, laid_out(method, context).input_ids_BT)
    assert (first.values_K["weight"] == 1).all()
    method, context = running(d3s(samples=1.0, rewards=NOTHING, score="entropy"))
    batch = laid_out(method, context)
    assert int(batch.values_K["weight"].sum()) == math.ceil(0.2 * len(batch.values_K["weight"]) - 1e-9)


def test_cut_responses_stay_masked():
    method, context = running(d3s(mask_truncated=True, max_new_tokens=3, samples=1.0, tokens=0.5))
    batch = laid_out(method, context)
    ended_K = batch.values_S["ended"][batch.sequence_K] > 0
    weight = batch.values_K["weight"]
    assert (weight[~ended_K] == 0).all()
    assert int(weight.sum()) == math.ceil(int(ended_K.sum()) / 2)


def test_gradients():
    _, gradients, losses = step(*running(d3s()))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients.values())
    assert float(losses[0].means["trained_tokens"][0]) < float(losses[0].means["trained_tokens"][1])
    _, gradients, _ = step(*running(d3s(rewards=NOTHING)))
    assert all((gradient == 0).all() for gradient in gradients.values())


def in_two_processes(context, call):
    """What `call(rank)` returns in each of two processes; what they exchange must not depend on what they were told."""
    told, context.rank = [], 0
    for rank in range(2):
        told.append(passed := [])
        context.gathered = lambda value, passed=passed: passed.append(value) or [value]
        call(rank)
    found = []
    for rank in range(2):
        exchanged, context.rank = zip(*told, strict=True), rank
        context.gathered = lambda value, exchanged=exchanged: list(next(exchanged))
        found.append(call(rank))
        assert not list(exchanged)
    return found


def test_processes_choose_among_all():
    """Responses and tokens of two processes, one with a group and one with two: as one with all three chooses."""
    method, context = running(d3s())
    company = context.batches()[0]
    method.rollouts([company], 0)
    episodes = method._measured(method.episodes([company], 0), company)
    advantages = method.token_advantages(episodes, method.advantages(episodes))
    kept = method.keep(episodes, advantages)
    weights = method.token_weights(episodes, advantages, kept)
    parts = [list(range(4)), list(range(4, 12))]
    own = [(episodes.at(part), [advantages[place] for place in part]) for part in parts]
    first, second = in_two_processes(context, lambda rank: method.keep(*own[rank]))
    assert first + [4 + place for place in second] == kept
    of_each = in_two_processes(context, lambda rank: method.token_weights(*own[rank], [first, second][rank]))
    assert torch.equal(torch.cat(of_each[0] + of_each[1]), torch.cat(weights))


def test_a_process_without_responses_takes_part():
    method, context = running(d3s())
    (batch,) = context.batches()
    empty = dataclasses.replace(batch, target_mask_BT=torch.zeros_like(batch.target_mask_BT))
    ((found,),) = method.rollouts([empty], 0)
    assert method.count(found) == 0
