"""Global batches and their layout: groups stay together, and nothing that is computed depends on where they lie."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from methods.batch import place_in_sequence, sum_by_sequence
from methods.examples import Examples
from methods.forward import Forward
from methods.kinds.causal import Causal
from methods.preference.dpo import Dpo, DpoConfig
from methods.reference import CachedReference
from runners.batches import make_batches
from tests.models import PAD, VOCABULARY, batches_of, random_examples, tiny_llama


def grouped(sizes, seed=0, labels=None) -> Examples:
    """Responses of random tokens to random prompts; the label is the response's number in the data, unless given."""
    generator = np.random.default_rng(seed)
    sequences, targets = [], []
    for size in sizes:
        prompt = generator.integers(1, VOCABULARY, generator.integers(1, 4))
        for _ in range(size):
            sequences.append(np.concatenate([prompt, generator.integers(1, VOCABULARY, generator.integers(2, 9))]))
            targets.append(len(prompt))
    told = range(len(sequences)) if labels is None else labels
    return Examples.of(sequences, targets, sizes, told)


def pairs(count=10, seed=0) -> Examples:
    return grouped([2] * count, seed, [1.0, 0.0] * count)


LAYOUTS = [
    {},
    {"micro": 1},
    {"micro": 3},
    {"packing": True, "row_length": 64},
    {"packing": True, "row_length": 64, "micro": 1},
    {"packing": True, "row_length": 8, "micro": 2},  # less than many a group
]
WORLDS = (1, 2, 3)


def of_all(examples, step=0, world=1, **layout):
    """The micro-batches of all processes."""
    return [
        batch for rank in range(world) for batch in batches_of(examples, rank=rank, world=world, **layout).of_step(step)
    ]


# Groups ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_stay_whole_in_one_micro_batch(layout, world):
    sizes = [2, 1, 4, 3, 2, 2, 1, 5, 3, 2]
    examples = grouped(sizes)
    ends = np.cumsum(sizes)
    steps = batches_of(examples, batch_size=4).steps_per_epoch
    assert steps == 3, "of ten groups, not of 25 sequences"
    seen = []
    for step in range(steps):
        found = []
        for batch in of_all(examples, step, world, batch_size=4, **layout):
            if not batch.target_count:
                continue
            order = batch.example_S.tolist()
            groups = [int(np.searchsorted(ends, index, side="right")) for index in order]
            distinct = list(dict.fromkeys(groups))
            # In the data's order, one group after the other, each of them whole.
            expected = [index for group in distinct for index in range(ends[group] - sizes[group], ends[group])]
            assert order == expected
            assert batch.group_S.tolist() == [distinct.index(group) for group in groups]
            assert batch.group_count == len(distinct)
            assert batch.label_S.tolist() == [float(index) for index in order]
            assert batch.label_S.dtype == torch.float32
            found += distinct
        assert sorted(found) == sorted(batches_of(examples, batch_size=4).global_batch(step).tolist())
        seen += found
    assert sorted(seen) == list(range(10)), "every group once in an epoch"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_masks_and_labels_are_those_of_the_data(layout):
    examples = grouped([2, 3, 1, 2])
    for batch in of_all(examples, batch_size=4, **layout):
        for place, index in enumerate(batch.example_S.tolist()):
            own = batch.sequence_BT == place
            assert batch.input_ids_BT[own].tolist() == examples.sequence(index).tolist()
            assert batch.input_ids_BT[own & batch.target_mask_BT].tolist() == examples.response(index).tolist()
            if batch.position_ids_BT is not None:
                assert batch.position_ids_BT[own].tolist() == list(range(len(examples.sequence(index))))
        padding = batch.sequence_BT < 0
        assert (batch.input_ids_BT[padding] == PAD).all() and not batch.target_mask_BT[padding].any()


def test_micro_batch_size_counts_groups():
    examples = pairs(6)
    sizes = [len(batch.example_S) for batch in of_all(examples, batch_size=6, micro=2)]
    assert sizes == [4, 4, 4]
    (whole,) = of_all(examples, batch_size=6, micro=6)
    assert whole.input_ids_BT.shape[0] == 12


def test_packed_rows_hold_whole_groups_as_far_as_they_fit():
    examples = grouped([6, 2, 1, 2, 1, 2, 1])
    lengths = np.diff(examples.starts[examples.groups])
    room = int(lengths.max())
    rows = 0
    for batch in of_all(examples, batch_size=7, packing=True, row_length=room):
        for row in batch.sequence_BT:
            held = {int(batch.group_S[place]) for place in row.unique() if place >= 0}
            assert sum(int((row == place).sum()) for place in row.unique() if place >= 0) <= room
            for group in held:  # no other row has one of its members
                members = torch.nonzero(batch.group_S == group).flatten().tolist()
                assert set(members) <= set(row.unique().tolist())
            rows += 1
    assert rows < 7, "some share a row"
    # A group longer than a row has one to itself, and the others keep to theirs.
    (batch,) = of_all(examples, batch_size=7, packing=True, row_length=room - 1)
    filled = (batch.sequence_BT >= 0).sum(1)
    assert int(filled.max()) == room and sorted(filled.tolist())[-2] < room


def test_longest_groups_come_first_unless_they_are_coupled():
    examples = pairs(8)
    lengths = np.diff(examples.starts[examples.groups])
    order = [int(lengths[batch.example_S[0] // 2]) for batch in of_all(examples, batch_size=8, micro=1)]
    assert order == sorted(order, reverse=True)
    settings = {"batch_size": 8, "micro_batch_size": 1, "packing": False}
    as_drawn = make_batches(examples, settings, pad_token=PAD, max_length=32, seed=0, by_length=False)
    assert [int(batch.example_S[0]) // 2 for batch in as_drawn.of_step(0)] == as_drawn.global_batch(0).tolist()


@pytest.mark.parametrize("packing", [False, True])
def test_a_process_without_groups_of_its_own_gets_company(packing):
    """It must go through as many passes as the others, and adds nothing."""
    examples = pairs(3)
    layout = {"batch_size": 1, "packing": packing, "world": 3}
    own, *others = [batches_of(examples, rank=rank, **layout).of_step(0) for rank in range(3)]
    assert [len(found) for found in (own, *others)] == [1, 1, 1]
    assert own[0].target_count > 0
    method = dpo_of(examples)
    for (batch,) in others:
        assert batch.target_count == 0 and batch.group_S.tolist() == [0, 0] and batch.label_S.tolist() == [1.0, 0.0]
        assert method.count(batch) == 0
        model = tiny_llama()
        loss = method.loss(Forward(Causal(), {"policy": model}, batch)).sum
        loss.backward()
        assert loss == 0 and all((value.grad == 0).all() for value in model.parameters())
        # A live reference, which may be sharded too, is called as often as by the others.
        reference, passes = tiny_llama(1), []
        reference.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        live = Dpo(DpoConfig(reference="live"))
        assert live.loss(Forward(Causal(), {"policy": model, "reference": reference}, batch)).sum == 0
        assert len(passes) == 1


def test_once_sees_every_response_once():
    examples = grouped([2, 3, 1, 2])
    seen = [
        index
        for rank in (0, 1)
        for batch in batches_of(examples, micro=2, rank=rank, world=2).once()
        for index in batch.example_S.tolist()
    ]
    assert sorted(seen) == list(range(8))


# What is computed --------------------------------------------------------------------------------------------


def dpo_of(examples) -> Dpo:
    """DPO with a made-up reference: of every target token of the data a number of its own."""
    method = Dpo(DpoConfig(beta=0.3))
    counts = examples.lengths - examples.targets
    numbers_M = -3 * torch.rand(int(counts.sum()), generator=torch.Generator().manual_seed(1))
    method.cached = CachedReference(numbers_M, torch.from_numpy(counts))
    return method


def accumulated(examples, **layout):
    """Mean loss, gradients and metrics of DPO over the global batch."""
    model, method, kind = tiny_llama(), dpo_of(examples), Causal()
    total, count, metrics = 0.0, 0, {}
    for batch in of_all(examples, **layout):
        loss = method.loss(Forward(kind, {"policy": model}, batch))
        loss.sum.backward()
        total, count = total + float(loss.sum.detach()), count + method.count(batch)
        for name, value in loss.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value)
    return total / count, count, {name: value.grad / count for name, value in model.named_parameters()}, metrics


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dpo_does_not_depend_on_the_layout(layout, world):
    examples = pairs(7)
    loss, count, gradients, metrics = accumulated(examples, batch_size=7)
    found = accumulated(examples, batch_size=7, world=world, **layout)
    assert count == found[1] == 7
    assert found[0] == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        assert (found[2][name] - gradient).norm() <= 2e-6 * gradient.norm(), name
    for name, value in metrics.items():
        assert found[3][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_dpo_of_a_layout_is_that_of_the_pairs_one_by_one():
    """From the log-probabilities of each response alone, by the formula."""
    examples, model = pairs(5), tiny_llama()
    method = dpo_of(examples)
    sums = torch.zeros(10)
    with torch.no_grad():
        for index in range(10):
            ids = torch.from_numpy(examples.sequence(index)).long()
            logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
            sums[index] = logps[int(examples.targets[index]) - 1 :].sum()
            first = int(method.cached.first_n[index])
            sums[index] -= method.cached.token_logps_M[first : first + len(examples.response(index))].sum()
    ratios = sums.view(5, 2)
    expected = -torch.nn.functional.logsigmoid(0.3 * (ratios[:, 0] - ratios[:, 1])).mean()
    assert accumulated(examples, batch_size=5, packing=True, micro=2)[0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reference_tokens_are_found_wherever_they_lie(layout):
    """The cached number of each target token is that of its place in the data."""
    examples = grouped([2, 3, 1, 2, 4])
    method = dpo_of(examples)
    method.cached.token_logps_M = torch.arange(examples.target_tokens, dtype=torch.float32)
    ends = np.cumsum(examples.lengths - examples.targets)
    for batch in of_all(examples, batch_size=5, **layout):
        found = method._reference(SimpleNamespace(batch=batch))
        expected = [ends[e] - len(examples.response(e)) for e in batch.example_K.tolist()]
        assert (found - torch.tensor(expected)).tolist() == place_in_sequence(batch).tolist()
        counted = sum_by_sequence(torch.ones(batch.target_count), batch)
        assert counted.tolist() == [len(examples.response(index)) for index in batch.example_S.tolist()]


# Without groups ----------------------------------------------------------------------------------------------


def test_without_groups_every_sequence_is_an_example():
    examples = random_examples(11)
    batches = batches_of(examples, batch_size=4)
    assert batches.steps_per_epoch == 3
    for batch in batches.of_step(0):
        assert batch.group_S is None and batch.label_S is None and batch.group_count == len(batch.example_S) == 4
    singles = Examples.of([examples.sequence(i) for i in range(11)], examples.targets, [1] * 11)
    for layout in LAYOUTS:
        for step in range(3):
            plain, alone = (of_all(data, step, batch_size=4, **layout) for data in (examples, singles))
            for one, other in zip(plain, alone, strict=True):
                assert torch.equal(one.input_ids_BT, other.input_ids_BT)
                assert torch.equal(one.example_S, other.example_S)
                assert torch.equal(one.target_mask_BT, other.target_mask_BT)
                assert other.group_S.tolist() == list(range(len(other.example_S)))


# The order in which ten sequences were drawn, four a step, before there were groups.
DRAWN = [[9, 6, 0, 2], [1, 4, 7, 5], [3, 8], [4, 1, 2, 8], [5, 0, 7, 9], [6, 3]]
PACKED = [[0, 1, 4, 3, 8, 6]]  # and the rows of the first of two processes


def test_global_batches_of_ungrouped_examples_are_as_they_were():
    batches = batches_of(random_examples(10), batch_size=4, seed=3)
    assert [batches.global_batch(step).tolist() for step in range(6)] == DRAWN
    packed = batches_of(random_examples(10), batch_size=10, seed=3, packing=True, row_length=24, micro=2, world=2)
    assert [batch.example_S.tolist() for batch in packed.of_step(0)] == PACKED


# Examples ----------------------------------------------------------------------------------------------------


def test_groups_and_labels_must_go_with_the_sequences():
    sequences, targets = [[1, 2], [1, 3], [1, 4]], [1, 1, 1]
    for sizes in ([2], [2, 2], [3, 0]):
        with pytest.raises(ValueError, match="group_sizes must be >= 1 and sum to 3, the sequences, got"):
            Examples.of(sequences, targets, sizes)
    with pytest.raises(ValueError, match="labels must be one for each of 3 sequences, got 2"):
        Examples.of(sequences, targets, [3], [1, 0])
    assert Examples.of([], [], [], []).group_count == 0


def test_within_keeps_groups_whole():
    examples = Examples.of(
        [[1, 2, 3], [1, 2, 3, 4, 5], [6, 7], [6, 8], [1, 1, 1, 1, 2], [1, 1, 1, 1, 3, 3]],
        [1, 1, 1, 1, 4, 4],
        [2, 2, 2],
        [1, 0, 1, 0, 1, 0],
    )
    short = examples.within(4, cut=False)
    assert [short.sequence(i).tolist() for i in range(len(short))] == [[6, 7], [6, 8]]
    assert short.groups.tolist() == [0, 2] and short.labels.tolist() == [1, 0]
    cut = examples.within(4, cut=True)  # of the last prompt nothing would be answered
    assert [cut.sequence(i).tolist() for i in range(len(cut))] == [[1, 2, 3], [1, 2, 3, 4], [6, 7], [6, 8]]
    assert cut.groups.tolist() == [0, 2, 4] and cut.targets.tolist() == [1, 1, 1, 1]
    alone = Examples.of([[1, 2, 3], [4, 5]], [2, 1]).within(2, cut=True)
    assert alone.lengths.tolist() == [2, 2] and alone.targets.tolist() == [2, 1] and alone.group_starts is None
