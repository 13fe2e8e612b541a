"""Contextual synthetic data: the model's own answers to prompts of the data set."""

import pytest
from pydantic import TypeAdapter, ValidationError

from methods.mix.contextual_synthetic import ContextualSynthetic, ContextualSyntheticConfig
from tests.methods.mix.fakes import EOS, TOKENIZER, FakeContext, byte_llama, lists

TEXTS = [(f"copy {number}:", f" {number}") for number in range(10, 22)]
PROMPTS = [TOKENIZER(prompt)["input_ids"] for prompt, _ in TEXTS]


def mixed(context, **settings):
    mix = ContextualSynthetic(ContextualSyntheticConfig(**{"samples": 5, "max_new_tokens": 4, **settings}))
    return mix.examples(context)


def test_prompts_without_their_answers_and_loss_on_what_is_written():
    context = FakeContext(byte_llama(), TEXTS, written=[[5, 6, EOS], [7], [8, 8], [EOS], [9]])
    examples = mixed(context)
    (asked,) = context.asked
    assert len(asked.prompts) == 5 and all(prompt in PROMPTS for prompt in asked.prompts)
    assert len({tuple(prompt) for prompt in asked.prompts}) == 5, "without replacement"
    for sequence, target, prompt, written in zip(
        lists(examples), examples.targets, asked.prompts, context.written, strict=True
    ):
        assert sequence == [*prompt, *written] and target == len(prompt)


def test_by_default_as_the_baselines_code_samples():
    context = FakeContext(byte_llama(), TEXTS)
    mixed(context)
    sampling = context.asked[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.eos) == (0.7, 0.9, 0, EOS)


def test_all_prompts_where_there_are_fewer():
    context = FakeContext(byte_llama(), TEXTS)
    assert len(mixed(context, samples=100)) == len(TEXTS)
    assert sorted(context.asked[0].prompts) == sorted(PROMPTS)


def test_seed_chooses_prompts():
    asked = []
    for seed in (0, 0, 1):
        context = FakeContext(byte_llama(), TEXTS)
        mixed(context, seed=seed)
        asked.append((context.asked[0].what, context.asked[0].prompts))
    assert asked[0] == asked[1]
    assert asked[0][0] != asked[2][0] and asked[0][1] != asked[2][1]


@pytest.mark.parametrize(("key", "value"), [("top_p", 0.0), ("top_p", 1.5), ("ratio", -1.0), ("max_new_tokens", 0)])
def test_out_of_range(key, value):
    settings = {"samples": 1, "max_new_tokens": 2}
    assert TypeAdapter(ContextualSyntheticConfig).validate_python(settings)
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(ContextualSyntheticConfig).validate_python({**settings, key: value})
    assert caught.value.errors()[0]["loc"] == (key,)
