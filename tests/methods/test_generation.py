"""Sampling from a model: what is drawn, from which distribution, and that nothing else has a say in it."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from scipy import stats
from transformers import GenerationConfig

from methods.adapter.lora import Lora, LoraConfig
from methods.generation import Sampling, generate, write
from tests.models import PAD, VOCABULARY, tiny_llama

EOS = 1
PROMPTS = [[5], [7, 9, 11, 13], [3, 3], [8, 2, 30, 4, 6, 12, 10]]


def sampling(**changes):
    return Sampling(**{"max_new_tokens": 10, "eos": EOS, "pad": PAD, **changes})


def argmax_loop(model, prompt, steps):
    """Greedy continuation, every token by a whole forward pass without a cache."""
    tokens = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt) :]


def next_logits(model, prompt):
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt])).logits[0, -1].double()


def chi_square(counts, probabilities):
    """p-value of counts under probabilities; what is expected fewer than five times is one class."""
    expected = counts.sum() * probabilities
    often = expected >= 5
    seen, wanted = [[*values[often], values[~often].sum()] for values in (counts, expected)]
    if wanted[-1] < 5:
        seen, wanted = [[*values[:-2], values[-2] + values[-1]] for values in (seen, wanted)]
    return stats.chisquare(seen, wanted).pvalue


def test_deterministic_by_seed_whatever_the_global_generator():
    model = tiny_llama()
    torch.manual_seed(1)
    first = generate(model, PROMPTS, sampling(), seed=4)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert generate(model, PROMPTS, sampling(), seed=4) == first
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator stays as it was"
    assert generate(model, PROMPTS, sampling(), seed=5) != first


def test_mode_and_settings_of_the_model_come_back():
    model = tiny_llama()
    own = model.generation_config
    assert model.training
    generate(model, PROMPTS, sampling(), seed=0)
    assert model.training and model.generation_config is own
    model.eval()
    with pytest.raises(IndexError):
        generate(model, [[VOCABULARY + 5]], sampling(), seed=0)
    assert not model.training and model.generation_config is own, "also after a failure"


def test_own_generation_settings_do_not_count():
    """A model that ships temperature 0.1 and top_k 1 (and more) is sampled as if it did not."""
    plain, tempered = tiny_llama(), tiny_llama()
    tempered.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, top_p=0.5, repetition_penalty=2.0, max_length=5, eos_token_id=[2, 3]
    )
    prompts = PROMPTS * 10
    expected = generate(plain, prompts, sampling(), seed=0)
    assert generate(tempered, prompts, sampling(), seed=0) == expected
    assert len({tuple(row) for row in expected[::4]}) > 1, "with top_k 1 all would be the same"
    greedy = sampling(temperature=0)
    assert generate(tempered, PROMPTS, greedy, seed=0) == generate(plain, PROMPTS, greedy, seed=0)


@pytest.mark.parametrize("seed", range(3))
def test_greedy_equals_a_loop_without_cache(seed):
    model = tiny_llama(seed).eval()
    found = generate(model, PROMPTS, sampling(temperature=0, max_new_tokens=20), seed=0)
    assert found == [argmax_loop(model, prompt, 20) for prompt in PROMPTS]


def test_left_padding_changes_nothing():
    """Prompts of different lengths are continued alike alone and in a batch."""
    model = tiny_llama(3)
    greedy = sampling(temperature=0, max_new_tokens=16)
    together = generate(model, PROMPTS, greedy, seed=0)
    assert together == [generate(model, [prompt], greedy, seed=0)[0] for prompt in PROMPTS]


def test_padding_token_in_a_prompt_is_a_token():
    """What is padding is said by the mask, not by the token."""
    model = tiny_llama(1).eval()
    prompts = [[5, PAD, 6], [PAD, PAD, 5, 9, 4]]
    found = generate(model, prompts, sampling(temperature=0), seed=0)
    assert found == [argmax_loop(model, prompt, 10) for prompt in prompts]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_tempered_model(temperature):
    """Chi-square test of 8000 first tokens against softmax(logits / T)."""
    model, prompt, draws = tiny_llama(5).eval(), [9, 4, 20], 8000
    one = sampling(max_new_tokens=1, temperature=temperature)
    tokens = [row[0] for row in generate(model, [prompt] * draws, one, seed=11)]
    counts = np.bincount(tokens, minlength=VOCABULARY)
    logits = next_logits(model, prompt)
    assert chi_square(counts, (logits / temperature).softmax(-1).numpy()) > 1e-3
    assert chi_square(counts, (logits / (1.3 * temperature)).softmax(-1).numpy()) < 1e-6, "that can fail"


def test_second_token_is_drawn_given_the_first():
    """The pair's frequencies are p(z1) p(z2|z1): the cache feeds back what was drawn."""
    model, prompt, draws = tiny_llama(5, vocab_size=4).eval(), [3], 6000
    rows = generate(model, [prompt] * draws, Sampling(max_new_tokens=2, eos=99, pad=0), seed=2)
    first = next_logits(model, prompt).softmax(-1)
    joint = torch.stack([first[token] * next_logits(model, [3, token]).softmax(-1) for token in range(4)])
    counts = np.bincount([4 * a + b for a, b in rows], minlength=16)
    assert chi_square(counts, joint.flatten().numpy()) > 1e-3
    assert chi_square(counts, joint.T.flatten().numpy()) < 1e-6, "that can fail"


def test_top_k_and_top_p_cut():
    model, prompt = tiny_llama(5).eval(), [9, 4, 20]
    probabilities, order = next_logits(model, prompt).softmax(-1).sort(descending=True)
    one = {"max_new_tokens": 1, "temperature": 1.0}
    seen = {row[0] for row in generate(model, [prompt] * 500, sampling(**one, top_k=2), seed=0)}
    assert seen == set(order[:2].tolist())
    inside = int((probabilities.cumsum(0) < 0.6).sum()) + 1
    seen = {row[0] for row in generate(model, [prompt] * 500, sampling(**one, top_p=0.6), seed=0)}
    assert seen <= set(order[:inside].tolist()) and len(seen) > 1


def test_nothing_is_cut_unless_asked():
    """transformers' own default keeps 50 tokens; of a flat distribution over 200, most are seen."""
    model = tiny_llama(vocab_size=200, initializer_range=1e-3)
    drawn = generate(model, [[5]] * 2000, sampling(max_new_tokens=1, eos=999), seed=0)
    assert len({row[0] for row in drawn}) > 190


def test_eos_ends_a_continuation_and_is_kept():
    model, pad = tiny_llama(2), EOS
    for settings in (sampling(max_new_tokens=30), sampling(max_new_tokens=30, pad=pad)):
        found = generate(model, PROMPTS * 30, settings, seed=0)
        ended = [row for row in found if EOS in row]
        assert len(ended) > 0
        assert all(row.index(EOS) == len(row) - 1 for row in ended), "nothing after EOS"
        assert all(len(row) == 30 for row in found if EOS not in row), "else up to the limit"
        assert len({len(row) for row in ended}) > 1


def test_an_adapted_model_is_sampled_like_its_merged_one():
    """The generation settings of a model inside an adapter do not count either, and stay what they were."""
    adapted = Lora(LoraConfig(rank=2, alpha=2.0, target_modules=["q_proj"])).apply(tiny_llama(), seed=0)
    inner = adapted.base_model.model
    own = GenerationConfig(do_sample=True, temperature=0.1, top_k=1)
    inner.generation_config = own
    assert generate(adapted, PROMPTS, sampling(), seed=0) == generate(tiny_llama(), PROMPTS, sampling(), seed=0)
    assert inner.generation_config is own and adapted.generation_config is own


def test_a_zero_temperature_ignores_the_seed():
    model = tiny_llama()
    greedy = sampling(temperature=0)
    assert generate(model, PROMPTS, greedy, seed=0) == generate(model, PROMPTS, greedy, seed=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_warned_about(temperature, caplog, recwarn):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        transformers.logging.set_verbosity_warning()
        generate(tiny_llama(), PROMPTS, sampling(temperature=temperature), seed=0)
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records and not list(recwarn)


def test_written_says_how_likely_each_token_was():
    """Log-probabilities of one pass without a cache over the whole sequence, at the temperature."""
    model = tiny_llama()
    found = write(model, PROMPTS, sampling(temperature=0.7, top_p=0.8), seed=3, logps=True)
    for prompt, written in zip(PROMPTS, found, strict=True):
        assert len(written.logps) == len(written.tokens)
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([prompt + written.tokens])).logits[0, len(prompt) - 1 : -1]
        logps = torch.log_softmax(logits / 0.7, dim=-1)
        expected = logps[range(len(written.tokens)), written.tokens]
        torch.testing.assert_close(torch.tensor(written.logps), expected, atol=2e-5, rtol=0)
        assert written.ended == (EOS in written.tokens)


def test_a_stop_text_ends_a_continuation():
    """It is kept, what follows is not, and one in the prompt does not count."""
    from runners.models import load_tokenizer

    tokenizer = load_tokenizer({"tokenizer": "bytes"}, None)
    model = tiny_llama(vocab_size=len(tokenizer))
    prompts = [tokenizer(text)["input_ids"] for text in ("a;b", "xyz", "q")] * 8
    plain = sampling(max_new_tokens=40, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id)
    free = write(model, prompts, plain, seed=0, tokenizer=tokenizer)
    some = next(
        letter
        for letter in "cfghijklmnqrtuvwxyz"  # in no special token's name
        if any(tokenizer(letter)["input_ids"][-1] in row.tokens[2:-1] for row in free)
    )
    prompts[0] = tokenizer(some + "a")["input_ids"]
    free = write(model, prompts, plain, seed=0, tokenizer=tokenizer)
    stopped = write(model, prompts, replace(plain, stop=(some,)), seed=0, tokenizer=tokenizer)
    assert any(a.tokens != b.tokens for a, b in zip(free, stopped, strict=True))
    for written in stopped:
        text = tokenizer.decode(written.tokens, skip_special_tokens=True)
        assert some not in text[: -len(some)]
        assert written.ended == (text.endswith(some) or written.tokens[-1] == plain.eos)
    assert len(stopped[0].tokens) > 1
