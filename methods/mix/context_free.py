"""Context-free synthetic data (CFS): train also on what the base model writes after the BOS token alone.

Bansal, Sanghavi: "Context-Free Synthetic Data Mitigates Forgetting", 2025, arXiv 2505.13811.

    L(theta) = E_{(x,y) in F}[-log p_theta(y|x)] + lambda E_{z ~ p*}[-log p_theta(z)]

p* is the base model. The second term is, up to a constant, KL(p* || p_theta): each z ~ p* gives an unbiased gradient
of it, if z is drawn as p* draws (temperature 1, nothing cut). It carries loss on all tokens after BOS; EOS is a label
where the model ended by itself, and is not added where the length limit cut.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from pydantic import NonNegativeFloat, PositiveInt

from methods.examples import Examples
from methods.generation import Sampling
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
        )


def context_free_samples(
    context: Context,
    samples: int,
    max_length: int,
    batch_size: int,
    *,
    start_token: str | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    group: str = "mix",
) -> Examples:
    """Sequences that begin with one BOS, drawn from the model that training starts from; loss on all that follows it.

    Args:
        context: of the run.
        samples, max_length, start_token, temperature, top_p, seed: as in `ContextFreeConfig`.
        batch_size: of the generation.
        group: of the part that asks for them, for its errors.

    Raises:
        ValueError: the tokenizer has no BOS token and none is named in its place.
    """
    tokenizer = context.tokenizer
    start = token_to_start_from(tokenizer, start_token, group)
    sampling = Sampling(
        max_new_tokens=max_length - 1,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        temperature=temperature,
        top_p=top_p,
    )
    return context.generate(f"context-free-{seed}", [[start]] * samples, sampling, batch_size)


def token_to_start_from(tokenizer: Any, start_token: str | None, group: str) -> int:
    """BOS, or the token named in its place where the tokenizer has none.

    Raises:
        ValueError: there is neither; `group` is that of the key `start_token`.
    """
    if tokenizer.bos_token_id is not None:
        return int(tokenizer.bos_token_id)
    if start_token is None:
        raise ValueError(
            f"{group}.start_token=null: the model's tokenizer has no BOS token to generate from; name one in its "
            f"place, such as {group}.start_token={tokenizer.eos_token!r}"
        )
    found = tokenizer.convert_tokens_to_ids(start_token)
    if found is None or found == tokenizer.unk_token_id:
        raise ValueError(f"{group}.start_token={start_token}: the tokenizer has no such token")
    return int(found)
