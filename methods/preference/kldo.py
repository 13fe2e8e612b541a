"""KLDO: alignment as an estimate of the divergence between aligned and unaligned responses.

"LLM Safety Alignment is Divergence Estimation in Disguise", 2025, arXiv 2502.00657.

    r = beta (log pi(y|x) - log ref(y|x));    D+ good responses, D- bad ones
    L = -E_{D+}[r] + log E_{D-}[exp(r)]                              minus the Donsker-Varadhan bound of KL(D+ || D-)

Its minimum over free r is -KL(D+ || D-), at r = log(dD+/dD-) + c. Nothing holds -E[r] but the log term, and where the
data can be told apart the loss is **unbounded below**: stop early, or use `normalize`. The gradient of the log of a
batch's mean is biased; the estimators of the log term are

    biased   log (1/n) sum_j exp(r_j)
    ma       the same value; dr_j = exp(r_j) / (n m), m a moving average of the batches' means of exp(r)
    f_div    (1/n) sum_j exp(r_j - 1), a weaker bound (Nguyen, Wainwright, Jordan)

`normalize` multiplies the log term by min(E_{D+}[r], log term) / (log term + 1e-9), a number without gradient (with it,
the loss that is logged is not the paper's). It may be negative, and large where the log term is near 0: it is the
authors' code's, off by default because the paper's formula has none. `shift` takes a running mean of all rewards from r
in both terms. `divergence: hellinger` is HDO of the same family, exp(-r/2) on D+, exp(r/2) on D-, for which the
other settings mean nothing.

Running means are those of whole steps, over all processes: the first is the first batch's own, then 0.9 of the former
and 0.1 of the present one. The authors' code takes them per batch of one process, starts `ma` anew every epoch, and
leaves `shift` at the first batch's; those are not followed. They are part of a checkpoint. m is kept as a logarithm,
which needs no small number beside it.

D+ and D- are those of the *micro-batch* of one process; a term without a response in it is 0. A step's loss is the
mean of its micro-batches', by their responses. Exponentials go on as their tangents beyond e^40 (ours), which keeps
gradients finite.

Pairs are taken apart into single responses. Defaults: the authors' code's, but for `normalize`.

Legend: N responses of a micro-batch.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from evals.ranks import Ranks
from methods.divergences import exp_then_linear
from methods.objective import Loss
from methods.preference.base import BetaConfig, Responses
from methods.preference.labelled import Labelled, reward_metrics

_RATE = 0.1  # of the running means


@dataclass(frozen=True, kw_only=True)
class KldoConfig(BetaConfig):
    """divergence: kl | hellinger. estimator: of the log term. normalize, shift: as in the authors' code."""

    divergence: Literal["kl", "hellinger"] = "kl"
    estimator: Literal["biased", "ma", "f_div"] = "ma"
    normalize: bool = False
    shift: bool = False


def log_mean_exp(rewards: Tensor) -> Tensor:
    """log (1/n) sum_j exp(r_j). Scalar."""
    return rewards.logsumexp(0) - math.log(len(rewards))


def log_term(rewards: Tensor, estimator: str, log_mean: float | None = None) -> Tensor:
    """The estimate of log E[exp(r)]. Scalar.

    Args:
        rewards: of the bad responses [n], at least one.
        estimator: biased | ma | f_div.
        log_mean: ma: the logarithm of the running mean m.
    """
    if estimator == "f_div":
        return exp_then_linear(rewards - 1.0).mean()
    value = log_mean_exp(rewards)
    if estimator == "biased":
        return value
    assert log_mean is not None
    weights = (rewards.detach() - math.log(len(rewards)) - log_mean).exp()
    moved = (weights * rewards).sum()
    return moved - moved.detach() + value.detach()


def kldo_loss(
    good: Tensor, bad: Tensor, estimator: str = "biased", normalize: bool = False, log_mean: float | None = None
) -> Tensor:
    """-mean(r+) + the log term over r-, of rewards [n+] and [n-]; a term without rewards is 0. Scalar."""
    zero = torch.cat([good, bad]).sum() * 0.0
    aligned = good.mean() if len(good) else zero
    unaligned = log_term(bad, estimator, log_mean) if len(bad) else zero
    if normalize:
        unaligned = unaligned * (torch.minimum(aligned, unaligned) / (unaligned + 1e-9)).detach()
    return unaligned - aligned


def hdo_losses(rewards: Tensor, is_good: Tensor) -> Tensor:
    """exp(-r/2) where good, exp(r/2) where not. From [N] to [N]."""
    return exp_then_linear(torch.where(is_good, -rewards, rewards) / 2)


class Kldo(Labelled):
    """KLDO: good and bad responses told apart by the Donsker-Varadhan bound of a divergence (arXiv 2502.00657)."""

    config: KldoConfig
    couples = "micro-batch"

    def __init__(self, config: KldoConfig) -> None:
        super().__init__(config)
        self._log_mean: float | None = None  # of exp(r) over the bad responses, over the steps so far
        self._mean: float | None = None  # of r over all
        self._seen: list[tuple[float | None, float]] = []  # the same of the micro-batches of the step under way

    def loss_of(self, responses: Responses) -> Loss:
        """The loss of the micro-batch, times its responses: the loop divides by those of the step."""
        label_S = responses.batch.label_S
        assert label_S is not None, "responses have labels"
        config, rewards_N, is_good_N = self.config, self.config.beta * responses.all.log_ratio, label_S > 0.5
        good, bad = rewards_N[is_good_N], rewards_N[~is_good_N]
        if config.divergence == "hellinger":
            loss_sum = hdo_losses(rewards_N, is_good_N).sum()
        else:
            loss_sum = self._kl(good, bad) * len(rewards_N)
        return Loss(loss_sum, reward_metrics(rewards_N, is_good_N))

    def _kl(self, good: Tensor, bad: Tensor) -> Tensor:
        config = self.config
        mean = float(torch.cat([good, bad]).detach().mean())
        shift = _running(self._mean, mean) if config.shift else 0.0
        current = float(log_mean_exp(bad.detach())) if len(bad) else None
        self._seen.append((current, mean))
        log_mean = None if current is None else _running_log(self._log_mean, current) - shift
        return kldo_loss(good - shift, bad - shift, config.estimator, config.normalize, log_mean)

    def after_step(self, step: int) -> None:
        """Bring the running means up to date, in all processes alike."""
        seen = [found for rank in Ranks().exchange(self._seen) for found in rank]
        self._seen = []
        if not seen:
            return
        logs = torch.tensor([current for current, _ in seen if current is not None], dtype=torch.float64)
        if len(logs):
            self._log_mean = _running_log(self._log_mean, float(log_mean_exp(logs)))
        self._mean = _running(self._mean, sum(mean for _, mean in seen) / len(seen))

    def state_dict(self) -> dict[str, Any]:
        """The running means."""
        return {"log_mean": self._log_mean, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The running means."""
        self._log_mean, self._mean = state["log_mean"], state["mean"]


def _running(before: float | None, now: float) -> float:
    return now if before is None else (1 - _RATE) * before + _RATE * now


def _running_log(before: float | None, now: float) -> float:
    """Of logarithms of what is averaged."""
    if before is None:
        return now
    parts = torch.tensor([before + math.log(1 - _RATE), now + math.log(_RATE)], dtype=torch.float64)
    return float(parts.logsumexp(0))
