"""REINFORCE++-baseline: less the mean of the group, then whitened over the batch.

Hu: "REINFORCE++: A Simple and Efficient Approach for Aligning Large Language Models", 2025, arXiv 2501.03262.

    c_i = r_i - mean of the group,      A = c / std(c) over the batch,      + beta k2 in the loss

Defaults: 8 responses and beta 0.01 are ours.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat

from methods.rl.grpo import Grpo, GrpoConfig


@dataclass(frozen=True, kw_only=True)
class ReinforcePpBaselineConfig(GrpoConfig):
    """GRPO's, with other defaults."""

    beta: NonNegativeFloat = 0.01
    kl: Literal["k1", "k2", "k3"] = "k2"
    aggregation: Literal["sequence", "token", "constant", "local_token", "length"] = "token"
    scale: Literal["group", "batch", "none"] = "batch"
    scale_of: Literal["reward", "centred"] = "centred"
    epsilon: NonNegativeFloat = 1e-08


class ReinforcePpBaseline(Grpo):
    """REINFORCE++-baseline: less the mean of the group, then whitened over the batch (arXiv 2501.03262)."""

    config: ReinforcePpBaselineConfig
