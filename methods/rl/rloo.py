"""RLOO: each response against the mean of the others of its group, KL in the reward.

Ahmadian et al.: "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
2024, arXiv 2402.14740.

    R_i = r_i - beta sum_t (l_old - l_ref),     A_i = R_i - mean of the others

The ratio is that of the whole response, a product over its tokens, and clipped, as TRL has it; on the first step the
gradient is REINFORCE's with this baseline.

Defaults: beta 0.03 and up to 4 responses are published.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from methods.rl.grpo import Grpo, GrpoConfig


@dataclass(frozen=True, kw_only=True)
class RlooConfig(GrpoConfig):
    """GRPO's, with other defaults."""

    group_size: PositiveInt = 4
    beta: NonNegativeFloat = 0.03
    kl: Literal["k1", "k2", "k3"] = "k1"
    kl_in: Literal["loss", "reward"] = "reward"
    baseline: Literal["group", "leave_one_out", "batch", "none"] = "leave_one_out"
    scale: Literal["group", "batch", "none"] = "none"
    ratio: Literal["token", "sequence", "sequence_sum"] = "sequence_sum"


class Rloo(Grpo):
    """RLOO: each response against the mean of the others of its group, KL in the reward (arXiv 2402.14740)."""

    config: RlooConfig
