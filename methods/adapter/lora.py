"""LoRA: train a low-rank change of the weight matrices, and leave the weights themselves as they are.

Hu et al.: "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685. By the `peft` library.

    W = W0 + (alpha / r) B A,      A: r x in, Kaiming-uniform; B: out x r, zero

The change is merged into the weights when training has ended: what is evaluated and saved is a plain model.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from pydantic import PositiveFloat, PositiveInt
from torch import nn

from methods.adapter.base import Adapter


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """rank: r. alpha: scales the change by alpha / r. target_modules: last names of the modules that get one."""

    rank: PositiveInt = 64
    alpha: PositiveFloat = 64.0
    dropout: Annotated[float, Ge(0.0), Lt(1.0)] = 0.0
    target_modules: list[str] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # type: ignore[assignment]


class Lora(Adapter):
    """Low-rank adapters on the weight matrices, merged into them at the end."""

    config: LoraConfig
    kinds = ("causal",)

    def apply(self, model: nn.Module, seed: int) -> nn.Module:
        """The model with adapters, of which nothing else is trained; its output is that of `model`.

        Raises:
            ValueError: a target matches no linear module of the model.
        """
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        last = sorted({name.rpartition(".")[2] for name in names})
        for target in self.config.target_modules:
            if target not in last:
                raise ValueError(
                    f"adapter.target_modules={target}: matches no module of the model; it has {', '.join(last)}"
                )
        settings = PeftConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            target_modules=list(self.config.target_modules),
            task_type="CAUSAL_LM",
        )
        # The same start on every process and in every attempt.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted: Any = get_peft_model(model, settings)
        assert isinstance(adapted, nn.Module)
        return adapted

    def merge(self, model: nn.Module) -> nn.Module:
        """The plain model that computes what the adapted one does."""
        adapted: Any = model
        merged = adapted.merge_and_unload()
        assert isinstance(merged, nn.Module)
        return merged
