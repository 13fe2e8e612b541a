"""DRPO: length re-weighs correct responses among themselves, and never makes one of them a bad example.

"DRPO: Efficient Reasoning via Decoupled Reward Policy Optimization", 2025, arXiv 2510.04474.

    s(o) = mean over tokens of log pi(o_t)            l(o) = |o| / max_new_tokens
    w(o) = exp((1 - l(o)) / lambda)
    J_q  = sum_P w s / sum_P w  -  tau log mean_N exp(s / tau)                     P correct, N wrong responses to q
    L    = -(1/questions) sum_q J_q + trust_weight/2 [KL - trust_bound]_+^2        KL: mean of log pi_old - log pi

w is what is best for E[1 - l] - lambda KL to the distribution of the policy's correct responses. A question whose
responses are all correct or all wrong has no J, and counts among the questions. lambda null is infinite: all correct
responses count alike, which is DisCO. For large tau the wrong ones do so too, for small tau the likeliest alone counts.

A response is correct when its reward is 1 or more. One without a reward is neither, and with `mask_truncated` neither
is one that was cut.

In the authors' code the second term is written with a value that is always 1, and a penalty linear in the KL with a
weight that has no gradient; gradients are the same. The KL is that of a micro-batch (ours: of a whole step it would be
known after its passes only), weighted by its questions; before the first step on the responses of a turn it is 0.

Legend: S sequences of a micro-batch, N responses, K target tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from methods.batch import Batch, mean_by_sequence
from methods.forward import Forward
from methods.objective import Loss
from methods.rl.base import PolicyGradient, RlConfig
from methods.rl.episodes import Episodes


@dataclass(frozen=True, kw_only=True)
class DrpoConfig(RlConfig):
    """length_temperature: lambda, null for infinite. tau: of the wrong responses.

    trust_weight, trust_bound: of the penalty on KL(old policy || policy).
    """

    max_new_tokens: PositiveInt = 8192
    temperature: PositiveFloat = 0.6
    minibatches: PositiveInt = 4
    aggregation: Literal["sequence"] = "sequence"
    kl_in: Literal["loss"] = "loss"
    length_temperature: PositiveFloat | None = 0.1
    tau: PositiveFloat = 10.0
    trust_weight: NonNegativeFloat = 1e3
    trust_bound: NonNegativeFloat = 1e-4

    def __post_init__(self) -> None:
        if self.beta:
            raise ValueError(f"method.beta={self.beta}: must be 0, as there is no reference; see method.trust_weight")


def length_weights(length_N: Tensor, longest: int, temperature: float | None) -> Tensor:
    """exp((1 - l/longest) / temperature) of a question's correct responses, with the sum 1. Returns float64 [N].

    Args:
        length_N: tokens of each.
        longest: tokens that one may have.
        temperature: lambda; None: infinite.
    """
    if temperature is None:
        return torch.full((len(length_N),), 1 / max(len(length_N), 1), dtype=torch.float64)
    return ((1 - length_N.double() / longest) / temperature).softmax(0)


def coefficients(
    reward_N: Tensor, length_N: Tensor, group_N: Tensor, longest: int, temperature: float | None
) -> Tensor:
    """What each response counts with in J: above 0 with the sum 1 for correct, below 0 with -1 for wrong ones.

    Returns float64 [N]; 0 without a reward, and in groups that have no correct or no wrong response.

    Args:
        reward_N: 1 or more is correct; NaN: neither.
        length_N: tokens of each.
        group_N: whose question it answers.
        longest, temperature: of `length_weights`.
    """
    counts_N = torch.zeros(len(reward_N), dtype=torch.float64)
    for group in group_N.unique():
        right = ((group_N == group) & (reward_N >= 1)).nonzero().squeeze(-1)
        wrong = ((group_N == group) & (reward_N < 1)).nonzero().squeeze(-1)
        if len(right) and len(wrong):
            counts_N[right] = length_weights(length_N[right], longest, temperature)
            counts_N[wrong] = -1 / len(wrong)
    return counts_N


def discriminative(score_S: Tensor, coefficient_S: Tensor, group_S: Tensor, tau: float) -> Tensor:
    """Sum of J over the groups. A scalar.

    Args:
        score_S: mean log-probability of each response.
        coefficient_S: see `coefficients`.
        group_S: whole groups.
        tau: of the soft maximum over the wrong ones.
    """
    coefficient_S = coefficient_S.to(score_S.dtype)
    total = (coefficient_S.clamp_min(0) * score_S).sum()
    for wrong_S in _wrong_of_each_group(coefficient_S, group_S):
        total = total - tau * (score_S[wrong_S] / tau + (-coefficient_S[wrong_S]).log()).logsumexp(0)
    return total


def _wrong_of_each_group(coefficient_S: Tensor, group_S: Tensor) -> Iterator[Tensor]:
    for group in group_S[coefficient_S < 0].unique():
        yield (group_S == group) & (coefficient_S < 0)


def trust_penalty(kl: Tensor, weight: float, bound: float) -> Tensor:
    """weight/2 [kl - bound]_+^2. A scalar."""
    return weight / 2 * torch.relu(kl - bound).square()


class Drpo(PolicyGradient):
    """DRPO: correct responses weighed by length against wrong ones, in a trust region (arXiv 2510.04474)."""

    config: DrpoConfig
    units = "groups"
    whole_groups = True

    def advantages(self, episodes: Episodes) -> Tensor:
        """What each response counts with."""
        config, reward_N = self.config, episodes.reward_N
        if config.mask_truncated:
            reward_N = torch.where(episodes.ended_N, reward_N, torch.nan)
        return coefficients(
            reward_N, episodes.tokens_N, episodes.group_N, config.max_new_tokens, config.length_temperature
        )

    def count(self, batch: Batch) -> int:
        """Questions."""
        return len(batch.values_S["group"].unique()) if batch.target_count else 0

    def loss(self, forward: Forward) -> Loss:
        """Sum over the questions of -J and of the penalty."""
        config, batch = self.config, forward.batch
        logps_K = forward.token_logps("policy", config.temperature)
        if not batch.target_count:  # a pass that others wait for
            return Loss(logps_K.sum() * 0.0)
        coefficient_S = mean_by_sequence(batch.values_K["advantage"], batch)
        gained = discriminative(mean_by_sequence(logps_K, batch), coefficient_S, batch.values_S["group"], config.tau)
        weight_K = batch.values_K["weight"]
        drift_K = (self.old_logps(logps_K, batch) - logps_K) * weight_K
        kl = drift_K.sum() / weight_K.sum().clamp_min(1)
        penalty = trust_penalty(kl, config.trust_weight, config.trust_bound)
        questions = self.count(batch)
        means = {
            **self._seen(logps_K.detach(), batch),
            "kl_to_old": (drift_K.sum(), weight_K.sum()),
            "contrasted": ((coefficient_S > 0).sum(), logps_K.new_tensor(float(len(coefficient_S)))),
        }
        return Loss(questions * penalty - gained, {"trust_penalty": questions * penalty}, means)
