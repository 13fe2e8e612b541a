"""Contextual synthetic data: train also on the base model's own answers to the prompts of the fine-tuning data.

What context-free synthetic data is compared with (Bansal, Sanghavi, arXiv 2505.13811):

    L(theta) = E_{(x,y) in F}[-log p_theta(y|x)] + lambda E_{x in F, y' ~ p*(.|x)}[-log p_theta(y'|x)]

It estimates KL(p*(.|x) || p_theta(.|x)) on the prompts of F, and says nothing about other contexts.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le
from pydantic import NonNegativeFloat, PositiveInt

from methods.examples import Examples
from methods.generation import Sampling
from methods.method import Context
from methods.mix.base import Mix, MixConfig


@dataclass(frozen=True, kw_only=True)
class ContextualSyntheticConfig(MixConfig):
    """samples: prompts answered, drawn without replacement (all of them if there are fewer)."""

    samples: PositiveInt
    max_new_tokens: PositiveInt
    temperature: NonNegativeFloat = 0.7
    top_p: Annotated[float, Gt(0.0), Le(1.0)] = 0.9
    batch_size: PositiveInt = 64
    seed: int = 0


class ContextualSynthetic(Mix):
    """The base model's own answers to the fine-tuning prompts, trained on beside the data set's."""

    config: ContextualSyntheticConfig
    prompted = True
    data = ("completion",)

    def examples(self, context: Context) -> Examples:
        """Answer the prompts, or take what another run has answered with the same model."""
        data, config = context.examples, self.config
        generator = np.random.Generator(np.random.PCG64(config.seed))
        chosen = generator.permutation(len(data))[: config.samples]
        sampling = Sampling(
            max_new_tokens=config.max_new_tokens,
            eos=context.tokenizer.eos_token_id,
            pad=context.tokenizer.pad_token_id,
            temperature=config.temperature,
            top_p=config.top_p,
        )
        prompts = [data.prompt(int(index)).tolist() for index in chosen]
        return context.generate(f"contextual-{config.seed}", prompts, sampling, config.batch_size)
