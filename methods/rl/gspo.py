"""GSPO: the ratio of whole sequences, length-normalised, and its own narrow clip.

Zheng et al.: "Group Sequence Policy Optimization", 2025, arXiv 2507.18071.

    rho_i = exp((1/|o_i|) sum_t (l - l_old)),       L = -(1/G) sum_i min(rho_i A_i, clip(rho_i, 1 - 3e-4, 1 + 4e-4) A_i)

Defaults: the clip is published; 8 responses and no KL are ours.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveFloat

from methods.rl.grpo import Grpo, GrpoConfig


@dataclass(frozen=True, kw_only=True)
class GspoConfig(GrpoConfig):
    """GRPO's, with other defaults."""

    ratio: Literal["token", "sequence", "sequence_sum"] = "sequence"
    clip_low: PositiveFloat = 0.0003
    clip_high: PositiveFloat = 0.0004


class Gspo(Grpo):
    """GSPO: the ratio of whole sequences, length-normalised, and its own narrow clip (arXiv 2507.18071)."""

    config: GspoConfig
