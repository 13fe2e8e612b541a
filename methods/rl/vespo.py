"""VESPO: sequences weighed smoothly by their ratio.

Variational sequence-level soft policy optimization, arXiv 2602.10693, as TRL has it.

    L = -sg(phi(w)) A l,    phi(w) = e^lambda w^k e^(-lambda w),    w the ratio of the whole sequence

Defaults: k and lambda are TRL's (2 and 3 for A >= 0, 3 and 2 for A < 0); 8 responses and no KL are ours.
"""

from dataclasses import dataclass
from typing import Literal

from methods.rl.grpo import Grpo, GrpoConfig


@dataclass(frozen=True, kw_only=True)
class VespoConfig(GrpoConfig):
    """GRPO's, with other defaults."""

    aggregation: Literal["sequence", "token", "constant", "local_token", "length"] = "token"
    form: Literal["clip", "cispo", "sapo", "vespo", "reinforce"] = "vespo"
    ratio: Literal["token", "sequence", "sequence_sum"] = "sequence_sum"


class Vespo(Grpo):
    """VESPO: sequences weighed smoothly by their ratio (arXiv 2602.10693)."""

    config: VespoConfig
