"""CISPO: ratios are capped, not clipped, so that every token has a gradient.

MiniMax: "MiniMax-M1", 2025, arXiv 2506.13585.

    L = -sg(min(rho, 5)) A l,   mean over all tokens

Defaults: the cap of 5 is that of later work (ScaleRL), as in TRL; 8 responses and no KL are ours.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveFloat

from methods.rl.grpo import Grpo, GrpoConfig


@dataclass(frozen=True, kw_only=True)
class CispoConfig(GrpoConfig):
    """GRPO's, with other defaults."""

    aggregation: Literal["sequence", "token", "constant", "local_token", "length"] = "token"
    form: Literal["clip", "cispo", "sapo", "vespo", "reinforce"] = "cispo"
    ratio_cap: PositiveFloat | None = 5.0


class Cispo(Grpo):
    """CISPO: ratios are capped, not clipped, so that every token has a gradient (arXiv 2506.13585)."""

    config: CispoConfig
