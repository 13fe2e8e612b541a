"""What online methods share: groups of prompts, batches of written responses, their rewards, seeds."""

import math
from dataclasses import dataclass

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.preference.online import (
    Online,
    OnlineConfig,
    OnlinePairsConfig,
    grouped,
    pair_loss,
)
from methods.writing import draw_seed, prompt_places, sampling_of
from tests.methods.mix.fakes import BOS, EOS, PAD, TOKENIZER, encoded
from tests.methods.preference.given import (
    PreferenceContext,
    forward_of,
    grouped_texts,
    micro_batches,
    started,
)

PAIRS = grouped_texts([("copy 12:", [" 12", " 21"]), ("sort 321:", [" 123", " 3"])], [1.0, 0.0, 1.0, 0.0])
COMPLETIONS = encoded([("copy 12:", " 12"), ("sort 321:", " 123"), ("flip 7:", " 7")])
REWARD = {"function": f"{__name__}.most_sevens"}
ASKED = []


def most_sevens(prompts, responses):
    """The share of 7s; notes what it was asked."""
    ASKED.append(list(zip(prompts, responses, strict=True)))
    return [response.count("7") / max(len(response), 1) for response in responses]


@dataclass(frozen=True, kw_only=True)
class TwoConfig(OnlineConfig):
    """Nothing more."""


class Two(Online):
    """Two responses to each prompt, which the test says."""

    config: TwoConfig
    written = ()

    def responses_to(self, batch, step):
        """As they are."""
        return [[list(response) for response in group] for group in self.written]


class BestFirst(Two):
    """The same, sorted."""

    best_first = True


def method_on(context, class_=Two, **settings):
    return started(class_(TwoConfig(reward=REWARD, **{"max_new_tokens": 4, **settings})), context)


def ids(text, eos=True):
    return [*TOKENIZER(text, add_special_tokens=False)["input_ids"], *([EOS] if eos else [])]


# Groups ---------------------------------------------------------------------------------------------------------------


def test_grouped_by_hand():
    batch = grouped([[5, 6], [7]], [[[8], [9, 10]], [[11, 12, 13]]], torch.tensor([4, 2]), [[1.0, 0.5], [-2.0]])
    assert batch.input_ids_BT.tolist() == [[5, 6, 8, 0], [5, 6, 9, 10], [7, 11, 12, 13]]
    assert batch.target_mask_BT.tolist() == [
        [False, False, True, False], [False, False, True, True], [False, True, True, True],
    ]  # fmt: skip
    assert batch.group_S.tolist() == [0, 0, 1] and batch.example_S.tolist() == [4, 4, 2]
    assert batch.label_S.tolist() == [1.0, 0.5, -2.0] and batch.group_count == 2


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("examples", [PAIRS, COMPLETIONS], ids=["pairs", "completions"])
def test_prompts_are_those_of_groups(examples, packing):
    """Of completions, which come in no groups, each has its own."""
    context = PreferenceContext(examples)
    (batch,) = micro_batches(context, packing=packing)
    groups = examples.groups.tolist()[:-1]
    assert sorted(batch.example_S[prompt_places(batch)].tolist()) == groups


def test_seeds():
    assert draw_seed(1, 2, 3) == draw_seed(1, 2, 3)
    assert len({draw_seed(1, 2, 3), draw_seed(1, 3, 2), draw_seed(2, 2, 3), draw_seed(1, 2, 3, 0)}) == 4


def test_sampling():
    sampling = sampling_of(TOKENIZER, 7, 0.5, 0.9)
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.5, 0.9, 0)
    assert (sampling.eos, sampling.pad) == (EOS, PAD)


# Rewards --------------------------------------------------------------------------------------------------------------


def test_the_reward_sees_texts_without_special_tokens():
    context = PreferenceContext(PAIRS)
    method = method_on(context)
    (data,) = micro_batches(context)
    firsts = data.example_S[prompt_places(data)].tolist()
    method.written = [[ids("77"), ids("7a")], [ids("b"), [EOS]]]
    ASKED.clear()
    batch = method.rollout(data, 0)
    prompts = ["copy 12:" if first == 0 else "sort 321:" for first in firsts]
    first, second = prompts
    (asked,) = ASKED
    assert asked == [(first, "77"), (first, "7a"), (second, "b"), (second, "")]
    assert batch.label_S.tolist() == [1.0, 0.5, 0.0, 0.0]
    assert batch.group_S.tolist() == [0, 0, 1, 1] and method.count(batch) == 2
    assert batch.input_ids_BT[0, 0] == BOS and batch.input_ids_BT[0][batch.target_mask_BT[0]].tolist() == ids("77")


@pytest.mark.parametrize(("penalty", "expected"), [(None, [1.0, 1.0, 0.0, 0.5]), (0.25, [1.0, 0.75, -0.25, 0.5])])
def test_a_response_without_an_end_can_cost(penalty, expected):
    context = PreferenceContext(PAIRS)
    method = method_on(context, missing_eos_penalty=penalty)
    method.written = [[ids("77"), ids("7777", eos=False)], [ids("abcd", eos=False), ids("7a")]]
    (data,) = micro_batches(context)
    assert method.rollout(data, 0).label_S.tolist() == expected


def test_the_best_can_come_first():
    """Of equal ones the first; the others keep their order."""
    context = PreferenceContext(PAIRS)
    method = method_on(context, BestFirst)
    method.written = [[ids("a"), ids("7a"), ids("77"), ids("777")], [ids("b"), ids("c")]]
    (data,) = micro_batches(context)
    batch = method.rollout(data, 0)
    assert batch.label_S.tolist() == [1.0, 0.0, 0.5, 1.0, 0.0, 0.0]
    rows = zip(batch.input_ids_BT, batch.target_mask_BT, strict=True)
    texts = [TOKENIZER.decode(row[mask][:-1]) for row, mask in rows]
    assert texts == ["77", "a", "7a", "777", "b", "c"]


def test_what_is_logged_of_the_responses():
    context = PreferenceContext(PAIRS)
    method = method_on(context, missing_eos_penalty=1.0)
    method.written = [[ids("77"), ids("7777", eos=False)], [ids("b"), ids("7aaa", eos=False)]]
    (data,) = micro_batches(context)
    batch = method.rollout(data, 0)
    metrics = method.written_metrics(method.responses(forward_of(method, context, batch)))
    told = {name: float(value) / 2 for name, value in metrics.items()}
    assert told["reward"] == pytest.approx((1 + 0 + 0 + (0.25 - 1)) / 4)
    assert told["ended"] == 0.5 and told["response_tokens"] == (3 + 4 + 2 + 4) / 4
    assert not any(value.requires_grad for value in metrics.values())


def test_a_batch_without_targets_is_not_graded():
    context = PreferenceContext(PAIRS)
    method = method_on(context)
    method.written = [[[EOS]], [[EOS]]]
    (data,) = micro_batches(context)
    data.target_mask_BT[:] = False
    ASKED.clear()
    assert method.rollout(data, 0) is data and ASKED == [] and method.count(data) == 0


# Before training ------------------------------------------------------------------------------------------------------


def test_a_reward_that_cannot_be_loaded():
    with pytest.raises(ValueError, match=r"^method\.reward=.*must name either a function or a model$"):
        started(Two(TwoConfig(reward={})), PreferenceContext(PAIRS))


def test_longer_than_the_model_takes():
    message = r"^method\.max_new_tokens=247: with the longest prompt that is 257 tokens, the model takes at most 256$"
    method_on(PreferenceContext(PAIRS), max_new_tokens=246)
    with pytest.raises(ValueError, match=message):
        method_on(PreferenceContext(PAIRS), max_new_tokens=247)


def test_the_reference_is_live_and_nothing_is_measured():
    context = PreferenceContext(PAIRS)
    context.measure = None
    assert method_on(context).frozen == ("reference",) and Two.couples == "micro-batch" and Two.prompted


def test_epochs():
    """Of two pairs a step, over three prompts."""
    context = PreferenceContext(COMPLETIONS, training={"batch_size": 2, "micro_batch_size": 2, "packing": False})
    method = method_on(context)
    assert [method.epoch(step) for step in range(5)] == [0, 0, 1, 1, 2]


def test_pair_loss():
    margin = torch.tensor([1.5]).double()
    assert pair_loss(margin, 0.1, "sigmoid").item() == pytest.approx(0.6209570478, abs=1e-10)
    assert pair_loss(margin, 0.1, "ipo").item() == pytest.approx(12.25)


@pytest.mark.parametrize(("key", "value"), [
    ("beta", 0.0), ("temperature", 0.0), ("top_p", 0.0), ("top_p", 1.1), ("max_new_tokens", 0), ("loss", "hinge"),
    ("missing_eos_penalty", -1.0), ("ties", "last"), ("reference", "cached"), ("beta", math.nan), ("reward", "rule"),
])  # fmt: skip
def test_out_of_range(key, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(OnlinePairsConfig).validate_python({"reward": REWARD, key: value})
    assert caught.value.errors()[0]["loc"][0] == key
