"""DIL, direct imitation learning: estimate the density ratio of chosen to rejected responses with the policy itself.

Xiao et al.: "On a Connection Between Imitation Learning and RLHF", ICLR 2025, arXiv 2503.05079.

    r = pi / ref is the ratio to estimate, a = log r;   a_w = W - Wr,   a_l = L - Lr        mean over pairs
    lsif    L = -exp(a_w) + exp(2 a_l) / 2              least squares
    bce     L = -log sigmoid(a_w) - log sigmoid(-a_l)   logistic regression
    ukl     L = -W + exp(a_l)                           unnormalised KL; InfoPO's loss (methods/preference/infopo.py)

All three have p_w / p_l as their optimum over positive ratios, and none has a beta. That these are the losses comes
from the authors' code; which one the paper recommends is not in our sources.

lsif weighs the chosen response by exp(a_w), which grows without bound: it needs the smallest learning rate.
`exponent_max` (ours): beyond it exp goes on as its tangent (for `lsif` of both a_w and 2 a_l), which keeps loss and
gradient finite in fp32 and their direction as it was. Below it the formulas are exact.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Gt, Le
from torch import Tensor

from methods.divergences import exp_then_linear
from methods.preference.base import Paired, PreferenceConfig, Side
from methods.preference.infopo import infopo_loss


@dataclass(frozen=True, kw_only=True)
class DilConfig(PreferenceConfig):
    """estimator: of the density ratio. exponent_max: where exp of a log-ratio goes on as its tangent, in nats."""

    estimator: Literal["lsif", "bce", "ukl"] = "lsif"
    exponent_max: Annotated[float, Gt(0.0), Le(80.0)] = 40.0


def lsif_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, exponent_max: float = 40.0) -> Tensor:
    """-exp(a_w) + exp(2 a_l) / 2. All [P]."""
    return 0.5 * exp_then_linear(2 * rejected_log_ratio, exponent_max) - exp_then_linear(chosen_log_ratio, exponent_max)


def bce_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor) -> Tensor:
    """-log sigmoid(a_w) - log sigmoid(-a_l). All [P]."""
    return F.softplus(-chosen_log_ratio) + F.softplus(rejected_log_ratio)


class Dil(Paired):
    """DIL: density-ratio losses on pi / ref of chosen and rejected responses: lsif, bce or ukl (arXiv 2503.05079)."""

    config: DilConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        if self.config.estimator == "lsif":
            return lsif_loss(chosen.log_ratio, rejected.log_ratio, self.config.exponent_max)
        if self.config.estimator == "bce":
            return bce_loss(chosen.log_ratio, rejected.log_ratio)
        return infopo_loss(chosen.logps, rejected.log_ratio, self.config.exponent_max)
