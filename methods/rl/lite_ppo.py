"""Lite PPO: mean of the group, standard deviation of the batch, mean over all tokens.

"Part I: Tricks or Traps? A Deep Dive into RL for LLM Reasoning", 2025, arXiv 2508.08221.

    A = (r - mean of the group) / (std of the batch + 1e-6),    PPO's clip at 0.2,      mean over all tokens

No critic, and none of the other tricks. The standard deviation is that of the raw rewards, as in the authors' framework
(`scale_of: centred` takes that of what is left after the mean, another number). The switches that the paper studies are
`baseline`, `scale`, `clip_high` (0.28), `aggregation`, `mask_truncated`, and the scale of the reward
(`evals.rewards.math_answer.binary`).

Defaults: 8 responses of up to 8,192 tokens, as published.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from methods.rl.grpo import Grpo, GrpoConfig


@dataclass(frozen=True, kw_only=True)
class LitePpoConfig(GrpoConfig):
    """GRPO's, with other defaults."""

    max_new_tokens: PositiveInt = 8192
    aggregation: Literal["sequence", "token", "constant", "local_token", "length"] = "token"
    scale: Literal["group", "batch", "none"] = "batch"
    epsilon: NonNegativeFloat = 1e-06


class LitePpo(Grpo):
    """Lite PPO: mean of the group, standard deviation of the batch, mean over all tokens (arXiv 2508.08221)."""

    config: LitePpoConfig
