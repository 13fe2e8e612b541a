"""Text from a model: token sequences sampled after prompts, with nothing taken from the model's own defaults.

Legend: B prompts of a batch, T tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    max_new_tokens: of a continuation, EOS included. temperature: 0 takes the likeliest token. top_p, top_k: 1 and 0
    leave the distribution as it is. eos: token that ends a continuation (it is kept). pad: any token.
    """

    max_new_tokens: int
    eos: int
    pad: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def generate(
    model: nn.Module, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, *, lockstep: bool = False
) -> list[list[int]]:
    """Continue every prompt; returns the continuations, each up to and with its EOS, if it came to one.

    Args:
        model: a transformers model, or the DeepSpeed engine of one.
        prompts: token ids, none of them empty; they are continued as one batch.
        sampling: how.
        seed: of this batch; what else is random stays as it was.
        lockstep: other processes generate with the same sharded model: go on until all have ended.
    """
    inner: Any = getattr(model, "module", model)
    device = next(inner.parameters()).device
    width = max(len(prompt) for prompt in prompts)
    input_ids_BT = torch.full((len(prompts), width), sampling.pad, dtype=torch.long)
    attention_mask_BT = torch.zeros_like(input_ids_BT)
    for row, prompt in enumerate(prompts):
        input_ids_BT[row, width - len(prompt) :] = torch.tensor(list(prompt))
        attention_mask_BT[row, width - len(prompt) :] = 1
    greedy = sampling.temperature == 0
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=not greedy,
        temperature=None if greedy else sampling.temperature,
        top_p=None if greedy else sampling.top_p,
        top_k=None if greedy else sampling.top_k,
        eos_token_id=sampling.eos,
        pad_token_id=sampling.pad,
        bos_token_id=None,
        use_cache=True,
    )
    was_training = inner.training
    inner.eval()
    try:
        with (
            torch.no_grad(),
            _without_own_defaults(inner),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            torch.manual_seed(seed)
            output_BT = inner.generate(
                input_ids=input_ids_BT.to(device),
                attention_mask=attention_mask_BT.to(device),
                generation_config=settings,
                synced_gpus=lockstep,
            )
    finally:
        inner.train(was_training)
    return [_until(row, sampling.eos) for row in output_BT[:, width:].tolist()]


@contextmanager
def _without_own_defaults(model: nn.Module) -> Iterator[None]:
    """A model of the hub may ship a temperature of its own, which must not reach what is sampled here.

    The settings lie in the model itself, which may be inside an adapter's.
    """
    own = {
        module: vars(module)["generation_config"] for module in model.modules() if "generation_config" in vars(module)
    }
    try:
        for module in own:
            vars(module)["generation_config"] = GenerationConfig()
        yield
    finally:
        for module, settings in own.items():
            vars(module)["generation_config"] = settings


def _until(tokens: list[int], eos: int) -> list[int]:
    """Up to the first EOS and with it; what follows is padding."""
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens


def prompt_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that something follows: without an EOS that the tokenizer may put behind them."""
    encoded = tokenizer(list(texts), return_attention_mask=False)["input_ids"]
    return [ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else list(ids) for ids in encoded]


def most_tokens(model: nn.Module) -> int | None:
    """How many tokens a model takes at most, prompt and continuation together; None: it does not say."""
    inner: Any = getattr(model, "module", model)
    found = getattr(inner.config, "max_position_embeddings", None)
    return None if found is None else int(found)
