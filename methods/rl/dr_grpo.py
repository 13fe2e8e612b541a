"""Dr. GRPO: GRPO without the divisions that favour easy prompts and long wrong answers.

Liu et al.: "Understanding R1-Zero-Like Training: A Critical Perspective", 2025, arXiv 2503.20783.

    A_i = r_i - mean(r),        L = -(1/G) sum_i (1/L_max) sum_t min(rho A_i, clip(rho) A_i)

Dividing by the standard deviation gives prompts that are nearly always or nearly never solved the largest steps, and
dividing by |o_i| makes a wrong answer the cheaper the longer it is. Both are gone. L_max is max_new_tokens: the loss is
smaller than GRPO's by |o| / L_max and wants another learning rate.

Defaults: 8 responses of up to 3,000 tokens, no KL: the authors' code.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt

from methods.rl.grpo import Grpo, GrpoConfig


@dataclass(frozen=True, kw_only=True)
class DrGrpoConfig(GrpoConfig):
    """GRPO's, with other defaults."""

    max_new_tokens: PositiveInt = 3000
    aggregation: Literal["sequence", "token", "constant", "local_token", "length"] = "constant"
    scale: Literal["group", "batch", "none"] = "none"


class DrGrpo(Grpo):
    """Dr. GRPO: GRPO without the divisions that favour easy prompts and long wrong answers (arXiv 2503.20783)."""

    config: DrGrpoConfig
