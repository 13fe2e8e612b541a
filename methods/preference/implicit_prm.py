"""Implicit PRM: an outcome reward written as a log-ratio, whose increments are the rewards of its steps.

Yuan et al.: "Free Process Rewards without Process Labels", 2024, arXiv 2412.01981. The reward of a response is

    r(y) = beta log pi(y | x) / ref(y | x),      summed over its tokens, not their mean

and is trained on labels of whole responses l, right (1) or wrong (0), by any loss of r. Then

    q_t = beta sum_(i <= t) log pi(y_i | x, y_<i) / ref(y_i | x, y_<i) = beta log E_ref[exp(r(y)/beta) | y_<=t]

is the value of a prefix and r_t = q_t - q_(t-1) the reward of a token; of a step, the difference between its ends.
Their sum is r(y). Losses, with those of other modules here:

    ce      -l log sigmoid(r) - (1 - l) log(1 - sigmoid(r)), mean over responses         this module
    dpo     -log sigmoid(r(y+) - r(y-)), mean over pairs                                 `dpo`, at this beta
    nca     -log sigmoid(r+) - 1/2 log sigmoid(-r+) - 1/2 log sigmoid(-r-), likewise     `nca`, at this beta
    kto     each side of a pair against the mean of the other                            `implicit_prm_kto`

The best of N responses is that of the highest score: the lowest of its steps (in the paper's code; its sum or mean are
choices too), a step counting with its reward or with the value at its end. Without a reference at inference,
log pi stands for the log-ratio. In a weighted vote each answer has the sum of its responses' scores.

Defaults: beta 0.05 of the paper's code.

Legend: N responses, K tokens of a response, J its steps.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from methods.objective import Loss
from methods.preference.base import BetaConfig, Responses
from methods.preference.labelled import Labelled, reward_metrics

Reduce = Literal["min", "sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class ImplicitPrmConfig(BetaConfig):
    """beta: as in `BetaConfig`."""

    beta: PositiveFloat = 0.05


# Training -------------------------------------------------------------------------------------------------------------


def outcome_loss(log_ratio: Tensor, is_right: Tensor, beta: float) -> Tensor:
    """-l log sigmoid(r) - (1 - l) log(1 - sigmoid(r)), with r = beta log_ratio.

    Args:
        log_ratio: log pi - log ref, summed over a response's tokens [N].
        is_right: bool [N].

    Returns:
        [N].
    """
    reward = beta * log_ratio
    return -F.logsigmoid(torch.where(is_right, reward, -reward))


class ImplicitPrm(Labelled):
    """Implicit PRM by cross-entropy: is a response right? (arXiv 2412.01981)."""

    config: ImplicitPrmConfig

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the responses."""
        label_N, beta = responses.batch.label_S, self.config.beta
        assert label_N is not None, "responses have labels"
        log_ratio_N, is_right_N = responses.all.log_ratio, label_N > 0.5
        told_right_N = (log_ratio_N.detach() > 0) == is_right_N
        metrics = {"accuracy": told_right_N.sum(), **reward_metrics(beta * log_ratio_N, is_right_N)}
        return Loss(outcome_loss(log_ratio_N, is_right_N, beta).sum(), metrics)


# What it says of a response's steps -----------------------------------------------------------------------------------


def prefix_values(log_ratio_K: Tensor, beta: float) -> Tensor:
    """q_t of every prefix. Returns [K].

    log_ratio_K: log pi - log ref of a response's tokens (log pi alone: without a reference).
    """
    return beta * log_ratio_K.cumsum(0)


def token_rewards(log_ratio_K: Tensor, beta: float) -> Tensor:
    """r_t = q_t - q_(t-1), with q of nothing 0. Returns [K]."""
    return beta * log_ratio_K


def step_rewards(log_ratio_K: Tensor, ends_J: Sequence[int], beta: float, accumulative: bool = False) -> Tensor:
    """Reward of each step, the sum over its tokens; or, accumulative, q at its end. Returns [J].

    ends_J: number of tokens up to and with each step, increasing; the last is K.

    Raises:
        ValueError: they are not.
    """
    edges = [0, *ends_J]
    if any(end <= begin for begin, end in pairwise(edges)) or edges[-1] != len(log_ratio_K):
        raise ValueError(f"ends={list(ends_J)}: must increase from above 0 to the {len(log_ratio_K)} tokens")
    values_J = prefix_values(log_ratio_K, beta)[torch.tensor(list(ends_J), dtype=torch.long) - 1]
    return values_J if accumulative else values_J.diff(prepend=values_J.new_zeros(1))


def response_score(step_rewards_J: Tensor, reduce: Reduce = "min") -> Tensor:
    """The lowest, sum or mean of the rewards of at least one step. A scalar.

    Raises:
        ValueError: no step; an unknown reduction.
    """
    if not len(step_rewards_J):
        raise ValueError("step_rewards=[]: must have at least one step")
    if reduce == "min":
        return step_rewards_J.min()
    if reduce == "sum":
        return step_rewards_J.sum()
    if reduce == "mean":
        return step_rewards_J.mean()
    raise ValueError(f"reduce={reduce}: must be min, sum or mean")


def weighted_vote(answers: Sequence[Hashable], scores_N: Tensor, squashed: bool = True) -> Hashable:
    """The answer whose responses have the highest sum of scores; of equal ones the first.

    Args:
        answers: of each response, as what is the same is to compare equal [N].
        scores_N: of each response.
        squashed: whether sigmoid(score) is summed, so that a bad response does not count against its answer.
    """
    total: dict[Hashable, float] = {}
    for answer, score in zip(answers, (scores_N.sigmoid() if squashed else scores_N).tolist(), strict=True):
        total[answer] = total.get(answer, 0.0) + score
    return max(total, key=lambda answer: total[answer])
