"""AOT, alignment via optimal transport: the distribution of chosen rewards is to dominate that of rejected ones.

Melnyk et al.: "Distributional Preference Alignment of LLMs via Optimal Transport", NeurIPS 2024, arXiv 2406.05882.

    L = mean_i [ -(1 - e) log sigmoid(beta d_i) - e log sigmoid(-beta d_i) ]

    paired      d_i = u_(i) - v_(i)         u = W - L, v = Wr - Lr, each sorted
    unpaired    d_i = a_w(i) - a_l(i)       a_w = W - Wr, a_l = L - Lr, each sorted

First-order stochastic dominance compares quantiles, and the quantiles of a batch are its sorted values: the i-th
smallest of the one is compared with the i-th smallest of the other, whatever pairs they come from.

What is sorted is the *micro-batch* of one process (as in TRL), so micro-batch size, packing and number of processes
change the result; with one pair in it, AOT is DPO.

Defaults: beta 0.01 of the paper; the variant and e = 0 are ours.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Lt
from pydantic import PositiveFloat
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side
from methods.preference.cdpo import cdpo_loss


@dataclass(frozen=True, kw_only=True)
class AotConfig(BetaConfig):
    """variant: what is sorted, margins (`paired`) or log-ratios (`unpaired`). label_smoothing: e."""

    beta: PositiveFloat = 0.01
    variant: Literal["paired", "unpaired"] = "paired"
    label_smoothing: Annotated[float, Ge(0.0), Lt(0.5)] = 0.0


def aot_loss(larger: Tensor, smaller: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Quantile by quantile, -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d).

    Args:
        larger: values whose distribution is to dominate [P].
        smaller: those that they are compared with [P].
        beta: > 0.
        label_smoothing: e, in [0, 0.5).

    Returns:
        [P], by rising quantile: in no order of the pairs.
    """
    return cdpo_loss(larger.sort().values, smaller.sort().values, beta, label_smoothing)


class Aot(Paired):
    """AOT: sorted margins or rewards of a micro-batch compared one by one (arXiv 2406.05882)."""

    config: AotConfig
    couples = "micro-batch"

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each quantile. Returns [P]."""
        config = self.config
        if config.variant == "paired":
            larger, smaller = chosen.logps - rejected.logps, chosen.reference - rejected.reference
        else:
            larger, smaller = chosen.log_ratio, rejected.log_ratio
        return aot_loss(larger, smaller, config.beta, config.label_smoothing)
