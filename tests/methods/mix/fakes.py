"""A run's context for tests of methods and parts: one process, one model, nothing cached."""

from types import SimpleNamespace

import numpy as np
import torch

from evals.byte_tokenizer import byte_tokenizer
from methods.examples import Examples
from methods.generation import generate
from methods.kinds.causal import Causal
from tests.models import tiny_llama

TOKENIZER = byte_tokenizer()
BOS, EOS, PAD = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id


def byte_llama(seed=0, **changes):
    """A tiny Llama that reads bytes."""
    return tiny_llama(seed, vocab_size=len(TOKENIZER), max_position_embeddings=256, **changes)


def encoded(texts, loss_on="completion"):
    """Examples of (prompt, completion), as the runner tokenises them."""
    prompts = [TOKENIZER(prompt)["input_ids"] for prompt, _ in texts]
    wholes = [[*TOKENIZER(prompt + completion)["input_ids"], EOS] for prompt, completion in texts]
    return Examples.of(wholes, [1 if loss_on == "all" else len(prompt) for prompt in prompts])


class FakeContext:
    """`written`: what `generate` returns in place of the model's own continuations (token ids)."""

    kind = Causal()
    seed = 3

    def __init__(self, model=None, texts=(), written=None, loss_on="completion", **config):
        self.model, self.texts, self.written = model, list(texts), written
        self.tokenizer = TOKENIZER
        self.examples = encoded(self.texts, loss_on) if texts else Examples.of([], [])
        self.config = {
            "dataset": {"add_eos": True, "loss_on": loss_on},
            "training": {"max_length": None},
            "engine": {"zero_stage": 0},
            "adapter": {"_target_": None},
            **config,
        }
        self.roles = {"policy": model}
        self.asked = []  # of `generate`
        self.sampled = []
        self.decided = []

    def role(self, name):
        return self.roles[name]

    def steps(self, what, total):
        return iter(range(total))

    def unsharded(self):
        return self.model

    def share_of(self, full):
        return {name: value.flatten() for name, value in full.items()}

    @property
    def trained_parameters(self):
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def trained_names(self):
        return [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def cached(self, what, decides, make):
        self.decided.append((what, dict(decides)))
        return dict(make())

    def generate(self, what, prompts, sampling, batch_size):
        prompts = [list(prompt) for prompt in prompts]
        self.asked.append(SimpleNamespace(what=what, prompts=prompts, sampling=sampling, batch_size=batch_size))
        written = self.written
        if written is None:
            written = []
            for begin in range(0, len(prompts), batch_size):
                written += generate(self.model, prompts[begin : begin + batch_size], sampling, seed=begin)
        return Examples.of([[*p, *w] for p, w in zip(prompts, written, strict=True)], [len(p) for p in prompts])

    def tokenized(self, dataset):
        self.asked.append(dataset)
        return Examples.of([[BOS, 1, 2, EOS], [BOS, 3, EOS]], [1, 1])

    def sample(self, role, prompts, sampling, seed):
        self.sampled.append(SimpleNamespace(role=role, prompts=prompts, sampling=sampling, seed=seed))
        return generate(self.roles[role], prompts, sampling, seed)

    @torch.no_grad()
    def follow(self, role, leader, rate):
        led = zip(self.roles[role].parameters(), self.roles[leader].parameters(), strict=True)
        for own, other in led:
            own.copy_((1 - rate) * own + rate * other)


def lists(examples):
    """The sequences of examples, as lists."""
    return [examples.sequence(index).tolist() for index in range(len(examples))]


def target_positions(examples):
    """Number of tokens that carry loss in each sequence."""
    return np.asarray(examples.lengths - examples.targets)
