"""Tiny models and data for tests of training: seconds, not minutes."""

from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from methods.examples import Examples
from runners.batches import Batches

VOCABULARY = 32
PAD = 0


def tiny_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A Llama of some ten thousand parameters."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, **changes,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**settings)).train()


def random_examples(count: int = 12, seed: int = 0, shortest: int = 4, longest: int = 14) -> Examples:
    """Sequences of random tokens; a prompt of one to three tokens carries no loss."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(shortest, longest + 1, count)
    tokens = generator.integers(1, VOCABULARY, int(lengths.sum())).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Examples(tokens, starts, generator.integers(1, 4, count))


def batches_of(
    examples: Examples,
    *,
    batch_size: int = 12,
    micro: int = 12,
    packing: bool = False,
    row_length: int = 32,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    """The batches of one process, alone or one of several."""
    return Batches(examples, batch_size, micro, packing, row_length, PAD, seed, rank, world)
