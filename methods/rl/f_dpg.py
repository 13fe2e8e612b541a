"""f-DPG: the policy is moved to an explicit target distribution, along any f-divergence between the two.

Go, Korbak, Kruszewski, Rozen, Ryu, Dymetman: "Aligning Language Models with Preferences through f-divergence
Minimization", 2023, arXiv 2302.08215. Of a base model a, the target p = P / Z has a density that can be computed:

    exponential   P(x) = a(x) exp(r(x) / target_beta)       the optimum of a reward with a KL to a
    binary        P(x) = a(x) b(x), b the reward, in [0, 1]

and with t = pi(x) / p(x), f' of the table below and x of the policy,

    grad D_f(pi || p) = E_pi[ f'(t) grad log pi(x) ],      l = log t = log pi(x) - log P(x) + log Z

    f'                l = log t                                   D_f(pi || p)
    forward_kl        -e^(-l)                                     KL(p || pi): GDC, DPG
    reverse_kl        l + 1                                       KL(pi || p): reward with a KL penalty
    js                log 2 - softplus(-l)                        2 JSD
    total_variation   sign(l) / 2                                 TV
    neyman            1 - e^(-2l)                                 chi^2(p || pi)
    pearson           2 (e^l - 1)                                 chi^2(pi || p)
    alpha, hellinger  see `methods/divergences.py`, where the policy is p of the table and the target q

    loss = mean over x of (pi/q)(x) (-A) log pi(x),   A = -f'(t) - mean of the -f'(t) before

q is the policy that wrote x; all but the last log pi has no gradient, and log-probabilities are sums over tokens. Z is
the mean of P(x)/q(x) over all x so far, those of the turn with them; P(x)/q(x) is a fair estimate of it. With
`partition: shared` there is one, as for text from one prompt; with `prompt` each prompt has its own, since it has a
target of its own (that it rolls on for each is ours). In exponentials l is at most `clamp` off 0, and b is at least
e^(-clamp): a target that rules x out would have an infinite reverse KL.

The baseline is the mean over the last `window` values of -f'(t). It and Z change after a turn's steps alone.

Legend: N responses of a process, S sequences, K target tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Lt
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from methods.batch import Batch, sum_by_sequence
from methods.divergences import f_score
from methods.rl.base import RlConfig
from methods.rl.episodes import Episodes
from methods.rl.scoring import Scoring

Divergence = Literal["forward_kl", "reverse_kl", "js", "total_variation", "neyman", "pearson", "alpha", "hellinger"]
_SHARED = -1  # the key of the one Z of all prompts


@dataclass(frozen=True, kw_only=True)
class FDpgConfig(RlConfig):
    """divergence: D_f(policy || target), see `methods.rl.f_dpg`. alpha: of the alpha divergence.

    target: exponential | binary. target_beta: of the exponential one. partition: of whom Z is. window: of the baseline,
    responses; clamp: of log(policy / target) in exponentials. aggregation: sums over tokens, mean over responses.
    """

    aggregation: Literal["length"] = "length"
    divergence: Literal[
        "forward_kl", "reverse_kl", "js", "total_variation", "neyman", "pearson", "alpha", "hellinger"
    ] = "js"
    alpha: Annotated[float, Gt(0.0), Lt(1.0)] = 0.5
    target: Literal["exponential", "binary"] = "exponential"
    target_beta: PositiveFloat = 0.1
    partition: Literal["shared", "prompt"] = "prompt"
    window: PositiveInt = 1024
    clamp: PositiveFloat = 20.0

    def __post_init__(self) -> None:
        if self.temperature != 1.0 or self.top_p != 1.0:
            raise ValueError(
                f"method.temperature={self.temperature}, method.top_p={self.top_p}: must be 1; the policy itself is "
                "compared with its target"
            )
        if self.beta:
            raise ValueError(f"method.beta={self.beta}: must be 0; the base model is in the target, see target_beta")


def f_prime(divergence: Divergence, log_t: Tensor, alpha: float = 0.5, clamp: float = 20.0) -> Tensor:
    """f'(t) of D_f(pi || p), from log t = log pi - log p. Same shape; increasing.

    Args:
        alpha: of the alpha divergence, in (0, 1).
        clamp: how far log t may be off 0 in an exponential.
    """
    if divergence == "reverse_kl":
        return log_t + 1
    if divergence in ("js", "total_variation"):
        return f_score(divergence, log_t)
    held = log_t.clamp(-clamp, clamp)
    return -torch.expm1(-2 * held) if divergence == "neyman" else f_score(divergence, held, alpha)


def log_target_weight(rewards_N: Tensor, target: str, beta: float, clamp: float = 20.0) -> Tensor:
    """log P(x)/a(x): r / beta of the exponential target, log b of the binary one. Returns [N]; NaN where r is.

    Raises:
        ValueError: a reward of the binary target outside of [0, 1].
    """
    if target == "exponential":
        return rewards_N / beta
    wrong = rewards_N[(rewards_N < 0) | (rewards_N > 1)]
    if len(wrong):
        raise ValueError(f"method.target=binary: rewards must be in [0, 1], got {float(wrong[0])}")
    return rewards_N.log().clamp_min(-clamp)


@dataclass(frozen=True)
class Partition:
    """Z by key, as log of the sum of P(x)/q(x) over all x so far, and their number."""

    log_sums: Mapping[int, float]
    counts: Mapping[int, int]

    def with_(self, keys: Sequence[int], log_weights: Sequence[float]) -> "Partition":
        """With further log P(x)/q(x); NaN is not counted."""
        log_sums, counts = dict(self.log_sums), dict(self.counts)
        for key, value in zip(keys, log_weights, strict=True):
            if value == value:
                both = torch.tensor([log_sums.get(key, -torch.inf), value], dtype=torch.float64)
                log_sums[key], counts[key] = float(both.logsumexp(0)), counts.get(key, 0) + 1
        return Partition(log_sums, counts)

    def log_z(self, keys: Sequence[int]) -> Tensor:
        """log Z of each key; NaN without any x. Returns float64 [N]."""
        sums = torch.tensor([self.log_sums.get(key, torch.nan) for key in keys], dtype=torch.float64)
        return sums - torch.tensor([float(self.counts.get(key, 1)) for key in keys], dtype=torch.float64).log()


class FDpg(Scoring):
    """f-DPG: policy gradient of an f-divergence to an explicit target (arXiv 2302.08215)."""

    config: FDpgConfig
    frozen = ("reference",)

    def __init__(self, config: FDpgConfig) -> None:
        super().__init__(config)
        self._partition = Partition({}, {})
        self._recent = torch.zeros(0, dtype=torch.float64)  # pseudo-rewards -f'(t), the last ones
        self._after_turn: tuple[Partition, Tensor] | None = None

    def advantages(self, episodes: Episodes) -> Tensor:
        """-f'(t) less the baseline, of the policy that wrote. Returns float64 [N]."""
        config = self.config
        own_N, base_N = (self.asked_whole(role, episodes) for role in ("policy", "reference"))
        weight_N = log_target_weight(episodes.reward_N, config.target, config.target_beta, config.clamp)
        is_shared = config.partition == "shared"
        keys = [_SHARED] * len(episodes) if is_shared else episodes.example_N.tolist()
        told = (keys, (base_N + weight_N - own_N).tolist())
        partition = self._partition
        for theirs in self.context.gathered(told):
            partition = partition.with_(*theirs)
        self._target_N = base_N + weight_N - partition.log_z(keys)  # log p(x)
        self._baseline = float(self._recent.mean()) if len(self._recent) else 0.0
        worth_N = -f_prime(config.divergence, own_N - self._target_N, config.alpha, config.clamp)
        found_N = torch.cat([self._recent, *self.context.gathered(worth_N)])
        self._after_turn = partition, found_N[~found_N.isnan()][-config.window :]
        return worth_N - self._baseline

    def keep(self, episodes: Episodes, advantages: list[Tensor]) -> list[int]:
        """Responses with a reward: others have no place in the target."""
        return [place for place in super().keep(episodes, advantages) if not self._target_N[place].isnan()]

    def _batch(self, episodes: Episodes, places: Sequence[int], told: Mapping[str, list[Tensor]]) -> Batch:
        """With log p(x) of each response, where there is a loss."""
        batch = super()._batch(episodes, places, told)
        if not told:  # nothing is told of tokens that are only measured
            return batch
        target_S = self._target_N[torch.tensor(list(places))].float().to(batch.input_ids_BT.device)
        return replace(batch, values_S={**batch.values_S, "target": target_S})

    def token_losses(self, logps_K: Tensor, batch: Batch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """(pi/q) (-A) log pi, with what is before log pi as it is now, without gradient."""
        config = self.config
        now_S = sum_by_sequence(logps_K.detach(), batch)
        before_S = sum_by_sequence(self.old_logps(logps_K, batch), batch)
        log_t_S = now_S - batch.values_S["target"]
        advantage_S = -f_prime(config.divergence, log_t_S, config.alpha, config.clamp) - self._baseline
        ratio_S = (now_S - before_S).clamp_max(config.clamp).exp()
        count = log_t_S.new_tensor(float(len(log_t_S)))
        means = {"log_t": (log_t_S.sum(), count), "pseudo_reward": ((advantage_S + self._baseline).sum(), count)}
        return -(ratio_S * advantage_S)[batch.sequence_K] * logps_K, means

    def report(self) -> Mapping[str, float]:
        """Also the mean of log Z and the baseline of the turn."""
        partition = self._after_turn[0] if self._after_turn else self._partition
        log_z = partition.log_z(list(partition.log_sums))
        told = {"log_z": float(log_z.mean()), "baseline": self._baseline} if len(log_z) else {}
        return {**super().report(), **told}

    def after_step(self, step: int) -> None:
        """Take what the turn brought into Z and the baseline."""
        super().after_step(step)
        if self._after_turn is not None:
            self._partition, self._recent = self._after_turn
            self._after_turn = None

    def state_dict(self) -> dict[str, Any]:
        """Also Z and the last pseudo-rewards, the same on each process."""
        partition = self._partition
        own = {"log_sums": dict(partition.log_sums), "counts": dict(partition.counts), "recent": self._recent}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with them."""
        super().load_state_dict(state)
        self._partition, self._recent = Partition(state["log_sums"], state["counts"]), state["recent"]
