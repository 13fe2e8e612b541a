"""NOVER: rollouts ranked by the perplexity of the reference answer, and by how short they are.

"NOVER: Incentive Training for Language Models via Verifier-Free Reinforcement Learning", 2025, arXiv 2505.16022.

Rollouts are ranked by the perplexity of the answer after them, normalised by their length; shorter ones that rank
higher earn more. The paper's scorer follows the policy now and then; here it is the start or the policy.

Defaults: 8 rollouts, beta 0.1 and the clip are those of its code; the others are guesses.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat

from methods.rl.likelihood_rewards import LikelihoodRewards, LikelihoodRewardsConfig


@dataclass(frozen=True, kw_only=True)
class NoverConfig(LikelihoodRewardsConfig):
    """Those of the likelihood rewards, with other defaults."""

    beta: NonNegativeFloat = 0.1
    baseline: Literal["group", "leave_one_out", "batch", "none"] = "group"
    scale: Literal["group", "batch", "none"] = "group"
    ratio: Literal["token", "sequence", "sequence_sum"] = "token"
    clip_low: PositiveFloat = 0.1
    reward: Literal[
        "verifier", "log_prob", "avg_log_prob", "prob", "avg_prob", "geometric", "jepo", "rlpr", "nover"
    ] = "nover"
    answer_weight: NonNegativeFloat = 0.0
    credit: Literal["thought", "response"] = "response"
    scorer: Literal["policy", "reference"] = "reference"


class Nover(LikelihoodRewards):
    """NOVER: rollouts ranked by the perplexity of the answer, and by how short they are (arXiv 2505.16022)."""

    config: NoverConfig
