"""PPO with a critic: every token against what was to be expected before it.

Schulman, Wolski, Dhariwal, Radford, Klimov: "Proximal Policy Optimization Algorithms", 2017, arXiv 1707.06347;
advantages of Schulman et al.: "High-Dimensional Continuous Control Using Generalized Advantage Estimation", 2016, arXiv
1506.02438. As it is used on text: the critic V is a small head on the policy's own last hidden states, the KL to the
reference is a reward of every token, the score of the response one of its last.

    r_t     = -beta (log pi_old - log pi_ref)_t + [t = T] R
    delta_t = r_t + gamma V_{t+1} - V_t,    V = 0 behind the last token
    A_t     = delta_t + gamma lambda A_{t+1},    whitened over the tokens of the global batch
    G_t     = A_t + V_old,t    with the A of before
    L       = L_clip + weight * 1/2 max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2)

V_t is read where the token is predicted: it has seen what comes before the token. pi_old, pi_ref and V_old are asked
once a turn. Policy and value loss are put together by the same `aggregation`.

The head (`Critic`) is a part of the policy's model that is trained and kept in checkpoints with it and left out of the
final model. Its gradient goes through the whole model. It starts with torch's usual random weights, from the run's
seed (ours).

Ours: a response without an end is worth 0 behind its last token, and one that no reward could score is left out.

Legend: N responses, T tokens of a response (the longest one's), B rows of a micro-batch, K its target tokens, D width,
E features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from methods.batch import Batch
from methods.forward import Forward
from methods.kinds.causal import beside_head, source_mask
from methods.objective import Loss
from methods.rl.advantages import normalised
from methods.rl.base import PolicyGradient, RlConfig
from methods.rl.episodes import Episodes
from methods.rl.losses import aggregated, clipped, policy_losses
from methods.writing import draw_seed

_WHITENING = 1e-8  # beside the standard deviation; ours


@dataclass(frozen=True, kw_only=True)
class PpoConfig(RlConfig):
    """gamma, lam: of the advantages (lambda). whiten: advantages over the tokens of the global batch.

    clip_low, clip_high: of the ratio. value_clip: how far a value may go from the old one before its loss is that of
    the clipped one, if larger; null: no clipping. value_weight: of the value loss.
    head_features: a linear layer without bias between hidden states and value, of this many outputs; null: none.
    head_dropout: of the hidden states that the head sees.
    """

    group_size: PositiveInt = 1
    epochs: PositiveInt = 2
    beta: NonNegativeFloat = 0.05
    kl: Literal["k1", "k2", "k3"] = "k1"
    kl_in: Literal["loss", "reward"] = "reward"
    gamma: Annotated[float, Gt(0.0), Le(1.0)] = 1.0
    lam: Annotated[float, Ge(0.0), Le(1.0)] = 0.95
    whiten: bool = True
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    value_clip: PositiveFloat | None = 0.2
    value_weight: NonNegativeFloat = 0.1
    head_features: PositiveInt | None = None
    head_dropout: Annotated[float, Ge(0.0), Lt(1.0)] = 0.0

    def __post_init__(self) -> None:
        if self.kl_in == "reward" and self.kl != "k1":
            raise ValueError(f"method.kl={self.kl}: with method.kl_in=reward it must be k1, which is unbiased")
        if self.dynamic_sampling and self.group_size == 1:
            raise ValueError(
                f"method.dynamic_sampling={self.dynamic_sampling}: must be 0 with method.group_size=1, as the rewards "
                "of one response do not differ"
            )


# The formulas ---------------------------------------------------------------------------------------------------------


def token_rewards(score: float, kl_T: Tensor | None, beta: float, tokens: int) -> Tensor:
    """-beta times the KL of every token, and the score of the response at its last. Returns [tokens]."""
    rewards_T = torch.zeros(tokens, dtype=torch.float64) if kl_T is None else -beta * kl_T.double()
    return torch.cat([rewards_T[:-1], rewards_T[-1:] + score])


def generalised_advantages(rewards_NT: Tensor, values_NT: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = sum_l (gamma lam)^l delta_{t+l}. Returns [N, T].

    Args:
        rewards_NT: of every token; 0 behind the end of a response.
        values_NT: what was expected before it; 0 behind the end.
    """
    next_NT = torch.cat([values_NT[:, 1:], torch.zeros_like(values_NT[:, :1])], dim=1)
    delta_NT = rewards_NT + gamma * next_NT - values_NT
    advantage_NT = delta_NT.clone()
    for place in range(delta_NT.shape[1] - 2, -1, -1):
        advantage_NT[:, place] += gamma * lam * advantage_NT[:, place + 1]
    return advantage_NT


def value_losses(values_K: Tensor, old_K: Tensor, returns_K: Tensor, clip: float | None = 0.2) -> Tensor:
    """1/2 max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2). Returns [K]."""
    free_K = (values_K - returns_K).square()
    if clip is None:
        return free_K / 2
    bounded_K = torch.maximum(torch.minimum(values_K, old_K + clip), old_K - clip)
    return torch.maximum(free_K, (bounded_K - returns_K).square()) / 2


class Critic(nn.Module):
    """A value for every hidden state, by features of it that a method may use as well."""

    def __init__(self, width: int, features: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.features = nn.Identity() if features is None else nn.Linear(width, features, bias=False)
        self.value = nn.Linear(features or width, 1)

    def forward(self, hidden_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Values [B, T] and features [B, T, E]."""
        features_BTE = self.features(self.dropout(hidden_BTD))
        return self.value(features_BTE).squeeze(-1), features_BTE


class Ppo(PolicyGradient):
    """PPO-clip with a critic on the policy's hidden states, advantages by GAE (arXiv 1707.06347)."""

    config: PpoConfig
    critical = True
    parts = ("critic",)
    excludes: ClassVar[Mapping[str, str]] = {
        "penalty=kl_reference": "PPO has a KL to the reference of its own, method.beta, and its critic must be asked "
        "in the pass that the penalty would make"
    }

    def shape(self, model: nn.Module) -> None:
        """Without the model's own dropout, and with a critic."""
        super().shape(model)
        held: Any = model
        head: Tensor = held.get_output_embeddings().weight
        # The same start on every process and in every attempt.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(self.context.seed, 2))
            critic = Critic(head.shape[1], self.config.head_features, self.config.head_dropout)
        held.critic = critic.to(head)

    # Once a turn -----------------------------------------------------------------------------------------------------

    def measures(self, batch: Batch) -> dict[str, Tensor]:
        """Also the values."""
        with beside_head(self.context.role("policy"), "critic") as said:
            found = super().measures(batch)
        values_BT, _ = said[-1]
        return {**found, "values": values_BT[source_mask(batch)].float()}

    def advantages(self, episodes: Episodes) -> Tensor:
        """Of a response there is its reward alone; advantages are those of its tokens. Returns float64 [N]."""
        return episodes.reward_N

    def token_advantages(self, episodes: Episodes, advantage_N: Tensor) -> list[Tensor]:
        """Those of GAE, whitened over all processes' tokens; what values should have been is kept for the loss.

        Args:
            episodes: of this process.
            advantage_N: the rewards of whole responses; NaN for none, whose tokens do not count.
        """
        config = self.config
        counts = episodes.tokens_N.tolist()
        found = [torch.zeros(0, dtype=torch.float64)]
        if counts:
            kl: list[Tensor | None] = [*self._reference_kl] or [None] * len(counts)
            scores = advantage_N.nan_to_num(0.0).tolist()
            rewards = [
                token_rewards(score, kl_T, config.beta, count)
                for score, kl_T, count in zip(scores, kl, counts, strict=True)
            ]
            values_NT = pad_sequence([values_T.double() for values_T in episodes.values], batch_first=True)
            rewards_NT = pad_sequence(rewards, batch_first=True)
            advantage_NT = generalised_advantages(rewards_NT, values_NT, config.gamma, config.lam)
            found = [row_T[:count] for row_T, count in zip(advantage_NT, counts, strict=True)]
        pairs = zip(found, episodes.values, strict=False)
        self._returns = [(advantage_T + values_T).float() for advantage_T, values_T in pairs]
        flat_K = torch.cat(found)
        if config.whiten:
            counted_K = self._counted(episodes).repeat_interleave(episodes.tokens_N)
            flat_K, group_K, own = self.everywhere(
                torch.where(counted_K, flat_K, torch.nan), torch.zeros_like(counted_K, dtype=torch.long)
            )
            flat_K = normalised(flat_K, torch.zeros_like(group_K), "batch", "batch", _WHITENING)[own]
        return list(flat_K.float().split(counts))

    def _counted(self, episodes: Episodes) -> Tensor:
        """Responses whose tokens carry loss: with a reward, and an end if that is asked for. Returns bool [N]."""
        scored_N = ~episodes.reward_N.isnan()
        return scored_N & episodes.ended_N if self.config.mask_truncated else scored_N

    def token_weights(self, episodes: Episodes, advantages: list[Tensor], kept: Sequence[int]) -> list[Tensor]:
        """1 for the tokens that carry loss, else 0."""
        weight_N = self._counted(episodes).float()
        return [weight.expand(count) for weight, count in zip(weight_N, episodes.tokens_N.tolist(), strict=True)]

    def _batch(self, episodes: Episodes, places: Sequence[int], told: Mapping[str, list[Tensor]]) -> Batch:
        """Also what the value loss needs, where it is one of the loss."""
        further = {"old_values": episodes.values, "returns": self._returns} if told else {}
        return super()._batch(episodes, places, {**told, **further})

    # The loss --------------------------------------------------------------------------------------------------------

    def loss(self, forward: Forward) -> Loss:
        """Policy and value loss, and what a method makes of the features, from one pass."""
        with beside_head(forward.roles["policy"], "critic") as said:
            policy = super().loss(forward)
        values_BT, features_BTE = said[-1]
        added, means = self.critic_loss(forward.batch, values_BT, features_BTE)
        return Loss(policy.sum + added, policy.metrics, {**policy.means, **means})

    def critic_loss(
        self, batch: Batch, values_BT: Tensor, features_BTE: Tensor
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """What is added to the policy's loss, summed like it, and further means to be logged."""
        config = self.config
        if not batch.target_count:  # a pass that others wait for
            return values_BT.sum() * 0.0, {}
        values_K, weight_K = values_BT[source_mask(batch)].float(), batch.values_K["weight"]
        old_K, returns_K = batch.values_K["old_values"], batch.values_K["returns"]
        losses_K = value_losses(values_K, old_K, returns_K, config.value_clip)
        total = aggregated(losses_K, weight_K, batch, config.aggregation, config.max_new_tokens)
        count = weight_K.sum()
        return config.value_weight * total, {
            "value_loss": ((losses_K.detach() * weight_K).sum(), count),
            "value": ((values_K.detach() * weight_K).sum(), count),
            "return": ((returns_K * weight_K).sum(), count),
        }

    def token_losses(self, logps_K: Tensor, batch: Batch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The clipped surrogate."""
        config, advantage_K = self.config, batch.values_K["advantage"]
        ratio_K = logps_K - self.old_logps(logps_K, batch)
        losses_K = policy_losses(logps_K, ratio_K, advantage_K, "clip", config.clip_low, config.clip_high)
        low_K, high_K = clipped(ratio_K.detach(), advantage_K, config.clip_low, config.clip_high)
        tokens = logps_K.new_tensor(float(len(logps_K)))
        return losses_K, {"clipped_low": (low_K.sum(), tokens), "clipped_high": (high_K.sum(), tokens)}
