"""Linear probe: SFT that trains the output head alone; more generally, SFT of the parameters that are named.

The baseline of FLOW's tables (arXiv 2502.02797) that leaves the representation as it is. For a language model the head
is `lm_head`, for an image classifier its last linear layer, and batch norms that are not trained keep their statistics.

Many models have one weight for the head and the input embeddings. Where only one of the two is to be trained, the head
first gets a copy of its own, and the configuration says so, so that the saved model loads as it was trained.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from methods.finetune.sft import Sft, SftConfig
from methods.kinds.image import Image


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig(SftConfig):
    r"""train: regular expressions of the names of the trained parameters; null: the output head.

    Each must match a whole name, so that none trains more than it says: `layers.1` matches none,
    `model\.layers\.1\..*` the parameters of one layer, `.*norm.*` those of all norms.
    """

    train: list[str] | None = None

    def __post_init__(self) -> None:
        if self.train is not None and not self.train:
            raise ValueError("method.train must hold at least one pattern, got []; null is the output head")
        for pattern in self.train or []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"method.train must hold regular expressions, got {pattern!r}: {error}") from error


def chosen_names(names: list[str], patterns: list[str]) -> list[str]:
    """The names that a pattern matches as a whole, in their order.

    Raises:
        ValueError: a pattern matches none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if re.fullmatch(pattern, name)}
        if not matched:
            raise ValueError(
                f"method.train={pattern}: must match the whole name of a parameter, got no match among {len(names)}, "
                f"such as {', '.join(dict.fromkeys([*names[:2], *names[-2:]]))}"
            )
        chosen |= matched
    return [name for name in names if name in chosen]


def output_head(model: Any) -> Any:
    """The layer that gives the logits: `lm_head`, or of an image classifier its last linear layer."""
    return model.get_output_embeddings() or Image.head(model)


def untie(model: Any) -> None:
    """Give a model's output head a copy of its own of the weight that it shares with the input embeddings."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    # Read from the configuration when the model was built; the new one holds no such pair.
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


class LinearProbe(Sft):
    """Linear probe: SFT of the output head alone, or of the parameters that `train` names."""

    config: LinearProbeConfig
    excludes: ClassVar[Mapping[str, str]] = {
        "adapter=lora": "LoRA freezes all weights and trains its own; a linear probe says which weights are trained",
    }

    def shape(self, model: nn.Module) -> None:
        """Freeze what is not chosen; a head that is tied to the input embeddings may get a weight of its own."""
        # A tied weight has two names, and either can be asked for.
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        head = output_head(model)
        of_head = [name for name in names if model.get_submodule(name.rpartition(".")[0]) is head]
        chosen = of_head if self.config.train is None else chosen_names(names, self.config.train)
        tied = {name for name in names if model.get_parameter(name) is head.weight}
        if 0 < len(tied.intersection(chosen)) < len(tied):
            untie(model)
        model.requires_grad_(False)
        for name in chosen:
            model.get_parameter(name).requires_grad_(True)
        for module in model.modules():
            if isinstance(module, _BatchNorm) and not any(value.requires_grad for value in module.parameters()):
                module.register_forward_pre_hook(_evaluating)


def _evaluating(module: nn.Module, _inputs: Any) -> None:
    """A frozen batch norm stays as it was trained: it takes no part in what training changes in its statistics."""
    module.eval()
