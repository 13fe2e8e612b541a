"""Text from a model: token sequences sampled after prompts, with nothing taken from the model's own defaults.

Legend: B prompts of a batch, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import StoppingCriteria, StoppingCriteriaList, StopStringCriteria


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    max_new_tokens: of a continuation, EOS included. temperature: 0 takes the likeliest token. top_p, top_k: 1 and 0
    leave the distribution as it is. eos: token that ends a continuation (it is kept). pad: any token. stop: texts that
    end one as well, kept up to the token that completes them.
    """

    max_new_tokens: int
    eos: int
    pad: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """A continuation.

    tokens: up to and with what ended it. ended: EOS or a stop text did, not `max_new_tokens`. logps: log-probability of
    each token under the model at the temperature, before top_p and top_k; empty where it was not asked for.
    """

    tokens: list[int]
    ended: bool
    logps: list[float]


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
    *,
    lockstep: bool = False,
    tokenizer: Any = None,
) -> list[list[int]]:
    """Continue every prompt; returns the continuations, each up to and with its EOS, if it came to one.

    Arguments as of `write`.
    """
    found = write(model, prompts, sampling, seed, lockstep=lockstep, tokenizer=tokenizer)
    return [written.tokens for written in found]


def write(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
    *,
    lockstep: bool = False,
    logps: bool = False,
    tokenizer: Any = None,
) -> list[Written]:
    """Continue every prompt.

    Args:
        model: a transformers model, or the DeepSpeed engine of one.
        prompts: token ids, none of them empty; they are continued as one batch.
        sampling: how.
        seed: of this batch; what else is random stays as it was.
        lockstep: other processes generate with the same sharded model: go on until all have ended.
        logps: whether the log-probabilities of what is drawn are wanted.
        tokenizer: needed for stop texts.
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
    ends = _Ends(width, sampling, tokenizer)
    drawn = _Drawn(sampling.temperature) if logps else None
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
                stopping_criteria=StoppingCriteriaList([ends]),
                logits_processor=LogitsProcessorList([drawn] if drawn else []),
            )
    finally:
        inner.train(was_training)
    most = output_BT.shape[1] - width
    told_BT = drawn.logps(output_BT[:, -1]).tolist() if drawn else [[]] * len(prompts)
    return [
        Written(row[: end or most], end > 0, told[: end or most])
        for row, told, end in zip(output_BT[:, width:].tolist(), told_BT, ends.lengths(len(prompts)), strict=True)
    ]


class _Ends(StoppingCriteria):
    """Where each continuation ends: at its first EOS, or where it has a stop text."""

    def __init__(self, width: int, sampling: Sampling, tokenizer: Any) -> None:
        self._width, self._eos = width, sampling.eos
        self._stop: Any = StopStringCriteria(tokenizer, list(sampling.stop)) if sampling.stop else None
        self._length_B: Tensor | None = None

    def __call__(self, input_ids_BT: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended_B = input_ids_BT[:, -1] == self._eos
        if self._stop is not None:
            # Of the continuation alone: a prompt may hold a stop text.
            ended_B = ended_B | self._stop(input_ids_BT[:, self._width :], scores)
        if self._length_B is None:
            self._length_B = torch.zeros_like(input_ids_BT[:, 0])
        first_B = ended_B & (self._length_B == 0)
        self._length_B = self._length_B + first_B * (input_ids_BT.shape[1] - self._width)
        return self._length_B > 0

    def lengths(self, count: int) -> list[int]:
        """Tokens up to the end of each of `count` continuations; 0 where there was none."""
        return [0] * count if self._length_B is None else self._length_B.tolist()


class _Drawn(LogitsProcessor):
    """Notes how likely each drawn token was; of one step's distributions at a time, since all would not fit."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature or 1.0
        self._last_BV: Tensor | None = None
        self._logps: list[Tensor] = []

    def __call__(self, input_ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        if self._last_BV is not None:
            self._note(input_ids_BT[:, -1])
        self._last_BV = F.log_softmax(scores_BV.float() / self._temperature, dim=-1)
        return scores_BV

    def _note(self, token_B: Tensor) -> None:
        assert self._last_BV is not None
        self._logps.append(self._last_BV.gather(-1, token_B.unsqueeze(-1)).squeeze(-1))

    def logps(self, last_B: Tensor) -> Tensor:
        """Of all steps, `last_B` being the tokens of the last. Returns [B, T]."""
        self._note(last_B)
        return torch.stack(self._logps, dim=1)


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


def prompt_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that something follows: without an EOS that the tokenizer may put behind them."""
    encoded = tokenizer(list(texts), return_attention_mask=False)["input_ids"]
    return [ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else list(ids) for ids in encoded]


def chat_prompt(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """Messages in the tokenizer's chat template, up to where the answer begins, without a BOS that it adds itself."""
    written: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return written.removeprefix(tokenizer.bos_token) if adds_bos(tokenizer) else written


def adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer begins every text with BOS."""
    return tokenizer.bos_token is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]


def most_tokens(model: nn.Module) -> int | None:
    """How many tokens a model takes at most, prompt and continuation together; None: it does not say."""
    inner: Any = getattr(model, "module", model)
    found = getattr(inner.config, "max_position_embeddings", None)
    return None if found is None else int(found)
