"""What two models say of each target token, and how far apart they are there, a few positions at a time.

A comparison of whole next-token distributions needs the log-probabilities of the vocabulary under both models. In
fp32, for all target tokens of a micro-batch at once, they and what autograd keeps of them are many times the logits.
Here they are made for a chunk of positions, reduced to a number per position, dropped, and made again in the backward
pass.

Legend: K positions (target tokens), C of them at a time, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# From log-probabilities of policy and reference [C, V] to a number for each position [C].
PositionDivergence = Callable[[Tensor, Tensor], Tensor]


class PerToken(NamedTuple):
    """policy_K, reference_K: log-probabilities of the targets. divergence_K: of the two distributions. All fp32."""

    policy_K: Tensor
    reference_K: Tensor
    divergence_K: Tensor


def per_token(
    policy_logits_KV: Tensor,
    reference_logits_KV: Tensor,
    targets_K: Tensor,
    divergence: PositionDivergence,
    chunk: int | None = None,
) -> PerToken:
    """Log-probabilities of the targets under both models, and a divergence of the models at every position.

    Args:
        policy_logits_KV, reference_logits_KV: in any precision; log-probabilities do as well.
        targets_K: the tokens.
        divergence: is given fp32 log-probabilities.
        chunk: positions whose log-probabilities are held at a time; None: all, and none is computed twice. It changes
            memory and speed, not results.
    """
    if chunk is None or len(targets_K) <= chunk:
        return PerToken(*_of_chunk(policy_logits_KV, reference_logits_KV, targets_K, divergence))
    found = []
    pieces = (tensor.split(chunk) for tensor in (policy_logits_KV, reference_logits_KV, targets_K))
    for policy_CV, reference_CV, targets_C in zip(*pieces, strict=True):
        given = (policy_CV, reference_CV, targets_C, divergence)
        if torch.is_grad_enabled():
            found.append(checkpoint(_of_chunk, *given, use_reentrant=False, preserve_rng_state=False))
        else:
            found.append(_of_chunk(*given))
    return PerToken(*(torch.cat(values) for values in zip(*found, strict=True)))


def _of_chunk(
    policy_CV: Tensor, reference_CV: Tensor, targets_C: Tensor, divergence: PositionDivergence
) -> tuple[Tensor, Tensor, Tensor]:
    policy_CV, reference_CV = (logits.float().log_softmax(-1) for logits in (policy_CV, reference_CV))
    targets_C1 = targets_C.unsqueeze(-1)
    policy_C, reference_C = (logps.gather(-1, targets_C1).squeeze(-1) for logps in (policy_CV, reference_CV))
    return policy_C, reference_C, divergence(policy_CV, reference_CV)
