"""Losses of policy gradients: what each token of a sampled response costs, and what the sum of that is divided by.

    l, l_old, l_ref     log-probability of a token under the policy, the one that sampled it, the reference
    rho = exp(l - l_old)                                    by token, or by sequence: the mean or sum over its tokens
    clip                -min(rho A, clip(rho, 1 - low, 1 + high) A)                           PPO, arXiv 1707.06347
        ratio_cap       rho of the first branch at most so large                              arXiv 2505.07291
        dual_clip       for A < 0 not more than -dual_clip A                                  arXiv 1912.09729
    cispo               -sg(min(rho, ratio_cap)) A l                                          arXiv 2506.13585
    sapo                -4/tau sigmoid(tau (rho - 1)) A; tau for A > 0, another for A <= 0    arXiv 2511.20347
    vespo               -sg(phi(w)) A l, phi(w) = e^lambda w^k e^(-lambda w), phi(1) = 1      arXiv 2602.10693
                        w: the sequence's rho; k and lambda for A >= 0, others for A < 0
    reinforce           -A l                                                      gradient of rho A where l = l_old

KL(policy || reference), estimated on tokens of the policy (d = l_ref - l):

    k1 = -d             unbiased; as a term of a loss its gradient is 0 in expectation: it belongs into the reward
    k2 = d^2 / 2        biased; its gradient is that of KL(policy || reference)
    k3 = e^d - d - 1    unbiased, never negative; its gradient is that of KL(reference || policy)

Legend: K target tokens of a micro-batch, S its sequences.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from methods.batch import Batch, sum_by_sequence

Level = Literal["token", "sequence", "sequence_sum"]
Form = Literal["clip", "cispo", "sapo", "vespo", "reinforce"]
Estimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["sequence", "token", "constant", "local_token", "length"]


def log_ratios(logps_K: Tensor, old_K: Tensor, batch: Batch, level: Level, mask_K: Tensor | None = None) -> Tensor:
    """log rho of every token: its own, or its sequence's mean (GSPO, arXiv 2507.18071) or sum (RLOO). Returns [K].

    mask_K: 1 for tokens that count.
    """
    ratio_K = logps_K - old_K
    if level == "token":
        return ratio_K
    mask_K = torch.ones_like(ratio_K) if mask_K is None else mask_K
    of_S = sum_by_sequence(ratio_K * mask_K, batch)
    if level == "sequence":
        of_S = of_S / sum_by_sequence(mask_K, batch).clamp_min(1)
    return of_S[batch.sequence_K]


# Temperatures of SAPO for A > 0 and A <= 0; k and lambda of VESPO for A >= 0 and A < 0: those of TRL.
SAPO = (1.0, 1.05)
VESPO = ((2.0, 3.0), (3.0, 2.0))


def _vespo_weights(log_ratio_K: Tensor, advantage_K: Tensor) -> Tensor:
    """phi(w), in logarithms; w between 1e-8 and e^20. Returns [K]."""
    log_w_K = log_ratio_K.clamp(math.log(1e-8), 20.0)
    k_K, lambda_K = (torch.where(advantage_K >= 0, up, down) for up, down in zip(*VESPO, strict=True))
    return (lambda_K + k_K * log_w_K - lambda_K * log_w_K.exp()).exp()


def policy_losses(
    logps_K: Tensor,
    log_ratio_K: Tensor,
    advantage_K: Tensor,
    form: Form = "clip",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_cap: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """The loss of every token. Returns [K]."""
    if form == "reinforce":
        return -advantage_K * logps_K
    ratio_K = log_ratio_K.exp()
    if form == "cispo":
        capped_K = ratio_K if ratio_cap is None else ratio_K.clamp_max(ratio_cap)
        return -capped_K.detach() * advantage_K * logps_K
    if form == "sapo":
        tau_K = torch.where(advantage_K > 0, SAPO[0], SAPO[1])
        return -4 / tau_K * torch.sigmoid(tau_K * (ratio_K - 1)) * advantage_K
    if form == "vespo":
        return -_vespo_weights(log_ratio_K.detach(), advantage_K) * advantage_K * logps_K
    free_K = ratio_K if ratio_cap is None else ratio_K.clamp_max(ratio_cap)
    surrogate_K = torch.minimum(free_K * advantage_K, ratio_K.clamp(1 - clip_low, 1 + clip_high) * advantage_K)
    if dual_clip is not None:
        bounded_K = torch.maximum(surrogate_K, dual_clip * advantage_K)
        surrogate_K = torch.where(advantage_K < 0, bounded_K, surrogate_K)
    return -surrogate_K


def clipped(log_ratio_K: Tensor, advantage_K: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """Whether a token has no gradient because its ratio is too low, or too high. Two bool [K]."""
    ratio_K = log_ratio_K.exp()
    low_K = (ratio_K < 1 - clip_low) & (advantage_K < 0)
    high_K = (ratio_K > 1 + clip_high) & (advantage_K > 0)
    return low_K, high_K


def kl_estimates(logps_K: Tensor, reference_K: Tensor, estimator: Estimator) -> Tensor:
    """KL(policy || reference) estimated at every token. Returns [K]."""
    d_K = reference_K - logps_K
    if estimator == "k1":
        return -d_K
    return d_K.square() / 2 if estimator == "k2" else torch.expm1(d_K) - d_K


def aggregated(losses_K: Tensor, mask_K: Tensor, batch: Batch, how: Aggregation, longest: int) -> Tensor:
    """The sum over a micro-batch whose division by the `units` of the global batch is the loss. A scalar.

        sequence        mean over responses of the means over their tokens                   GRPO
        token           mean over all tokens                                                 DAPO, arXiv 2503.14476
        constant        sum over tokens / `longest`, mean over responses                     Dr. GRPO
        local_token     mean over the tokens of a micro-batch, mean over micro-batches       BNPO
        length          mean over responses of |o| times the mean over their tokens          LUSPO

    Args:
        mask_K: 1 for tokens that count.
        longest: tokens a response may have.
    """
    losses_K = losses_K * mask_K
    if how in ("token", "length"):
        return losses_K.sum()
    if how == "constant":
        return losses_K.sum() / longest
    if how == "local_token":
        return losses_K.sum() / mask_K.sum().clamp_min(1)
    return (sum_by_sequence(losses_K, batch) / sum_by_sequence(mask_K, batch).clamp_min(1)).sum()


def units(mask_K: Tensor, batch: Batch, how: Aggregation) -> int:
    """What the sum of a micro-batch is divided by, added up over the global batch."""
    if not batch.target_count:
        return 0
    if how == "token":
        return int(mask_K.sum())
    return 1 if how == "local_token" else len(batch.example_S)
