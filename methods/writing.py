"""What a policy writes while it is trained: the prompts of a batch, how responses are drawn, and with which seed.

Legend: G groups of a micro-batch (each of one prompt), S sequences.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.batch import Batch
from methods.examples import Examples
from methods.generation import Sampling, most_tokens
from methods.method import Context


def prompt_places(batch: Batch) -> Tensor:
    """The first sequence of each group, whose prompt is the group's. Returns long [G]."""
    if batch.group_S is None:
        return torch.arange(len(batch.example_S), device=batch.example_S.device)
    before_S = F.pad(batch.group_S[:-1], (1, 0), value=-1)
    return (batch.group_S != before_S).nonzero().squeeze(-1)


def prompts_of(examples: Examples, batch: Batch) -> list[list[int]]:
    """The prompt of each group of a batch of the data set's."""
    return [examples.prompt(index).tolist() for index in batch.example_S[prompt_places(batch)].tolist()]


def draw_seed(*numbers: int) -> int:
    """A seed that is a function of all the numbers (not negative) and their order."""
    # Their number too: to a seed sequence, zeros at the end are nothing.
    return int(np.random.SeedSequence([len(numbers), *numbers]).generate_state(1)[0])


def sampling_of(
    tokenizer: Any, max_new_tokens: int, temperature: float, top_p: float = 1.0, stop: Sequence[str] = ()
) -> Sampling:
    """How responses are drawn, with the tokenizer's EOS."""
    return Sampling(
        max_new_tokens=max_new_tokens,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        temperature=temperature,
        top_p=top_p,
        stop=tuple(stop),
    )


def check_room(context: Context, max_new_tokens: int) -> None:
    """The longest prompt of the data and what is written after it fit into the policy.

    Raises:
        ValueError: they do not.
    """
    limit = most_tokens(context.role("policy"))
    needed = int(context.examples.targets.max()) + max_new_tokens
    if limit is not None and needed > limit:
        raise ValueError(
            f"method.max_new_tokens={max_new_tokens}: with the longest prompt that is {needed} tokens, the model "
            f"takes at most {limit}"
        )
