"""GRPO: each response to a prompt against the mean of its group.

Shao et al.: "DeepSeekMath", 2024, arXiv 2402.03300. Each of G responses to a prompt has one advantage, from the rewards
of its group; there is no value network.

    A_i = (r_i - mean(r)) / (std(r) + epsilon)
    L   = -(1/G) sum_i (1/|o_i|) sum_t [ min(rho A_i, clip(rho, 1 - low, 1 + high) A_i) - beta KL_t ]

`methods/rl/advantages.py` and `methods/rl/losses.py` hold the formulas of its variants, of which each has a module and
a YAML that chooses among these options: Dr. GRPO, DAPO, RLOO, REINFORCE++, GSPO, CISPO, SAPO, VESPO, Lite PPO.

A KL in the reward is k1 of the whole response; REINFORCE++'s is that of the tokens from t on, so that its advantages
differ by token (`token_kl`).

Legend: N responses, K target tokens of a micro-batch.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from methods.batch import Batch
from methods.rl.advantages import group_means, normalised, normalised_then_summed
from methods.rl.base import PolicyGradient, RlConfig
from methods.rl.episodes import Episodes
from methods.rl.losses import clipped, log_ratios, policy_losses


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(RlConfig):
    """baseline, scale, scale_of, epsilon: of advantages, see `methods.rl.advantages.normalised`.

    combine: several rewards are summed first, or normalised each (arXiv 2601.05242).
    token_kl: with kl_in: reward, each token's return has the KL from it on, and all are whitened over the batch.
    form, ratio, clip_low, clip_high, ratio_cap, dual_clip: of the loss, see `methods.rl.losses`.
    """

    baseline: Literal["group", "leave_one_out", "batch", "none"] = "group"
    scale: Literal["group", "batch", "none"] = "group"
    scale_of: Literal["reward", "centred"] = "reward"
    epsilon: NonNegativeFloat = 1e-4
    combine: Literal["sum_then_normalise", "normalise_then_sum"] = "sum_then_normalise"
    token_kl: bool = False
    form: Literal["clip", "cispo", "sapo", "vespo", "reinforce"] = "clip"
    ratio: Literal["token", "sequence", "sequence_sum"] = "token"
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    ratio_cap: PositiveFloat | None = None
    dual_clip: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if self.token_kl and self.kl_in != "reward":
            raise ValueError(f"method.token_kl=true: needs method.kl_in=reward, got {self.kl_in}")
        if self.kl_in == "reward" and self.kl != "k1":
            raise ValueError(f"method.kl={self.kl}: with method.kl_in=reward it must be k1, which is unbiased")


class Grpo(PolicyGradient):
    """GRPO: each response against the mean of its group (arXiv 2402.03300)."""

    config: GrpoConfig

    def advantages(self, episodes: Episodes) -> Tensor:
        """Of the returns of all processes' responses. Returns float64 [N]."""
        config = self.config
        if config.combine == "normalise_then_sum":
            weights = [settings.get("weight", 1.0) for settings in config.rewards]
            parts_NF, group_N, own = self.everywhere(episodes.parts_NF, episodes.group_N)
            return normalised_then_summed(parts_NF, weights, group_N, config.epsilon)[own]
        returns_N, group_N, own = self.everywhere(self.returns(episodes), episodes.group_N)
        return normalised(returns_N, group_N, config.baseline, config.scale, config.epsilon, config.scale_of)[own]

    def returns(self, episodes: Episodes) -> Tensor:
        """Rewards, less the KL of the whole response where it is in the reward and not in each token's return."""
        return episodes.reward_N if self.config.token_kl else super().returns(episodes)

    def token_advantages(self, episodes: Episodes, advantage_N: Tensor) -> list[Tensor]:
        """Of each token: that of its response, or what is left of its own return."""
        if not (self.config.token_kl and self._kl_in_reward):
            return super().token_advantages(episodes, advantage_N)
        reward_N = episodes.reward_N
        if self.config.baseline == "group":
            reward_N = reward_N - group_means(reward_N, episodes.group_N)
        kl = self._reference_kl
        counts = episodes.tokens_N.tolist()
        returns = [_returns(reward, kl_K, self.config.beta) for reward, kl_K in zip(reward_N, kl, strict=True)]
        flat_K, group_K, own = self.everywhere(torch.cat([*returns, torch.zeros(0)]).double(), torch.zeros(sum(counts)))
        whitened_K = normalised(flat_K, torch.zeros_like(group_K), "batch", "batch", self.config.epsilon)[own]
        return list(whitened_K.float().split(counts))

    def token_losses(self, logps_K: Tensor, batch: Batch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The clipped surrogate, or what stands for it."""
        config, weight_K = self.config, batch.values_K["weight"]
        advantage_K = batch.values_K["advantage"]
        ratio_K = log_ratios(logps_K, self.old_logps(logps_K, batch), batch, config.ratio, weight_K)
        losses_K = policy_losses(
            logps_K,
            ratio_K,
            advantage_K,
            config.form,
            config.clip_low,
            config.clip_high,
            config.ratio_cap,
            config.dual_clip,
        )
        if config.form != "clip":
            return losses_K, {}
        low_K, high_K = clipped(ratio_K.detach(), advantage_K, config.clip_low, config.clip_high)
        tokens = weight_K.new_tensor(float(len(weight_K)))
        return losses_K, {"clipped_low": (low_K.sum(), tokens), "clipped_high": (high_K.sum(), tokens)}


def _returns(reward: Tensor, kl_K: Tensor, beta: float) -> Tensor:
    """Reward at the end, less beta times the KL of the tokens from t on; NaN without a reward. Returns [tokens]."""
    return reward.float() - beta * kl_K.flip(0).cumsum(0).flip(0)
