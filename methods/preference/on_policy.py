"""Preference losses on a bandit: what on-policy samples and a negative gradient do, without a language model.

Tajwar et al.: "Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data", 2024, arXiv 2404.14367; the
bandit is that of the authors' code (Asap7772/understanding-rlhf), its one-token form. A policy pi(a | s) over A actions
is first fitted to where the data are. Then, for each state, N actions are sampled (in the first epoch from the data, in
every later one from pi as it is), rewarded, and T gradient steps are taken on them, with one of

    best_of_n          -log pi(a_best)
    negative_gradient  -log pi(a_best) + beta log pi(a_worst)
    rwr                -sum_n exp(r_n / beta) log pi(a_n)
    reinforce          -sum_n z_n log pi(a_n),                             z: r normalised within the state
    ppo                -sum_n min(q_n z_n, clip(q_n, 0.8, 1.2) z_n),       q = pi / pi when they were sampled
    dpo                -sum over pairs of log sigmoid(beta h),             h = log pi/pi_data (better) - (worse)
    ipo                 sum over pairs of (h - beta)^2

T = 1 is fully on-policy; the number of gradient steps is the same for every T. Pairs whose rewards differ by less than
a threshold are left out. In `ipo` beta is the target of h, as in the authors' code (1 / (2 tau) in the paper of IPO).

Legend: S states, A actions, N samples of a state, P pairs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from methods.dataset import Dataset
from methods.method import Context
from methods.simulation import Simulation

_CLIP = 0.2
_SMOOTHING = 1e-6  # of bins that the data never reach, whose log-probability would be infinite


@dataclass(frozen=True, kw_only=True)
class ActionsConfig:
    """Actions are bins of [-1, 1], the data tanh of a Cauchy variable, the reward a bump exp(-((a - peak) / width)^2).

    actions: A. peak, width: in bins. location, scale: of the Cauchy variable. draws: from which pi_data is counted.
    states: S. features: of a state, standard normal.
    """

    actions: PositiveInt = 100
    peak: NonNegativeFloat = 70.0
    width: PositiveFloat = 10.0
    location: float = -0.7
    scale: PositiveFloat = 0.4
    draws: PositiveInt = 10_000
    states: PositiveInt = 10
    features: PositiveInt = 10

    def __post_init__(self) -> None:
        if self.actions < 2:
            raise ValueError(f"dataset.actions={self.actions}: must be at least 2")


class Bandit(NamedTuple):
    """reward_A; data_A: probability of each action in the data; states_SF."""

    reward_A: Tensor
    data_A: Tensor
    states_SF: Tensor


class Actions(Dataset):
    """A bandit with states, its data where the reward may be low."""

    config: ActionsConfig
    type = "actions"

    def load(self, seed: int) -> Bandit:
        """Draw the data and the states."""
        config = self.config
        random = torch.Generator().manual_seed(seed)
        uniform = torch.rand(config.draws, generator=random, dtype=torch.float64)
        drawn = torch.tanh(config.location + config.scale * torch.tan(math.pi * (uniform - 0.5)))
        bins = ((drawn + 1) / 2 * config.actions).long().clamp(0, config.actions - 1)
        data_A = torch.bincount(bins, minlength=config.actions) / config.draws + _SMOOTHING
        states_SF = torch.randn(config.states, config.features, generator=random)
        return Bandit(bump(config.actions, config.peak, config.width), data_A / data_A.sum(), states_SF)


def bump(actions: int, peak: float, width: float) -> Tensor:
    """exp(-((a - peak) / width)^2) for a = 0, 1, ... Returns [A]."""
    return torch.exp(-(((torch.arange(actions) - peak) / width) ** 2))


# The losses, each a mean over states of a sum over a state's samples or pairs ------------------------------------


def best_of_n(logps_SN: Tensor, rewards_SN: Tensor) -> Tensor:
    """-log pi(a_best). Scalar."""
    return -logps_SN.gather(1, rewards_SN.argmax(1, keepdim=True)).mean()


def negative_gradient(logps_SN: Tensor, rewards_SN: Tensor, beta: float) -> Tensor:
    """-log pi(a_best) + beta log pi(a_worst); best of n at beta = 0. Scalar."""
    worst = logps_SN.gather(1, rewards_SN.argmin(1, keepdim=True)).mean()
    return best_of_n(logps_SN, rewards_SN) + beta * worst


def reward_weighted(logps_SN: Tensor, rewards_SN: Tensor, beta: float) -> Tensor:
    """-sum exp(r / beta) log pi(a), the weights scaled so that a state's largest is 1. Scalar."""
    weights_SN = torch.exp((rewards_SN - rewards_SN.amax(1, keepdim=True)) / beta)
    return -(weights_SN * logps_SN).sum(1).mean()


def normalised(rewards_SN: Tensor) -> Tensor:
    """Rewards of each state with mean 0 and standard deviation 1; 0 where they are all equal. Returns [S, N]."""
    centred_SN = rewards_SN - rewards_SN.mean(1, keepdim=True)
    return centred_SN / rewards_SN.std(1, keepdim=True, correction=0).clamp_min(1e-8)


def reinforce(logps_SN: Tensor, rewards_SN: Tensor) -> Tensor:
    """-sum z log pi(a). Scalar."""
    return -(normalised(rewards_SN) * logps_SN).sum(1).mean()


def ppo(logps_SN: Tensor, sampled_logps_SN: Tensor, rewards_SN: Tensor) -> Tensor:
    """PPO's clipped surrogate, without a critic. Scalar."""
    ratio_SN = torch.exp(logps_SN - sampled_logps_SN)
    advantage_SN = normalised(rewards_SN)
    clipped_SN = ratio_SN.clamp(1 - _CLIP, 1 + _CLIP)
    return -torch.minimum(ratio_SN * advantage_SN, clipped_SN * advantage_SN).sum(1).mean()


def pairs(rewards_SN: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """State, better and worse sample of every pair whose rewards differ by at least the threshold. Each [P]."""
    gap_SNN = rewards_SN.unsqueeze(2) - rewards_SN.unsqueeze(1)
    state_P, better_P, worse_P = torch.nonzero((gap_SNN >= threshold) & (gap_SNN > 0), as_tuple=True)
    return state_P, better_P, worse_P


def pairwise(logratios_SN: Tensor, rewards_SN: Tensor, loss: str, beta: float, threshold: float) -> Tensor:
    """DPO or IPO over the pairs of each state; 0 without any. Scalar."""
    state_P, better_P, worse_P = pairs(rewards_SN, threshold)
    h_P = logratios_SN[state_P, better_P] - logratios_SN[state_P, worse_P]
    losses_P = -F.logsigmoid(beta * h_P) if loss == "dpo" else (h_P - beta) ** 2
    return losses_P.sum() / len(rewards_SN)


# The study -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OnPolicyStudyConfig:
    """loss: as above. beta: of the loss. inner_steps: T. steps: gradient steps in all. samples: N. threshold: of pairs.

    lr: of Adam. hidden: width of the policy's two layers. fit_steps, fit_lr: of the fit to the data that comes first.
    """

    loss: Literal["best_of_n", "negative_gradient", "rwr", "reinforce", "ppo", "dpo", "ipo"] = "dpo"
    beta: NonNegativeFloat = 0.1
    inner_steps: PositiveInt = 1
    steps: PositiveInt = 1500
    samples: PositiveInt = 10
    threshold: NonNegativeFloat = 0.0
    lr: PositiveFloat = 1e-3
    hidden: PositiveInt = 64
    fit_steps: PositiveInt = 100
    fit_lr: PositiveFloat = 0.01

    def __post_init__(self) -> None:
        if self.loss in ("rwr", "dpo", "ipo") and self.beta == 0:
            raise ValueError(f"method.beta={self.beta}: must be greater than 0 for loss {self.loss}")
        if self.loss == "negative_gradient" and self.beta > 1:
            raise ValueError(
                f"method.beta={self.beta}: must be at most 1 for loss negative_gradient, which diverges beyond"
            )
        if self.samples < 2:
            raise ValueError(f"method.samples={self.samples}: must be at least 2, a best and a worst")


class Policy(nn.Module):
    """An MLP from a state's features to log-probabilities of the actions."""

    def __init__(self, features: int, hidden: int, actions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, actions),
        )  # fmt: skip

    def forward(self, states_SF: Tensor) -> Tensor:
        """Log-probabilities [S, A]."""
        return F.log_softmax(self.layers(states_SF), dim=-1)


def kl(logps_SA: Tensor, other_SA: Tensor) -> Tensor:
    """KL of the first to the second, in nats, mean over states. Scalar."""
    return (logps_SA.exp() * (logps_SA - other_SA)).sum(-1).mean()


class OnPolicyStudy(Simulation):
    """Preference losses on a bandit, from on-policy to offline (arXiv 2404.14367)."""

    config: OnPolicyStudyConfig
    data: ClassVar[tuple[str, ...]] = ("actions",)

    def run(self, context: Context) -> Mapping[str, float]:
        """Fit the policy to the data, then train it by the loss; returns what it has become."""
        bandit: Bandit = context.dataset
        torch.manual_seed(context.seed)  # the policy's first weights
        self.random = torch.Generator().manual_seed(context.seed)
        policy = Policy(bandit.states_SF.shape[1], self.config.hidden, len(bandit.reward_A))
        self._fit(policy, bandit)
        optimizer = torch.optim.Adam(policy.parameters(), lr=self.config.lr)
        rewarded = 0.0  # summed over the steps
        fixed_SN = self._draw(bandit.data_A.log().expand(len(bandit.states_SF), -1))
        for step in context.steps("training", self.config.steps):
            logps_SA = policy(bandit.states_SF)
            if step % self.config.inner_steps == 0:
                actions_SN = fixed_SN if step == 0 else self._draw(logps_SA.detach())
                sampled_SN = logps_SA.detach().gather(1, actions_SN)
            rewarded += float((logps_SA.detach().exp() * bandit.reward_A).sum(-1).mean())
            if step % max(self.config.steps // 100, 1) == 0:
                context.log(self._measure(logps_SA.detach(), bandit, fixed_SN), step)
            loss = self._loss(logps_SA.gather(1, actions_SN), sampled_SN, bandit, actions_SN)
            if not torch.isfinite(loss):
                raise ValueError(f"method.lr={self.config.lr}: the loss is {float(loss)} at step {step}; lower it")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            measured = self._measure(policy(bandit.states_SF), bandit, fixed_SN)
        context.log(measured, self.config.steps)
        return {**measured, "policy/reward_over_training": rewarded / self.config.steps}

    def _fit(self, policy: Policy, bandit: Bandit) -> None:
        """KL(pi || pi_data), as in the authors' code."""
        optimizer = torch.optim.Adam(policy.parameters(), lr=self.config.fit_lr)
        data_SA = bandit.data_A.log().expand(len(bandit.states_SF), -1)
        for _ in range(self.config.fit_steps):
            loss = kl(policy(bandit.states_SF), data_SA)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _draw(self, logps_SA: Tensor) -> Tensor:
        return torch.multinomial(logps_SA.exp(), self.config.samples, replacement=True, generator=self.random)

    def _loss(self, logps_SN: Tensor, sampled_SN: Tensor, bandit: Bandit, actions_SN: Tensor) -> Tensor:
        config, rewards_SN = self.config, bandit.reward_A[actions_SN]
        if config.loss == "best_of_n":
            return best_of_n(logps_SN, rewards_SN)
        if config.loss == "negative_gradient":
            return negative_gradient(logps_SN, rewards_SN, config.beta)
        if config.loss == "rwr":
            return reward_weighted(logps_SN, rewards_SN, config.beta)
        if config.loss == "reinforce":
            return reinforce(logps_SN, rewards_SN)
        if config.loss == "ppo":
            return ppo(logps_SN, sampled_SN, rewards_SN)
        logratios_SN = logps_SN - bandit.data_A.log()[actions_SN]
        return pairwise(logratios_SN, rewards_SN, config.loss, config.beta, config.threshold)

    def _measure(self, logps_SA: Tensor, bandit: Bandit, offline_SN: Tensor) -> dict[str, float]:
        """What the policy is, exactly; log-probabilities of the better and the worse of the first, offline samples."""
        rewards_SN = bandit.reward_A[offline_SN]
        offline_logps_SN = logps_SA.gather(1, offline_SN)
        data_SA = bandit.data_A.log().expand_as(logps_SA)
        measured: dict[str, Any] = {
            "policy/reward": (logps_SA.exp() * bandit.reward_A).sum(-1).mean(),
            "policy/kl_to_data": kl(logps_SA, data_SA),
            "policy/kl_from_data": kl(data_SA, logps_SA),
            "policy/entropy": -(logps_SA.exp() * logps_SA).sum(-1).mean(),
            "offline/best_logp": -best_of_n(offline_logps_SN, rewards_SN),
            "offline/worst_logp": -best_of_n(offline_logps_SN, -rewards_SN),
        }
        measured["offline/margin"] = measured["offline/best_logp"] - measured["offline/worst_logp"]
        return {name: float(value) for name, value in measured.items()}
