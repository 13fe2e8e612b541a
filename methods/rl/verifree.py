"""VeriFree: the probability of the reference answer after the chain of thought.

"Reinforcing General Reasoning without Verifiers", 2025, arXiv 2505.21493.

    R = P(answer | thought),    + P grad log P(answer | thought)

Defaults: 8 responses of up to 3,000 tokens and no KL are those of its code.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt

from methods.rl.likelihood_rewards import LikelihoodRewards, LikelihoodRewardsConfig


@dataclass(frozen=True, kw_only=True)
class VerifreeConfig(LikelihoodRewardsConfig):
    """Those of the likelihood rewards, with other defaults."""

    max_new_tokens: PositiveInt = 3000
    reward: Literal[
        "verifier", "log_prob", "avg_log_prob", "prob", "avg_prob", "geometric", "jepo", "rlpr", "nover"
    ] = "prob"


class Verifree(LikelihoodRewards):
    """VeriFree: the probability of the reference answer after the chain of thought (arXiv 2505.21493)."""

    config: VerifreeConfig
