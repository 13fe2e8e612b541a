"""REINFORCE++: advantages whitened over the batch, without groups.

Hu: "REINFORCE++: A Simple and Efficient Approach for Aligning Large Language Models", 2025, arXiv 2501.03262.

    R_t = r - beta sum_{s >= t} (l_old - l_ref)_s,      A = (R - mean) / std            over all tokens of the batch

One response to a prompt; the KL is in the return of each token from it on.

Defaults: beta 0.01 is ours.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from methods.rl.grpo import Grpo, GrpoConfig


@dataclass(frozen=True, kw_only=True)
class ReinforcePpConfig(GrpoConfig):
    """GRPO's, with other defaults."""

    group_size: PositiveInt = 1
    beta: NonNegativeFloat = 0.01
    kl: Literal["k1", "k2", "k3"] = "k1"
    kl_in: Literal["loss", "reward"] = "reward"
    aggregation: Literal["sequence", "token", "constant", "local_token", "length"] = "token"
    baseline: Literal["group", "leave_one_out", "batch", "none"] = "batch"
    scale: Literal["group", "batch", "none"] = "batch"
    epsilon: NonNegativeFloat = 1e-08
    token_kl: bool = True


class ReinforcePp(Grpo):
    """REINFORCE++: advantages whitened over the batch, without groups (arXiv 2501.03262)."""

    config: ReinforcePpConfig
