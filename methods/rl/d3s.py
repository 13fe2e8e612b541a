"""D3S: GRPO on fewer responses and tokens, those with the most signal, and less choosily as training goes on.

"Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient Policy Optimization", 2025, arXiv
2509.22115.

    responses     the k whose advantages have the largest variance                       k = share x number
    tokens        of these, the share with the largest |A_i,t| H_i,t                     H: entropy, at the sampling
    both shares grow from their first value to their last

Variance and the norm of the gradient hang together (derived here): with A summing to 0 in a group, the variance is
mean(A^2), and |mean A_i g_i| <= sqrt(mean A_i^2) sqrt(mean |g_i|^2).

The k values of largest variance are always the j smallest and the k - j largest for some j: all j are tried, on sorted
values. Of equally good ones the j nearest to k/2 is taken, then the smaller (ours). A and its mean are of whole groups,
before any choice; what is left is not normalised again.

Known of the paper, from its abstract: both levels, both criteria, and that they relax. Everything else is a guess: all
shares, the form of the schedule, that responses are chosen among all groups (`scope: intra`, in every group, is a
variant it has too), that tokens are among all of the turn, and that the loss is divided by the tokens that are left
(`aggregation: token`).

`tokens: 1` with `scope: intra` and `schedule: constant` is PODS (arXiv 2504.13818). `choose: random` and
`score: entropy` (which tokens are uncertain, whatever their response earned) are controls.

Legend: N responses, K tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt, Le
from pydantic import PositiveInt
from torch import Tensor

from methods.batch import Batch
from methods.rl.episodes import Episodes
from methods.rl.grpo import Grpo, GrpoConfig
from methods.writing import draw_seed

Schedule = Literal["linear", "cosine", "constant"]
_TIE = 1e-9  # relative difference of variances that rounding may make


@dataclass(frozen=True, kw_only=True)
class D3sConfig(GrpoConfig):
    """samples, samples_last, tokens, tokens_last: shares that are kept, at the start and at the end of the run.

    schedule: of them. scope: responses are chosen among all (cross) or in every group (intra).
    choose, score, token_scope: how, see the module.
    """

    group_size: PositiveInt = 16
    aggregation: Literal["sequence", "token", "constant", "local_token", "length"] = "token"
    samples: Annotated[float, Gt(0.0), Le(1.0)] = 0.5
    samples_last: Annotated[float, Gt(0.0), Le(1.0)] = 1.0
    tokens: Annotated[float, Gt(0.0), Le(1.0)] = 0.2
    tokens_last: Annotated[float, Gt(0.0), Le(1.0)] = 1.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    scope: Literal["cross", "intra"] = "cross"
    choose: Literal["variance", "random"] = "variance"
    score: Literal["advantage_entropy", "entropy"] = "advantage_entropy"
    token_scope: Literal["batch", "response"] = "batch"


def most_variance(values_N: Tensor, k: int) -> list[int]:
    """Places of the k values of largest (population) variance, in their order. O(N log N).

    Raises:
        ValueError: k is not between 1 and N.
    """
    count = len(values_N)
    if not 1 <= k <= count:
        raise ValueError(f"k={k}: must be between 1 and the {count} values")
    order = values_N.argsort(stable=True)
    sorted_N = values_N[order].double()
    sorted_N = sorted_N - sorted_N.mean()  # the same variances, and fewer digits lost
    low = torch.arange(k + 1)
    first = [torch.cat([torch.zeros(1).double(), power_N.cumsum(0)]) for power_N in (sorted_N, sorted_N.square())]
    sums, squares = (below[low] + below[-1] - below[count - k + low] for below in first)
    variance = squares / k - (sums / k).square()
    best = (variance >= variance.max() - _TIE * variance.max().abs()).nonzero().squeeze(-1).tolist()
    j = min(best, key=lambda candidate: (abs(2 * candidate - k), candidate))
    return sorted(order[:j].tolist() + order[count - k + j :].tolist())


def largest(scores_K: Tensor, share: float) -> Tensor:
    """Which tokens have the largest scores: a share of all, rounded up; of equal ones the first. Returns bool [K]."""
    # By rounding 0.2 x 5 may be a little more than 1.
    kept_K = torch.zeros(len(scores_K), dtype=torch.bool)
    kept_K[scores_K.argsort(descending=True, stable=True)[: math.ceil(share * len(scores_K) - 1e-9)]] = True
    return kept_K


def relaxed(first: float, last: float, progress: float, schedule: Schedule = "linear") -> float:
    """A share at a point of the run, from 0 to 1."""
    if schedule == "constant":
        return first
    progress = min(max(progress, 0.0), 1.0)
    return first + (last - first) * (progress if schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2)


class D3s(Grpo):
    """D3S: GRPO on the responses of most variance and the tokens of large |A| x entropy (arXiv 2509.22115)."""

    config: D3sConfig

    def __init__(self, config: D3sConfig) -> None:
        super().__init__(config)
        last = config.tokens if config.schedule == "constant" else config.tokens_last
        self.entropic = min(config.tokens, last) < 1  # type: ignore[misc]
        self._told: dict[str, float] = {}

    def keep(self, episodes: Episodes, advantages: list[Tensor]) -> list[int]:
        """The responses whose advantages vary most, of the turn or of each group."""
        config, count = self.config, len(episodes)
        share = relaxed(config.samples, config.samples_last, self.progress, config.schedule)
        rewards_N, _, _ = self.everywhere(episodes.reward_N, episodes.group_N)
        self._told = {"samples_kept": share}
        if not rewards_N.isnan().all():  # train/reward is that of the responses that are trained on
            self._told["reward_of_all"] = float(rewards_N.nanmean())
        if share == 1:
            return list(range(count))
        means = [float(advantage_K.double().mean()) for advantage_K in advantages]
        value_N = torch.tensor(means, dtype=torch.float64)
        if config.scope == "intra":
            members = [(episodes.group_N == group).nonzero().squeeze(-1) for group in episodes.group_N.unique()]
            return sorted(
                int(own[place])
                for number, own in enumerate(members)
                for place in self._chosen(value_N[own], share, self.context.rank, number)
            )
        all_N, _, own_part = self.everywhere(value_N, episodes.group_N)
        chosen = self._chosen(all_N, share) if len(all_N) else []
        return [place - own_part.start for place in chosen if own_part.start <= place < own_part.stop]

    def _chosen(self, value_N: Tensor, share: float, *where: int) -> list[int]:
        """The share of some responses that is kept, at least one. `where` tells one draw of a turn from another."""
        k = max(round(share * len(value_N)), 1)
        if self.config.choose == "variance":
            return most_variance(value_N, k)
        random = np.random.default_rng(draw_seed(self.context.seed, self.turn, 3, *where))
        return sorted(random.permutation(len(value_N))[:k].tolist())

    def token_weights(self, episodes: Episodes, advantages: list[Tensor], kept: Sequence[int]) -> list[Tensor]:
        """1 for the tokens with the largest scores of those that could carry loss, 0 for all others."""
        config = self.config
        weights = super().token_weights(episodes, advantages, kept)
        share = relaxed(config.tokens, config.tokens_last, self.progress, config.schedule)
        self._told["tokens_kept"] = share
        if share == 1:
            return weights
        candidates = {place: weights[place] > 0 for place in kept}
        scores = [self._scores(episodes, advantages, place)[candidates[place]] for place in kept]
        if config.token_scope == "response":
            chosen = [largest(score_K, share) for score_K in scores]
        else:
            sizes = [len(score_K) for score_K in scores]
            own_K = torch.cat([*scores, torch.zeros(0)])
            all_K, _, own = self.everywhere(own_K, torch.zeros(len(own_K)))
            chosen = list(largest(all_K, share)[own].split(sizes))
        found = [torch.zeros_like(weight_K) for weight_K in weights]
        for place, chosen_K in zip(kept, chosen, strict=True):
            found[place][candidates[place]] = weights[place][candidates[place]] * chosen_K
        return found

    def _scores(self, episodes: Episodes, advantages: list[Tensor], place: int) -> Tensor:
        entropy_K = episodes.entropies[place]
        return entropy_K if self.config.score == "entropy" else advantages[place].abs() * entropy_K

    @property
    def progress(self) -> float:
        """How far the run is, from 0 in the first turn to 1 in the last."""
        training, per_turn = self.context.config["training"], self.updates
        steps = training["steps"]
        if steps is None:
            turns = math.ceil(self.context.examples.group_count / training["batch_size"])
            steps = math.ceil(training["epochs"] * turns * per_turn)
        return self.turn / max(math.ceil(steps / per_turn) - 1, 1)

    def token_losses(self, logps_K: Tensor, batch: Batch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """GRPO's; of all responses, those of which no token is left have none."""
        losses_K, means = super().token_losses(logps_K, batch)
        weight_K = batch.values_K["weight"]
        return losses_K, {**means, "trained_tokens": (weight_K.sum(), weight_K.new_tensor(float(len(weight_K))))}

    def report(self) -> Mapping[str, float]:
        """Also which shares are kept, and the mean reward before the choice."""
        return {**super().report(), **self._told}
