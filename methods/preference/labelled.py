"""Single responses, each called good or bad: what methods without pairs are trained on.

Pairs are taken apart: the chosen response is a good one, the rejected a bad one, and they meet in a batch by chance
only.
"""

import torch
from torch import Tensor

from methods.examples import Examples
from methods.method import Context
from methods.preference.base import Preference


def singles(examples: Examples) -> Examples:
    """Every response as a group of its own, with its label."""
    count = len(examples)
    labels = None if examples.labels is None else examples.labels.tolist()
    return Examples.of(map(examples.sequence, range(count)), examples.targets.tolist(), [1] * count, labels)


def reward_metrics(rewards: Tensor, is_good: Tensor) -> dict[str, Tensor]:
    """To be logged, as sums over the responses: the share of good ones, the micro-batch's mean reward of each kind.

    Of a kind that the micro-batch has none of, the mean counts as 0.

    Args:
        rewards: implicit ones, of N responses.
        is_good: bool [N].
    """
    with torch.no_grad():
        means = {
            name: (rewards * kind).sum() / kind.sum().clamp_min(1)
            for name, kind in (("good_reward", is_good), ("bad_reward", ~is_good))
        }
        return {"good_share": is_good.sum(), **{name: mean * len(rewards) for name, mean in means.items()}}


class Labelled(Preference):
    """Base of methods on single responses: `batch.label_S` is 1 for a good one, 0 for a bad one."""

    data = ("labelled", "pair")

    def arrange(self, context: Context, examples: Examples) -> Examples:
        """Pairs taken apart."""
        return singles(examples)
