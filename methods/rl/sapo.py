"""SAPO: a smooth gate on the ratio in the place of the clip.

"Soft Adaptive Policy Optimization", 2025, arXiv 2511.20347.

    L = -(4 / tau) sigmoid(tau (rho - 1)) A,    tau 1 for A > 0 and 1.05 for A <= 0

Defaults: the temperatures are TRL's; 8 responses and no KL are ours.
"""

from dataclasses import dataclass
from typing import Literal

from methods.rl.grpo import Grpo, GrpoConfig


@dataclass(frozen=True, kw_only=True)
class SapoConfig(GrpoConfig):
    """GRPO's, with other defaults."""

    form: Literal["clip", "cispo", "sapo", "vespo", "reinforce"] = "sapo"


class Sapo(Grpo):
    """SAPO: a smooth gate on the ratio in the place of the clip (arXiv 2511.20347)."""

    config: SapoConfig
