"""BOND: the policy is moved to the distribution of the best of N responses, so that one is enough. J-BOND, its method.

Sessa et al.: "BOND: Aligning LLMs with Best-of-N Distillation", 2024, arXiv 2407.14622. With p_<= and p_< the
probabilities that a response of the reference has a reward up to, or below, that of y, the best of N (of equals any) is

    pi_BoN(y) = ref(y) p_<=(y)^(N-1) sum_(i=1..N) (p_<(y) / p_<=(y))^(i-1)

(`evals.best_of_n.pmf`, whose form of it is (p_<=^N - p_<^N) ref / (p_<= - p_<); its KL and bound are there). The
objective is a Jeffreys divergence,

    (1 - b) KL(pi || pi_BoN) + b KL(pi_BoN || pi)                    which term has b is a guess; at 1/2 it is the same

Its second part imitates the best of N; its first is a policy gradient of log p_<=(y), with KL(pi || ref) at 1/(N - 1).

J-BOND does it with N = 2 against an anchor that follows the policy, again and again. Of a prompt, y ~ pi and
y_1, y_2 ~ anchor; y_b is the better of the two, and

    r(y) = -log 16 if y is worse than both, else 0           its mean at p_<= = 1/2 is log p_<=
    R    = r(y) - log pi(y)/anchor(y),   B = mean of R over the batch's other prompts
    gradient = -(1 - b) (R - B) grad log pi(y) - b grad log pi(y_b) + c log(pi(y)/anchor(y)) grad log pi(y)
    anchor <- (1 - eta) anchor + eta pi                      after every step

as a mean over prompts; log-probabilities are sums over tokens. Rewards count by their order alone. Defaults: b 1/2 and
eta 0.02 as they are known of the paper, c (0 or 1 there) 0; there is no other KL.

Legend: N responses of a process, in threes: y, y_1, y_2; G prompts; L outcomes.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from pydantic import NonNegativeFloat
from torch import Tensor

from methods.batch import Batch
from methods.generation import Written
from methods.method import Context
from methods.rl.advantages import centred
from methods.rl.base import RlConfig
from methods.rl.episodes import Episodes
from methods.rl.losses import policy_losses
from methods.rl.scoring import Scoring, rows_of
from methods.writing import draw_seed

_WORSE_THAN_BOTH = -math.log(16)  # at p_<= = 1/2 one y in four is worse than both


@dataclass(frozen=True, kw_only=True)
class BondConfig(RlConfig):
    """jeffreys: b, weight of the forward part. gamma: c, weight of KL(policy || anchor). eta: rate of the anchor.

    group_size: 3, one response of the policy and two of the anchor. aggregation: sums over tokens, mean over prompts.
    """

    group_size: Literal[3] = 3
    aggregation: Literal["length"] = "length"
    jeffreys: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    gamma: NonNegativeFloat = 0.0
    eta: Annotated[float, Ge(0.0), Le(1.0)] = 0.02

    def __post_init__(self) -> None:
        if self.temperature != 1.0 or self.top_p != 1.0:
            raise ValueError(
                f"method.temperature={self.temperature}, method.top_p={self.top_p}: must be 1; the policy itself is "
                "compared with its anchor"
            )
        if self.epochs * self.minibatches != 1:
            raise ValueError(
                f"method.epochs={self.epochs}, method.minibatches={self.minibatches}: must be 1; without ratios every "
                "step needs responses of its own"
            )
        if self.beta:
            raise ValueError(f"method.beta={self.beta}: must be 0; the policy is held to its anchor, see method.gamma")


def quantile_rewards(rewards_N: Tensor, reference_M: Tensor) -> Tensor:
    """r_BOND = log p_<=, p_<= as the share of rewards of reference responses that are not above. Returns [N].

    -inf where all are. Args: rewards [N]; of M responses of the reference to the same prompt.
    """
    return (reference_M[None, :] <= rewards_N[:, None]).to(torch.float64).mean(1).log()


def jbond_rewards(reward_G: Tensor, anchor_G2: Tensor) -> Tensor:
    """-log 16 where a response is worse than both of the anchor's, else 0. Returns [G]; NaN where a reward is."""
    worse_G = reward_G < anchor_G2.amin(1)
    found_G = torch.where(worse_G, _WORSE_THAN_BOTH, torch.zeros_like(reward_G))
    return torch.where((reward_G + anchor_G2.sum(1)).isnan(), torch.nan, found_G)


def expected_jbond_reward(up_to: Tensor) -> Tensor:
    """E r = -(1 - p_<=)^2 log 16 of a response with this p_<=, over the two of the anchor."""
    return (1 - up_to).square() * _WORSE_THAN_BOTH


def jeffreys(p_L: Tensor, q_L: Tensor, weight: float) -> Tensor:
    """(1 - weight) KL(p || q) + weight KL(q || p), of distributions that are nowhere 0. A scalar."""
    log_ratio_L = p_L.log() - q_L.log()
    return ((1 - weight) * p_L - weight * q_L) @ log_ratio_L


def coefficients(rewards_G: Tensor, log_ratio_G: Tensor, baseline_G: Tensor, weight: float, gamma: float) -> Tensor:
    """What grad log pi(y) of each prompt's own response is multiplied with to ascend. Returns [G].

    Args:
        rewards_G: r.
        log_ratio_G: log pi(y)/anchor(y).
        baseline_G: B.
        weight, gamma: b and c.
    """
    return (1 - weight) * (rewards_G - log_ratio_G - baseline_G) - gamma * log_ratio_G


class Bond(Scoring):
    """J-BOND: Jeffreys divergence to the best of two responses of an anchor that follows (arXiv 2407.14622)."""

    config: BondConfig
    frozen = ("anchor",)
    whole_groups = True
    _restored: Mapping[str, Tensor] | None = None
    _has_moved = False

    def prepare(self, context: Context) -> Mapping[str, float]:
        """As of the base; an interrupted run gets its anchor back.

        Raises:
            ValueError: the anchor cannot follow or be kept.
        """
        stage, eta = context.config["engine"]["zero_stage"], self.config.eta
        if eta and stage == 3:
            raise ValueError(
                f"method.eta={eta}: the anchor goes into the checkpoint whole, which needs engine.zero_stage 0, 1 or "
                f"2, got {stage}"
            )
        if eta and context.config["adapter"].get("_target_") is not None:
            raise ValueError(f"method.eta={eta}: the anchor follows the weights themselves, which an adapter leaves")
        found = super().prepare(context)
        if self._restored is not None:
            context.role("anchor").load_state_dict(self._restored)
            self._restored, self._has_moved = None, True
        return found

    # Episodes ---------------------------------------------------------------------------------------------------------

    def write(self, prompts: Sequence[list[int]], seed: int) -> list[Written]:
        """To each prompt a response of the policy and two of the anchor."""
        began = time.perf_counter()
        own = self.context.write("policy", prompts, self.sampling, seed)
        twice = [prompt for prompt in prompts for _ in range(2)]
        # With the same seed the anchor's first would be the policy's as long as they are one.
        others = self.context.write("anchor", twice, self.sampling, draw_seed(seed, 1))
        self._seconds["generation"] += time.perf_counter() - began
        return [one for place, first in enumerate(own) for one in (first, *others[2 * place : 2 * place + 2])]

    def advantages(self, episodes: Episodes) -> Tensor:
        """What grad log pi of each response is multiplied with: of y, of y_b; of the other 0. Returns float64 [N]."""
        config = self.config
        sums = {role: self.asked_whole(role, episodes, range(0, len(episodes), 3)) for role in ("policy", "anchor")}
        log_ratio_G = sums["policy"] - sums["anchor"]
        reward_G3 = episodes.reward_N.view(-1, 3)
        worth_G = jbond_rewards(reward_G3[:, 0], reward_G3[:, 1:])
        return_G = worth_G - log_ratio_G
        everyone, together, own = self.everywhere(return_G, torch.arange(len(return_G)))
        baseline_G = return_G - centred(everyone, torch.zeros_like(together), "leave_one_out")[own]
        found_G3 = torch.zeros_like(reward_G3)
        found_G3[:, 0] = coefficients(worth_G, log_ratio_G, baseline_G, config.jeffreys, config.gamma)
        best_G = reward_G3[:, 1:].nan_to_num(-torch.inf).argmax(1)
        found_G3[torch.arange(len(best_G)), 1 + best_G] = config.jeffreys
        self._log_ratio_N = log_ratio_G.repeat_interleave(3)
        self._worth_N = worth_G.repeat_interleave(3)
        return torch.where(worth_G.isnan()[:, None], torch.nan, found_G3).flatten()

    def keep(self, episodes: Episodes, advantages: list[Tensor]) -> list[int]:
        """Of each prompt whose responses are scored, y and y_b."""
        place_N, is_scored_N = torch.arange(len(episodes)) % 3, ~self._worth_N.isnan()
        best_G = episodes.reward_N.view(-1, 3)[:, 1:].nan_to_num(-torch.inf).argmax(1)
        kept_N = is_scored_N & ((place_N == 0) | (place_N == 1 + best_G.repeat_interleave(3)))
        return [int(place) for place in kept_N.nonzero().squeeze(-1)]

    def _batch(self, episodes: Episodes, places: Sequence[int], told: Mapping[str, list[Tensor]]) -> Batch:
        """With whose response each is, and what the anchor said of it."""
        batch = super()._batch(episodes, places, told)
        index = torch.tensor(list(places))
        more = {
            "own": index % 3 == 0,
            "log_ratio": self._log_ratio_N[index].float(),
            "worth": self._worth_N[index].float(),
        }
        device = batch.input_ids_BT.device
        return replace(batch, values_S={**batch.values_S, **{name: value.to(device) for name, value in more.items()}})

    # The loss ---------------------------------------------------------------------------------------------------------

    def count(self, batch: Batch) -> int:
        """Prompts: as many as responses of the policy."""
        return int(batch.values_S["own"].sum()) if batch.target_count else 0

    def token_losses(self, logps_K: Tensor, batch: Batch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Minus the coefficient times log pi."""
        own_S = batch.values_S["own"]
        prompts = own_S.sum()
        worse_S = (batch.values_S["worth"] < 0) & own_S
        means = {
            "anchor_kl": ((batch.values_S["log_ratio"] * own_S).sum(), prompts),
            "worse_than_both": (worse_S.sum(), prompts),
        }
        return policy_losses(logps_K, torch.zeros_like(logps_K), batch.values_K["advantage"], "reinforce"), means

    def _seen(self, logps_K: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Of the policy's own responses."""
        own_S = batch.values_S["own"]
        return super()._seen(logps_K[own_S[batch.sequence_K]], rows_of(batch, own_S))

    # The anchor -------------------------------------------------------------------------------------------------------

    def after_step(self, step: int) -> None:
        """Let the anchor follow the policy."""
        super().after_step(step)
        if self.config.eta:
            self.context.follow("anchor", "policy", self.config.eta)
            self._has_moved = True

    def state_dict(self) -> dict[str, Any]:
        """Also the anchor, once it is no longer what training started from; whole on each process."""
        if not self._has_moved:
            return super().state_dict()
        anchor = self.context.role("anchor").state_dict()
        return {**super().state_dict(), "anchor": {name: value.cpu() for name, value in anchor.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the anchor until its model is there."""
        super().load_state_dict(state)
        self._restored = state.get("anchor")
