"""RLPR: mean token probability of the reference answer, less what it is without a thought.

"RLPR: Extrapolating RLVR to General Domains without Verifiers", 2025, arXiv 2506.18254.

    R = mean of the answer's token probabilities after the thought, less the same without one

Prompts whose rewards hardly differ are left out (`spread`, times a running mean).

Defaults: the spread of 0.5 is that of its code for Qwen; the others are guesses.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat

from methods.rl.likelihood_rewards import LikelihoodRewards, LikelihoodRewardsConfig


@dataclass(frozen=True, kw_only=True)
class RlprConfig(LikelihoodRewardsConfig):
    """Those of the likelihood rewards, with other defaults."""

    baseline: Literal["group", "leave_one_out", "batch", "none"] = "group"
    scale: Literal["group", "batch", "none"] = "group"
    ratio: Literal["token", "sequence", "sequence_sum"] = "token"
    reward: Literal[
        "verifier", "log_prob", "avg_log_prob", "prob", "avg_prob", "geometric", "jepo", "rlpr", "nover"
    ] = "rlpr"
    answer_weight: NonNegativeFloat = 0.0
    credit: Literal["thought", "response"] = "response"
    spread: NonNegativeFloat | None = 0.5


class Rlpr(LikelihoodRewards):
    """RLPR: mean token probability of the reference answer, less what it is without a thought (arXiv 2506.18254)."""

    config: RlprConfig
