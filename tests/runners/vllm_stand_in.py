"""What a run asks of vLLM, by a transformers model: weights are joined, padded and named by their checkpoint's names.

It says nothing on vLLM itself. `LLM`, `SamplingParams` and what `generate` gives have the names that vLLM 0.22 to 0.31
have; other names fail.
"""

import importlib.machinery
import re
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

_JOINED = re.compile(r"(.*)\.(?:q|k|v)_proj\.(.*)"), re.compile(r"(.*)\.(?:gate|up)_proj\.(.*)")


@dataclass(kw_only=True)
class SamplingParams:
    """How tokens are drawn."""

    n: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    logprobs: int
    ignore_eos: bool
    stop_token_ids: list[int]
    stop: list[str] | None
    skip_special_tokens: bool


class Served(nn.Module):
    """Weights as a server holds them: q, k and v in one tensor, gate and up in one, the vocabulary padded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.places: dict[str, tuple[str, int, int]] = {}
        groups: dict[str, list[tuple[str, Tensor]]] = {}
        for name, value in model.named_parameters():
            found = next((match for pattern in _JOINED if (match := pattern.fullmatch(name))), None)
            key = f"{found[1]}.joined_{_JOINED[0].fullmatch(name) is not None}.{found[2]}" if found else name
            groups.setdefault(key, []).append((name, value))
        self.values = nn.ParameterDict()
        for key, members in groups.items():
            at = 0
            for name, value in members:
                self.places[name] = (key.replace(".", "/"), at, at + len(value))
                at += len(value)
            padded = -(-at // 64) * 64 if "embed" in key else at
            shape = (padded, *members[0][1].shape[1:])
            self.values[key.replace(".", "/")] = nn.Parameter(torch.randn(shape, dtype=value.dtype))

    @torch.no_grad()
    def load_weights(self, named: list[tuple[str, Tensor]]) -> None:
        for name, value in named:
            key, begin, end = self.places[name]
            own = self.values[key]
            own[begin:end] = value
            if "embed" in key:
                own[end:] = 0

    def weights(self) -> dict[str, Tensor]:
        return {name: self.values[key][begin:end] for name, (key, begin, end) in self.places.items()}


class LLM:
    """An engine."""

    made: ClassVar[list["LLM"]] = []

    def __init__(self, model: str, *, dtype: str, load_format: str, **settings: Any) -> None:
        assert load_format == "dummy" and settings["distributed_executor_backend"] == "external_launcher"
        self.settings, self.asked, self.resets = settings, [], 0
        self._model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=getattr(torch, dtype))
        self.served = Served(self._model.eval())
        runner = SimpleNamespace(model=self.served)
        worker = SimpleNamespace(model_runner=runner)
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
        LLM.made.append(self)

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    @torch.no_grad()
    def generate(self, prompts: list[dict[str, list[int]]], *, sampling_params: Any, use_tqdm: bool) -> list[Any]:
        self._model.load_state_dict(self.served.weights(), strict=False)
        self.asked += sampling_params
        return [self._one(one["prompt_token_ids"], how) for one, how in zip(prompts, sampling_params, strict=True)]

    def _one(self, prompt: list[int], how: SamplingParams) -> Any:
        generator = torch.Generator().manual_seed(how.seed)
        tokens: list[int] = []
        told: list[dict[int, Any]] = []
        while len(tokens) < how.max_tokens and tokens[-1:] != how.stop_token_ids:
            logits = self._model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1].float()
            logps = (logits / how.temperature).log_softmax(-1)
            token = int(torch.multinomial(logps.exp(), 1, generator=generator))
            tokens.append(token)
            told.append({token: SimpleNamespace(logprob=float(logps[token]), rank=1)})
        reason = "stop" if tokens[-1:] == how.stop_token_ids else "length"
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, logprobs=told, finish_reason=reason)])


def module() -> ModuleType:
    """To be put in the place of vllm."""
    found = ModuleType("vllm")
    found.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    found.LLM, found.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    LLM.made = []
    return found
