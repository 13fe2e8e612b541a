"""JEPO: the Jensen bound of the likelihood of the reference answer over several chains of thought.

Jensen's bound for policy optimization, 2025, arXiv 2503.19618.

    A_i = log mean_j P_j - log mean_{j != i} P_j,      answer term P_i / sum_j P_j

Defaults: sizes are ours.
"""

from dataclasses import dataclass
from typing import Literal

from methods.rl.likelihood_rewards import LikelihoodRewards, LikelihoodRewardsConfig


@dataclass(frozen=True, kw_only=True)
class JepoConfig(LikelihoodRewardsConfig):
    """Those of the likelihood rewards, with other defaults."""

    baseline: Literal["group", "leave_one_out", "batch", "none"] = "none"
    reward: Literal[
        "verifier", "log_prob", "avg_log_prob", "prob", "avg_prob", "geometric", "jepo", "rlpr", "nover"
    ] = "jepo"


class Jepo(LikelihoodRewards):
    """JEPO: the Jensen bound of the likelihood of the reference answer over several thoughts (arXiv 2503.19618)."""

    config: JepoConfig
