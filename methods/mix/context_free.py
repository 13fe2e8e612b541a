"""Context-free synthetic data (CFS): train also on what the base model writes after the BOS token alone.

Bansal, Sanghavi: "Context-Free Synthetic Data Mitigates Forgetting", 2025, arXiv 2505.13811.

    L(theta) = E_{(x,y) in F}[-log p_theta(y|x)] + lambda E_{z ~ p*}[-log p_theta(z)]

p* is the base model. The second term is, up to a constant, KL(p* || p_theta): each z ~ p* gives an unbiased gradient
of it, if z is drawn as p* draws (temperature 1, nothing cut). It carries loss on all tokens after BOS; EOS is a label
where the model ended by itself, and is not added where the length limit cut.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le
from pydantic import NonNegativeFloat, PositiveInt

from methods.context_free import context_free_samples
from methods.examples import Examples
from methods.method import Context
from methods.mix.base import Mix, MixConfig


@dataclass(frozen=True, kw_only=True)
class ContextFreeConfig(MixConfig):
    """samples, max_length: how many, of how many tokens at most (BOS and one more). start_token: if there is no BOS."""

    samples: PositiveInt
    max_length: Annotated[int, Ge(2)]
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Gt(0.0), Le(1.0)] = 1.0
    batch_size: PositiveInt = 64
    seed: int = 0
    start_token: str | None = None


class ContextFree(Mix):
    """Samples of the base model from BOS alone, trained on with loss on all tokens."""

    config: ContextFreeConfig

    def examples(self, context: Context) -> Examples:
        """Draw them, or take those that another run has drawn from the same model."""
        return context_free_samples(
            context,
            self.config.samples,
            self.config.max_length,
            self.config.batch_size,
            start_token=self.config.start_token,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            seed=self.config.seed,
            group="mix",
        )
