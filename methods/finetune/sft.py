"""Supervised fine-tuning (SFT): the negative log-likelihood of the completions.

    L = sum_i sum_{t active} -log p_theta(y_{i,t} | x_i, y_{i,<t}) / N,      N = active tokens of the step

The plain baseline of every fine-tuning table, and, with `dataset.loss_on=all`, ordinary pre-training.
"""

from dataclasses import dataclass

from methods.forward import Forward
from methods.objective import Loss, Objective


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """No hyper-parameters of its own: learning rate and schedule belong to `optimizer` and `training`."""


class Sft(Objective):
    """Supervised fine-tuning: mean negative log-likelihood of the target tokens."""

    config: SftConfig
    kinds = ("causal", "image")
    data = ("completion", "images")

    def loss(self, forward: Forward) -> Loss:
        """Sum of -log p over the batch's target tokens."""
        return Loss(-forward.token_logps().sum())
