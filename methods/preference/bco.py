"""BCO, binary classifier optimisation, on pairs: a classifier of good and bad responses whose logit is the reward.

Jung et al.: "Binary Classifier Optimization for Large Language Model Alignment", arXiv 2404.04656.

    L = -log sigmoid(beta a_w - delta) - log sigmoid(-(beta a_l - delta)),      a = log pi - log ref    mean over pairs

The binary cross-entropy bounds DPO's loss from above, and the shift delta makes the bound tighter:

    running_mean  the mean of all rewards beta a so far, chosen and rejected (no gradient); the paper's
    zero          no shift: TRL's `bco_pair`

The running mean of a step is over the responses of all steps before it, 0 at first, where policy and reference are the
same and so are all rewards (that the batch itself is not yet in it is ours). It is brought up to date after each step,
by all processes together: micro-batches, their layout and the number of processes change nothing, and a run that was
interrupted goes on with the same mean.

Default: beta 0.01 of the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from evals.ranks import Ranks
from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class BcoConfig(BetaConfig):
    """delta: what rewards are compared with, their `running_mean` or `zero`."""

    beta: PositiveFloat = 0.01
    delta: Literal["running_mean", "zero"] = "running_mean"


def bco_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, delta: float) -> Tensor:
    """-log sigmoid(beta a_w - delta) - log sigmoid(-(beta a_l - delta)).

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        beta: > 0.
        delta: reward at which a response is neither good nor bad.

    Returns:
        [P].
    """
    return -F.logsigmoid(beta * chosen_log_ratio - delta) - F.logsigmoid(delta - beta * rejected_log_ratio)


class Bco(Paired):
    """BCO: chosen and rejected told apart from the mean reward, each on its own (arXiv 2404.04656)."""

    config: BcoConfig

    def __init__(self, config: BcoConfig) -> None:
        super().__init__(config)
        self._sum, self._count = 0.0, 0  # of the rewards of all steps before this one
        self._of_step: list[tuple[float, int]] = []  # sum and number of the rewards of each of its micro-batches

    @property
    def delta(self) -> float:
        """What rewards are compared with in this step."""
        return self._sum / max(self._count, 1)

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        if self.config.delta == "running_mean" and torch.is_grad_enabled():
            rewards = torch.cat([self.rewards(chosen), self.rewards(rejected)]).detach()
            self._of_step.append((float(rewards.double().sum()), len(rewards)))
        return bco_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta, self.delta)

    def after_step(self, step: int) -> None:
        """Take the rewards of the step into the mean, those of all processes."""
        if self.config.delta == "zero":
            return
        for seen in Ranks().exchange(self._of_step):
            self._sum += sum(total for total, _ in seen)
            self._count += sum(count for _, count in seen)
        self._of_step = []

    def metrics(self, chosen: Side, rejected: Side) -> Mapping[str, Tensor]:
        """As of all pairs, and delta."""
        delta = chosen.logps.new_tensor(self.delta * len(chosen.logps))
        return {**super().metrics(chosen, rejected), "delta": delta}

    def state_dict(self) -> dict[str, Any]:
        """The rewards so far, the same on each process."""
        return {"sum": self._sum, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the mean of the interrupted run."""
        self._sum, self._count = state["sum"], state["count"]
