"""CANON: a group's responses in two halves by a metric, each compared with the other half and with its own.

"Conditional Advantage Estimation for Reinforcement Learning in Large Reasoning Models", 2025, arXiv 2509.23962.

    high, low     the upper and the lower half of a group by entropy or length (low: the first floor(G/2))
    A_inter(i)  = r_i - mean of the other half
    A_intra(i)  = r_i - mean of the own half
    A           = mu A_inter + (1 - mu) A_intra                 not divided by a standard deviation

That more of the metric is better, or less, is nowhere said: the comparison of the halves tells. Turning the metric
round changes nothing in groups of an even size. With mu = 1/2 it is Dr. GRPO there.

The weighted form, of the authors' code: `alpha` multiplies the rewards of one half wherever A_inter has them, and
`offset` is added to A_inter of the high half and taken from that of the low one.

    entropy       alpha is of the low half: more than 1 favours low entropy
    length        alpha is of the high half: less than 1 favours short responses

`schedule`, of the weight w = 1 - mu of A_intra (the names in the code in brackets):

    constant          mu
    annealed          w = 1 - mean reward of the batch          [annel]
    annealed_reverse  w = mean reward of the batch
    cosine            w = peak (s + 1)/warmup, then peak (1 + cos(pi c/cycle))/2, c steps into a cycle
                                                                [cosine_restart: first intra, later inter]
    cosine_reverse    peak - w of `cosine`                      [cosine_restart_r: first inter, later intra]

s counts turns. In the code there are 30 turns of warm-up and three cycles of 40; here cycles go on. That the warm-up of
`cosine_reverse` begins at the peak is a guess, and so is that a mean reward outside of [0, 1] counts as 0 or 1.

Entropy is the mean over the tokens of a response of the entropy of the policy's distributions. Where metrics tie, the
response that was drawn first is the lower one. A response without a reward is in neither half, and a group of which
fewer than two have one has no advantages (ours; in the code that one response has its reward).

Legend: N responses, G of one group.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from methods.rl.episodes import Episodes
from methods.rl.grpo import Grpo, GrpoConfig
from methods.writing import draw_seed

Metric = Literal["entropy", "length", "random"]
Half = Literal["high", "low"]


@dataclass(frozen=True, kw_only=True)
class CanonConfig(GrpoConfig):
    """metric: by which a group is halved; random is a control (with mu 1).

    mu: weight of the comparison with the other half. alpha, offset: of its weighted form, 1 and 0 for none.
    schedule, warmup, cycle (turns), peak: of 1 - mu, see the module.
    """

    max_new_tokens: PositiveInt = 8192
    aggregation: Literal["sequence", "token", "constant", "local_token", "length"] = "constant"
    dual_clip: PositiveFloat | None = 3.0
    baseline: Literal["group"] = "group"
    scale: Literal["none"] = "none"
    combine: Literal["sum_then_normalise"] = "sum_then_normalise"
    token_kl: Literal[False] = False
    metric: Literal["entropy", "length", "random"] = "entropy"
    mu: Annotated[float, Ge(0.0), Le(1.0)] = 1.0
    alpha: NonNegativeFloat = 1.0
    offset: float = 0.0
    schedule: Literal["constant", "annealed", "annealed_reverse", "cosine", "cosine_reverse"] = "constant"
    warmup: PositiveInt = 30
    cycle: PositiveInt = 40
    peak: Annotated[float, Ge(0.0), Le(1.0)] = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 2:
            raise ValueError(f"method.group_size={self.group_size}: must be at least 2, to be halved")
        if self.metric == "random" and (self.alpha != 1 or self.offset != 0):
            raise ValueError("method.metric=random: method.alpha must be 1 and method.offset 0, as no half is meant")


def in_high_half(metric_N: Tensor, group_N: Tensor) -> Tensor:
    """Whether each response is in the upper half of its group; of an odd number, the upper half has one more.

    Returns bool [N].
    """
    is_high_N = torch.zeros(len(group_N), dtype=torch.bool)
    for group in group_N.unique():
        members_G = (group_N == group).nonzero().squeeze(-1)
        order_G = members_G[metric_N[members_G].argsort(stable=True)]
        is_high_N[order_G[len(order_G) // 2 :]] = True
    return is_high_N


def conditional_advantages(
    rewards_N: Tensor,
    metric_N: Tensor,
    group_N: Tensor,
    mu: float,
    alpha: float = 1.0,
    offset: float = 0.0,
    weighted: Half = "low",
) -> Tensor:
    """mu A_inter + (1 - mu) A_intra. Returns [N]; 0 where a reward is NaN.

    Args:
        rewards_N: NaN for what could not be scored.
        metric_N: finite.
        group_N: which of them belong together, any numbers.
        mu: in [0, 1].
        alpha, offset: of A_inter.
        weighted: the half whose rewards alpha multiplies.
    """
    advantage_N = torch.zeros_like(rewards_N)
    scored_N = ~rewards_N.isnan()
    is_high_N = torch.zeros_like(scored_N)
    is_high_N[scored_N] = in_high_half(metric_N[scored_N], group_N[scored_N])
    for group in group_N.unique():
        members_G = ((group_N == group) & scored_N).nonzero().squeeze(-1)
        if len(members_G) < 2:
            continue
        reward_G, is_high_G = rewards_N[members_G], is_high_N[members_G]
        is_weighted_G = is_high_G if weighted == "high" else ~is_high_G
        inter_G = _mean_difference(
            torch.where(is_weighted_G, alpha * reward_G, reward_G), is_high_G[:, None] != is_high_G
        )
        inter_G = inter_G + offset * (2 * is_high_G.to(reward_G.dtype) - 1)
        intra_G = _mean_difference(reward_G, is_high_G[:, None] == is_high_G)
        advantage_N[members_G] = mu * inter_G + (1 - mu) * intra_G
    return advantage_N


def _mean_difference(values_G: Tensor, with_GG: Tensor) -> Tensor:
    """Each value less the mean of those it is compared with: of the differences, which are 0 where all are equal."""
    return ((values_G[:, None] - values_G) * with_GG).sum(1) / with_GG.sum(1)


def cosine_intra_weight(step: int, warmup: int = 30, cycle: int = 40, peak: float = 0.6) -> float:
    """w = 1 - mu at a step from 0: up to the peak in a line, then from it down to 0 by a cosine in each cycle."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * ((step - warmup) % cycle) / cycle))


class Canon(Grpo):
    """CANON: advantages between and inside the halves of a group by entropy or length (arXiv 2509.23962)."""

    config: CanonConfig

    def __init__(self, config: CanonConfig) -> None:
        super().__init__(config)
        self.entropic = config.metric == "entropy"  # type: ignore[misc]
        self._mu = config.mu

    def advantages(self, episodes: Episodes) -> Tensor:
        """Each response compared with the two halves of its group."""
        config = self.config
        self._mu = self.mu(episodes)
        return conditional_advantages(
            self.returns(episodes),
            self.metric(episodes),
            episodes.group_N,
            self._mu,
            config.alpha,
            config.offset,
            "high" if config.metric == "length" else "low",
        )

    def metric(self, episodes: Episodes) -> Tensor:
        """What halves the groups. Returns float64 [N]."""
        if self.config.metric == "entropy":
            means = [float(entropy_K.double().mean()) for entropy_K in episodes.entropies]
            return torch.tensor(means, dtype=torch.float64)
        if self.config.metric == "length":
            return episodes.tokens_N.double()
        random = np.random.default_rng(draw_seed(self.context.seed, self.turn, 2, self.context.rank))
        return torch.from_numpy(random.random(len(episodes)))

    def mu(self, episodes: Episodes) -> float:
        """Weight of the comparison with the other half in this turn: one for all processes."""
        config = self.config
        if config.schedule == "constant":
            return config.mu
        if config.schedule in ("cosine", "cosine_reverse"):
            intra = cosine_intra_weight(self.turn, config.warmup, config.cycle, config.peak)
            return 1 - intra if config.schedule == "cosine" else 1 - (config.peak - intra)
        rewards_N, _, _ = self.everywhere(episodes.reward_N, episodes.group_N)
        scored = rewards_N[~rewards_N.isnan()]
        mean = min(max(float(scored.mean()), 0.0), 1.0) if len(scored) else 0.0
        return mean if config.schedule == "annealed" else 1 - mean

    def report(self) -> Mapping[str, float]:
        """Also mu of the last turn."""
        return {**super().report(), "mu": self._mu}
