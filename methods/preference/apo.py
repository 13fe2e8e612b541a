"""APO, anchored preference optimisation: says whether the responses are better than what the model has.

D'Oosterlinck et al.: "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in
Alignment", arXiv 2408.06266.

    zero    L = 1 - sigmoid(beta a_w) + sigmoid(beta a_l)                   chosen up, rejected down
    down    L = sigmoid(beta a_w) + 1 - sigmoid(beta (a_w - a_l))           chosen down, rejected further down

a = log pi - log ref; mean over pairs. `zero` is for chosen responses that are better than the model's own, `down` for
such that are worse.

Defaults: the variant is ours (the paper names both); beta 0.1 of the paper.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side


@dataclass(frozen=True, kw_only=True)
class ApoConfig(BetaConfig):
    """variant: `zero` raises the chosen response's likelihood, `down` lowers it."""

    variant: Literal["zero", "down"] = "zero"


def apo_zero_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta a_w) + sigmoid(beta a_l).

    Args:
        chosen_log_ratio, rejected_log_ratio: log pi - log ref, summed over a response's tokens [P].
        beta: > 0.

    Returns:
        [P].
    """
    return torch.sigmoid(-beta * chosen_log_ratio) + torch.sigmoid(beta * rejected_log_ratio)


def apo_down_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """sigmoid(beta a_w) + 1 - sigmoid(beta (a_w - a_l)). Arguments as of `apo_zero_loss`; returns [P]."""
    margin = beta * (chosen_log_ratio - rejected_log_ratio)
    return torch.sigmoid(beta * chosen_log_ratio) + torch.sigmoid(-margin)


class Apo(Paired):
    """APO: likelihoods of chosen and rejected moved the way that is asked for (arXiv 2408.06266)."""

    config: ApoConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        loss = apo_zero_loss if self.config.variant == "zero" else apo_down_loss
        return loss(chosen.log_ratio, rejected.log_ratio, self.config.beta)
