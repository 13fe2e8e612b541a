"""mDPO and mIPO: preferences between groups of responses instead of single ones.

"Preference Optimization with Multi-Sample Comparisons", 2024, arXiv 2410.12138. (Not the multimodal mDPO.)

    D(y) = log pi(y|x) - log ref(y|x);    m_w, m_l means of D over the chosen and the rejected group
    mDPO:  L = -log sigmoid(beta (m_w - m_l))                       mean over pairs of groups
    mIPO:  L = (m_w - m_l - 1/(2 beta))^2                           with the means of the groups' distributions
           L = (m_w - m_l - 1/(2 beta))^2 - s_w^2/k_w - s_l^2/k_l   from k_w and k_l independent responses

Diversity and the like belong to a group, not to one answer. The square of an estimated mean is too large by the
variance of the estimate, which the second form of mIPO takes off (s^2: sample variances); it may be negative. mDPO's
logistic loss of an estimated mean stays biased. With groups of one both are DPO and IPO.

Defaults: ours, but for `unbiased`, which is the paper's estimator. `sft_weight` adds that much of the negative
log-likelihood of the chosen responses, a mean over their tokens and then over the group (ours).

Legend: G pairs of groups of a micro-batch, S responses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from methods.method import Context
from methods.objective import Loss
from methods.preference.base import BetaConfig, Preference, Responses


@dataclass(frozen=True, kw_only=True)
class MdpoConfig(BetaConfig):
    """loss: dpo | ipo. unbiased: of ipo, take the variance of the means off. sft_weight: of the chosen's likelihood."""

    loss: Literal["dpo", "ipo"] = "dpo"
    unbiased: bool = True
    sft_weight: NonNegativeFloat = 0.0


def group_means(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Mean of values [S] over the members of each group (long [S]). Returns [groups]."""
    total = values.new_zeros(groups).index_add(0, group, values)
    return total / group.bincount(minlength=groups)


def variance_of_means(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The variance of each group's mean, estimated from its members: s^2/k. Returns [groups]; groups of 1 have none."""
    size = group.bincount(minlength=groups)
    deviation = values - group_means(values, group, groups)[group]
    return values.new_zeros(groups).index_add(0, group, deviation**2) / ((size - 1) * size)


def mdpo_loss(
    log_ratio: Tensor, is_chosen: Tensor, group: Tensor, beta: float, loss: str = "dpo", unbiased: bool = True
) -> Tensor:
    """The loss of each pair of groups.

    Args:
        log_ratio: D of every response, summed over its tokens [S].
        is_chosen: bool [S]: which of the two groups it belongs to.
        group: long [S], from 0: the pair of groups.
        beta: > 0.
        loss: dpo | ipo.
        unbiased: of ipo; both groups must have two members or more.

    Returns:
        [G].
    """
    count = int(group.max()) + 1
    sides = 2 * count
    side = group + count * is_chosen  # first the rejected groups, then the chosen ones
    rejected, chosen = group_means(log_ratio, side, sides).split(count)
    if loss == "dpo":
        return -F.logsigmoid(beta * (chosen - rejected))
    squared = (chosen - rejected - 1 / (2 * beta)) ** 2
    if not unbiased:
        return squared
    return squared - variance_of_means(log_ratio, side, sides).view(2, count).sum(0)


class Mdpo(Preference):
    """mDPO and mIPO: preferences between groups of responses (arXiv 2410.12138)."""

    config: MdpoConfig
    data = ("groups",)

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Measure the reference.

        Raises:
            ValueError: a group has one member, and a variance is needed; names the first such example.
        """
        examples = context.examples
        if self.config.loss == "ipo" and self.config.unbiased:
            assert examples.labels is not None
            bounds, is_chosen = examples.groups, examples.labels > 0.5
            chosen = np.add.reduceat(is_chosen.astype(np.int64), bounds[:-1])
            fewest = np.minimum(chosen, np.diff(bounds) - chosen)
            if (fewest < 2).any():
                raise ValueError(
                    "method.unbiased=true: needs two responses or more on each side of every example, "
                    f"got {int(fewest.min())} in example {int((fewest < 2).argmax())}"
                )
        return super().prepare(context)

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the pairs of groups."""
        batch, everything, config = responses.batch, responses.all, self.config
        assert batch.label_S is not None and batch.group_S is not None, "groups have labels"
        is_chosen_S, group_S, count = batch.label_S > 0.5, batch.group_S, batch.group_count
        losses_G = mdpo_loss(everything.log_ratio, is_chosen_S, group_S, config.beta, config.loss, config.unbiased)
        if config.sft_weight:
            nll_G = group_means(-everything.mean_logps[is_chosen_S], group_S[is_chosen_S], count)
            losses_G = losses_G + config.sft_weight * nll_G
        with torch.no_grad():
            side_S = group_S + count * is_chosen_S
            rejected_G, chosen_G = (config.beta * group_means(everything.log_ratio, side_S, 2 * count)).split(count)
            metrics = {
                "reward_margin": (chosen_G - rejected_G).sum(),
                "reward_accuracy": (chosen_G > rejected_G).sum(),
                "chosen_log_ratio": chosen_G.sum() / config.beta,
                "rejected_log_ratio": rejected_G.sum() / config.beta,
            }
        return Loss(losses_G.sum(), metrics)
