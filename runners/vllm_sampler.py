"""vLLM in the process of a trained model, on its GPU, which only writes (`engine.sampler=vllm`).

Each time the weights have moved they are handed over in memory, one after the other (gathered under ZeRO 3), in vLLM's
precision. vLLM joins and pads what it is given, which the sum of all weights' bits does not see: after every hand-over
the two sums are compared, so that a sampler that keeps old weights is found. How far the log-probabilities of both
differ is logged and gated besides (`methods/rl/base.py`).

vLLM is the extra `gpu`. It draws other tokens than `transformers` does with the same seed, so that, unlike
`engine.sampler=copy`, it is part of a run's identity.
"""

import contextlib
import copy
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from methods.generation import Sampling, Written
from methods.writing import draw_seed
from runners.engine import TrainingEngine, device
from runners.errors import UserError
from runners.sampler import checksum

_BITS = 1 << 64  # a checksum is a sum modulo this


def check_installed() -> None:
    """vLLM can be imported.

    Raises:
        UserError: it cannot.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "engine.sampler=vllm: vllm is not installed (pip install 'retable[gpu]' on a machine with a GPU); "
            "engine.sampler=copy writes with transformers"
        )


class VllmSampler:
    """A vLLM engine that follows a trained model's weights."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, engine: TrainingEngine, settings: Mapping[str, Any], longest: int
    ) -> None:
        """Start vLLM with the architecture of a model; its weights come with the first hand-over.

        Args:
            model: built like the one that is trained, without what a method or an adapter adds to it.
            tokenizer: of the model.
            engine: the trained role.
            settings: of the engine: precision and sampler_memory.
            longest: tokens of a prompt with its response.
        """
        import vllm

        self._vllm, self._engine = vllm, engine
        self._names = [name for name, _ in model.named_parameters()]
        self._at: int | None = None  # steps of the engine when it was handed over
        dtype = "float32" if settings["precision"] == "fp32" else "bfloat16"
        self._dtype: torch.dtype = getattr(torch, dtype)
        config = copy.deepcopy(model.config)
        config.architectures, config.dtype = [type(model).__name__], self._dtype  # type: ignore[union-attr]
        with tempfile.TemporaryDirectory() as folder, _launched(engine):
            config.save_pretrained(folder)  # type: ignore[operator,union-attr]
            tokenizer.save_pretrained(folder)
            self._llm = vllm.LLM(
                model=folder,
                load_format="dummy",
                dtype=dtype,
                max_model_len=longest,
                gpu_memory_utilization=settings["sampler_memory"],
                distributed_executor_backend="external_launcher",
                tensor_parallel_size=1,
                logprobs_mode="processed_logprobs",  # at the temperature, as the trainer's are
                generation_config="vllm",  # nothing of the model's own defaults
                trust_remote_code=False,
            )

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Written]:
        """Continue prompts with the weights that the engine has now; all processes ask together.

        Args:
            prompts: token ids, none of them empty.
            sampling: how; top_p and top_k must leave the distribution as it is.
            seed: of these prompts.

        Raises:
            UserError: the weights did not arrive.
        """
        steps = int(self._engine.engine.global_steps)
        if steps != self._at:
            self._hand_over()
            self._at = steps
        asked = [
            self._vllm.SamplingParams(
                n=1,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=draw_seed(seed, place),
                logprobs=0,  # of the token that was drawn
                ignore_eos=True,
                stop_token_ids=[sampling.eos],
                stop=list(sampling.stop) or None,
                skip_special_tokens=False,
            )
            for place in range(len(prompts))
        ]
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        found = self._llm.generate(given, sampling_params=asked, use_tqdm=False)
        return [_written(one.outputs[0]) for one in found]

    @torch.no_grad()
    def _hand_over(self) -> None:
        source: Any = self._engine.engine.module
        sharded = self._engine.zero_stage == 3
        trained = dict(source.named_parameters())
        served = self._llm.llm_engine.model_executor.driver_worker.model_runner.model
        total = 0
        for name in self._names:
            with deepspeed.zero.GatheredParameters([trained[name]], enabled=sharded):
                weights = trained[name].data.to(self._dtype)
                self._give(served, name, weights)
                total += checksum(weights)
        arrived = sum(checksum(weights.data) for _, weights in served.named_parameters())
        if total % _BITS != arrived % _BITS:
            raise UserError(
                "engine.sampler=vllm: its weights differ from the trained ones after they were handed over; "
                "engine.sampler=copy writes with transformers"
            )
        self._llm.reset_prefix_cache()  # what it holds was computed with the weights before

    @staticmethod
    def _give(served: Any, name: str, weights: Tensor) -> None:
        served.load_weights([(name, weights)])


@contextlib.contextmanager
def _launched(engine: TrainingEngine) -> Iterator[None]:
    """What a launcher tells a process, as vLLM asks for it while it starts, where nothing has told it."""
    told = {"RANK": engine.rank, "WORLD_SIZE": engine.world, "LOCAL_RANK": device().index or 0}
    missing = {name: str(value) for name, value in told.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _written(output: Any) -> Written:
    """A continuation; `output` has the tokens up to and with what ended it, and the log-probability of each."""
    tokens = list(output.token_ids)
    logps = [float(told[token].logprob) for token, told in zip(tokens, output.logprobs, strict=True)]
    return Written(tokens, output.finish_reason == "stop", logps)
