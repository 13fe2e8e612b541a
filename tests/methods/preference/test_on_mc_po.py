"""OnMC-PO: the policy's best response and the negatives drawn of the others."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.mc_po import McPo, McPoConfig
from methods.preference.on_mc_po import OnMcPo, OnMcPoConfig, has_worse
from tests.methods.mix.fakes import EOS, byte_llama, encoded
from tests.methods.preference.given import (
    PreferenceContext,
    forward_of,
    given,
    logps_by_hand,
    loss_and_gradient,
    micro_batches,
    started,
)

COMPLETIONS = encoded([("copy 12:", " 12"), ("sort 321:", " 123"), ("flip 7:", " 7")])
REWARD = {"function": f"{__name__}.letters"}
TOY = {"logps": [1.0, -0.5, 0.7, 0.2], "sizes": [4]}


def letters(prompts, responses):
    """The share of lower-case letters."""
    return [sum(letter.islower() for letter in response) / max(len(response), 1) for response in responses]


def method_on(context, **settings):
    return started(OnMcPo(OnMcPoConfig(**{"reward": REWARD, "max_new_tokens": 4, "samples": 5, **settings})), context)


def rows_of(batch):
    """Prompt and response of every sequence (token ids)."""
    found = []
    for row in range(len(batch.example_S)):
        own = batch.sequence_BT == row
        tokens, target = batch.input_ids_BT[own], batch.target_mask_BT[own]
        found.append((tokens[~target].tolist(), tokens[target].tolist()))
    return found


def test_loss_is_that_of_mc_po():
    """Where some negative is worse; else 0."""
    method = OnMcPo(OnMcPoConfig(reward=REWARD, beta=0.1))
    method.written_metrics = lambda responses: {}
    offline = loss_and_gradient(McPo(McPoConfig(beta=0.1)), given(**TOY))
    assert loss_and_gradient(method, given(**TOY, labels=[1.0, 1.0, 0.5, 1.0])) == offline
    assert offline[0] == pytest.approx(1.322894, abs=5e-7)
    loss, gradient = loss_and_gradient(method, given(**TOY, labels=[1.0] * 4))
    assert loss == 0 and gradient == [0.0] * 4


def test_has_worse():
    rewards, group = torch.tensor([1.0, 1.0, 0.5, 0.3, 0.3, 2.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    assert has_worse(rewards, group).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("negatives", [1, 3, "all"])
def test_the_best_of_what_the_policy_writes(negatives):
    context = PreferenceContext(COMPLETIONS, byte_llama(1), byte_llama(0))
    method = method_on(context, negatives=negatives, kernel="max")
    (data,) = micro_batches(context)
    batch = method.rollout(data, 0)
    (asked,) = context.sampled
    assert asked.role == "policy" and len(asked.prompts) == 15
    left = 5 if negatives == "all" else 1 + negatives
    assert batch.group_S.tolist() == [group for group in range(3) for _ in range(left)] and method.count(batch) == 3
    rows = rows_of(batch)
    for group, example in enumerate(data.example_S.tolist()):
        mine = rows[group * left : (group + 1) * left]
        assert all(prompt == context.examples.prompt(example).tolist() for prompt, _ in mine)
        texts = [context.tokenizer.decode(response, skip_special_tokens=True) for _, response in mine]
        labels = batch.label_S[group * left : (group + 1) * left].tolist()
        assert labels == pytest.approx(letters([""] * left, texts)) and labels[0] == max(labels)
    loss = method.loss(forward_of(method, context, batch))
    decided, expected = has_worse(batch.label_S, batch.group_S), 0.0
    for group in range(3):
        mine = rows[group * left : (group + 1) * left]
        ratios = [logps_by_hand(context, *w) - logps_by_hand(context, *w, role="reference") for w in mine]
        rewards = torch.tensor(ratios) * 0.01
        expected += float(decided[group]) * float(rewards.logsumexp(0) - rewards[0])
    assert decided.sum() > 0 and loss.sum.item() == pytest.approx(expected, rel=1e-4)
    assert loss.metrics["decided"].item() == decided.sum().item()


def test_negatives_are_drawn_by_their_implicit_reward():
    """Of all candidates, max takes that with the largest log-ratio, min that with the smallest."""
    left = {}
    for kernel in ("max", "min"):
        context = PreferenceContext(COMPLETIONS, byte_llama(1), byte_llama(0))
        method = method_on(context, kernel=kernel)
        (data,) = micro_batches(context)
        rows = rows_of(method.rollout(data, 0))
        left[kernel] = [
            logps_by_hand(context, *row) - logps_by_hand(context, *row, role="reference") for row in rows[1::2]
        ]
    assert all(a >= b for a, b in zip(left["max"], left["min"], strict=True)) and left["max"] != left["min"]


def test_what_is_drawn_is_decided_by_seed_and_step():
    context = PreferenceContext(COMPLETIONS)
    method = method_on(context)
    (data,) = micro_batches(context)
    first = method.rollout(data, 3).input_ids_BT.tolist()
    torch.manual_seed(99)
    assert method.rollout(data, 3).input_ids_BT.tolist() == first
    assert method.rollout(data, 4).input_ids_BT.tolist() != first


def test_a_batch_without_targets_takes_part_and_stays_without():
    context = PreferenceContext(COMPLETIONS)
    method = method_on(context)
    (data,) = micro_batches(context)
    data.target_mask_BT[:] = False
    batch = method.rollout(data, 0)
    assert len(context.sampled) == 1 and method.count(batch) == 0
    assert method.loss(forward_of(method, context, batch)).sum.item() == 0


def test_training_finds_what_is_rewarded():
    prompts = encoded([(f"{word} {number}:", " 1") for word in ("copy", "flip") for number in range(4)])
    context = PreferenceContext(prompts, byte_llama(0), byte_llama(0))
    method = method_on(context, beta=0.1, max_new_tokens=2, samples=4)
    (data,) = micro_batches(context)
    optimizer = torch.optim.Adam(context.model.parameters(), lr=2e-2)
    rewards = []
    for step in range(16):
        written = [response for group in method.responses_to(data, step) for response in group]
        assert all(EOS not in response[:-1] for response in written)
        texts = [context.tokenizer.decode(response, skip_special_tokens=True) for response in written]
        rewards.append(sum(letters(texts, texts)) / len(texts))
        loss = method.loss(forward_of(method, context, method.rollout(data, step)))
        optimizer.zero_grad()
        (loss.sum / 8).backward()
        optimizer.step()
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.2


@pytest.mark.parametrize(("key", "value"), [
    ("beta", 0.0), ("samples", 1), ("negatives", 0), ("kernel", "best"), ("reference", "cached"),
])  # fmt: skip
def test_out_of_range(key, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(OnMcPoConfig).validate_python({"reward": REWARD, key: value})
    assert caught.value.errors()[0]["loc"][0] == key
