"""DAPO: higher upper clip, mean over all tokens, only prompts with a signal, no KL.

Yu et al.: "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", 2025, arXiv 2503.14476.

    clip-higher         1 - 0.2 and 1 + 0.28: rare tokens may become more likely by more, which keeps entropy
    token mean          over all tokens of the global batch: long responses weigh by their length
    overlong            responses that were cut carry no loss; add `evals.rewards.length.soft_overlong` to the rewards
    dynamic sampling    prompts whose responses all earn the same are replaced by others, a few times here (ours: 4)

Defaults: 16 responses of up to 20,480 tokens, as published; its reward is 1 and -1
(`evals.rewards.math_answer.binary`, options {wrong: -1.0}).
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from methods.rl.grpo import Grpo, GrpoConfig


@dataclass(frozen=True, kw_only=True)
class DapoConfig(GrpoConfig):
    """GRPO's, with other defaults."""

    group_size: PositiveInt = 16
    max_new_tokens: PositiveInt = 20480
    aggregation: Literal["sequence", "token", "constant", "local_token", "length"] = "token"
    mask_truncated: bool = True
    dynamic_sampling: NonNegativeInt = 4
    clip_high: PositiveFloat = 0.28


class Dapo(Grpo):
    """DAPO: higher upper clip, mean over all tokens, only prompts with a signal, no KL (arXiv 2503.14476)."""

    config: DapoConfig
