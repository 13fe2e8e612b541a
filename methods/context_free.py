"""What a model writes after the BOS token alone: samples of its own distribution over whole sequences.

Context-free synthetic data trains on them (`methods/mix/context_free.py`), EWC estimates the Fisher information on
them, and KL(base || tuned) is measured on them.
"""

from typing import Any

from methods.examples import Examples
from methods.generation import Sampling
from methods.method import Context


def context_free_samples(
    context: Context,
    samples: int,
    max_length: int,
    batch_size: int,
    *,
    group: str,
    start_token: str | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Examples:
    """Sequences that begin with one BOS, drawn from the model that training starts from; loss on all that follows it.

    Args:
        context: of the run.
        samples, max_length: how many, of how many tokens at most (BOS and one more).
        batch_size: of the generation.
        group: of the part that asks for them, for its errors.
        start_token: what to begin with where the tokenizer has no BOS.
        temperature, top_p: 1 and 1 draw as the model draws.
        seed: which samples.

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
