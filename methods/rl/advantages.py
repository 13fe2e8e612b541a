"""Advantages: how much better a response was than what was to be expected of its prompt.

Of the rewards r of a global batch, each of a group (responses to one prompt, drawn by one policy):

    GRPO             (r - mean of the group) / (std of the group + epsilon)             arXiv 2402.03300
    Dr. GRPO         r - mean of the group                                              arXiv 2503.20783
    RLOO             r - mean of the group's others                                     arXiv 2402.14740
    Lite PPO         (r - mean of the group) / (std of the batch + epsilon)             arXiv 2508.08221
    REINFORCE++      (r - mean of the batch) / (std of the batch + epsilon)             arXiv 2501.03262
    its baseline     (c - mean of c) / (std of c), with c = r - mean of the group       ibid.

All standard deviations divide by n - 1. A reward that is NaN could not be scored: it is in no mean, and its advantage
is 0. So is that of a group of one, and of a group with equal rewards.

Legend: N responses of the global batch, F reward functions.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["group", "leave_one_out", "batch", "none"]
Scale = Literal["group", "batch", "none"]


def _places(group_N: Tensor) -> tuple[Tensor, int]:
    """Groups numbered from 0, and how many there are."""
    found, place_N = group_N.unique(return_inverse=True)
    return place_N, len(found)


def group_sums(values_N: Tensor, group_N: Tensor) -> Tensor:
    """For each response the sum over its group, NaN counting as 0. Returns [N]."""
    place_N, groups = _places(group_N)
    sums_G = values_N.new_zeros(groups).index_add(0, place_N, values_N.nan_to_num(0.0))
    return sums_G[place_N]


def group_sizes(values_N: Tensor, group_N: Tensor) -> Tensor:
    """For each response how many of its group are not NaN. Returns [N]."""
    return group_sums((~values_N.isnan()).to(values_N.dtype), group_N)


def group_means(values_N: Tensor, group_N: Tensor) -> Tensor:
    """For each response the mean of its group; 0 where none of it is scored. Returns [N]."""
    return group_sums(values_N, group_N) / group_sizes(values_N, group_N).clamp_min(1)


def group_stds(values_N: Tensor, group_N: Tensor) -> Tensor:
    """For each response the standard deviation of its group; 0 for fewer than two. Returns [N]."""
    off_N = (values_N - group_means(values_N, group_N)).square()
    return (group_sums(off_N, group_N) / (group_sizes(values_N, group_N) - 1).clamp_min(1)).sqrt()


def batch_std(values_N: Tensor) -> Tensor:
    """Standard deviation of what is not NaN; 0 for fewer than two. A scalar."""
    scored = values_N[~values_N.isnan()]
    return scored.std() if len(scored) > 1 else values_N.new_zeros(())


def centred(rewards_N: Tensor, group_N: Tensor, baseline: Baseline) -> Tensor:
    """Rewards less a baseline; NaN stays NaN. Returns [N]."""
    if baseline == "none":
        return rewards_N
    if baseline == "batch":
        return rewards_N - rewards_N.nanmean() if len(rewards_N) else rewards_N
    if baseline == "group":
        return rewards_N - group_means(rewards_N, group_N)
    size_N = group_sizes(rewards_N, group_N)
    others_N = (group_sums(rewards_N, group_N) - rewards_N) / (size_N - 1).clamp_min(1)
    return torch.where(size_N > 1, rewards_N - others_N, torch.where(rewards_N.isnan(), rewards_N, 0.0))


def normalised(
    rewards_N: Tensor,
    group_N: Tensor,
    baseline: Baseline = "group",
    scale: Scale = "group",
    epsilon: float = 1e-4,
    scale_of: Literal["reward", "centred"] = "reward",
) -> Tensor:
    """(r - baseline) / (std + epsilon). Returns [N]; 0 where a reward is NaN.

    Args:
        rewards_N: of the global batch.
        group_N: which of them belong together, any numbers.
        scale: whose standard deviation; none: no division.
        scale_of: that of the rewards, or of what is left of them after the baseline.
    """
    off_N = centred(rewards_N, group_N, baseline)
    measured_N = rewards_N if scale_of == "reward" else off_N
    if scale == "group":
        off_N = off_N / (group_stds(measured_N, group_N) + epsilon)
    elif scale == "batch":
        off_N = off_N / (batch_std(measured_N) + epsilon)
    # By rounding a mean may differ from equal rewards, and 1e-8 / epsilon would be an advantage.
    if baseline != "none":
        compared_N = torch.zeros_like(group_N) if baseline == "batch" else group_N
        off_N = torch.where(_equal_in_group(rewards_N, compared_N), 0.0, off_N)
    return off_N.nan_to_num(0.0)


def _equal_in_group(rewards_N: Tensor, group_N: Tensor) -> Tensor:
    """Whether all scored rewards of a response's group are the same. Returns bool [N]."""
    place_N, groups = _places(group_N)
    low_G, high_G = rewards_N.new_full((groups,), torch.inf), rewards_N.new_full((groups,), -torch.inf)
    low_G = low_G.scatter_reduce(0, place_N, rewards_N.nan_to_num(torch.inf, posinf=torch.inf), "amin")
    high_G = high_G.scatter_reduce(0, place_N, rewards_N.nan_to_num(-torch.inf, neginf=-torch.inf), "amax")
    return (low_G >= high_G)[place_N]


def weighted_sum(parts_NF: Tensor, weights: Sequence[float]) -> Tensor:
    """One reward of several functions: those that scored a response, by their weights. Returns [N]; NaN if none did."""
    scored_NF = ~parts_NF.isnan()
    total_N = (parts_NF.nan_to_num(0.0) * parts_NF.new_tensor(list(weights))).sum(1)
    return torch.where(scored_NF.any(1), total_N, torch.nan)


def normalised_then_summed(
    parts_NF: Tensor, weights: Sequence[float], group_N: Tensor, epsilon: float = 1e-4
) -> Tensor:
    """Every function normalised in its groups, then the weighted sum, then whitened over the batch (arXiv 2601.05242).

    Returns [N]; 0 where no function scored a response.
    """
    each_NF = torch.stack([normalised(part_N, group_N, epsilon=epsilon) for part_N in parts_NF.unbind(1)], dim=1)
    summed_N = weighted_sum(torch.where(parts_NF.isnan(), torch.nan, each_NF), weights)
    return normalised(summed_N, torch.zeros_like(group_N), "batch", "batch", epsilon)
