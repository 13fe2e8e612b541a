"""Implicit-reward SFT (f-SFT): fine-tuning as inverse reinforcement learning, by a divergence that keeps the reference.

"Implicit Reward as the Bridge: A Unified View of SFT and DPO Connections", NeurIPS 2025, arXiv 2507.00018.

    u = beta log(pi / ref),         L = -phi(u),        phi(u) = -f*(-u)        f* the convex conjugate of f

How it comes about: min_pi D_f(expert || pi) + beta KL(pi || ref) has the dual max_r E_expert[phi(r)] - (the value of
r); its inner optimum is pi = ref exp(r / beta) / Z, so r is the log-ratio up to a function of the prompt, which may be
taken as 0. Every phi has the slope 1 at u = 0: at the start all of them are SFT times beta, and they differ by what
happens when pi leaves ref.

    tv              phi = u                     SFT: the reference is a constant, and nothing holds the policy
    chi2            phi = u - u^2 / 4           Pearson's; no push at u = 2, and back to it beyond: a trust region
    hellinger       phi = u / (1 + u)           squared; u > -1
    reverse_kl      phi = log(1 + u)            u > -1
    forward_kl      phi = 1 - exp(-u)
    js              phi = log(2 - exp(-u))      u > -log 2

`level: token` takes u of each target token, and the mean over the tokens; `sequence` takes u of the sum over a
sequence's tokens, and the mean over the sequences. Such sums are tens of nats, so that beta must be about 0.01 there,
or chi2 turns round. tv asks for no reference.

Where a token has become less likely than under the reference, four of them run into a pole or an exponential: below
-0.9 (hellinger, reverse_kl), -0.6 (js) and -40 (forward_kl), phi goes on as its tangent, which pulls such a token back
with a constant push. Both ends are finite in fp32.

What is known, and what is not: that SFT is the case in which the KL term is a constant, that other divergences and
smaller learning rates are the remedies, is in the paper's abstract. The losses above are the derivation that gives
this; which of them the paper trains (it may be chi2 and hellinger), at which level and beta, is not in our sources,
nor is code. Its other remedy, a smaller learning rate, is `method=finetune/sft` with another `optimizer.lr`.

Defaults: all ours.

Legend: K target tokens of a micro-batch, S sequences.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from methods.batch import Batch, sum_by_sequence
from methods.finetune.sft import Sft, SftConfig
from methods.forward import Forward
from methods.method import Context
from methods.objective import Loss
from methods.reference import CachedReference

Divergence = Literal["tv", "chi2", "hellinger", "reverse_kl", "forward_kl", "js"]

# Where phi goes on as its tangent.
_EDGES = {"hellinger": -0.9, "reverse_kl": -0.9, "forward_kl": -40.0, "js": -0.6}


@dataclass(frozen=True, kw_only=True)
class ImplicitRewardConfig(SftConfig):
    """divergence: f. beta: weight of the KL to the reference, and scale of the log-ratio.

    level: phi of each token's log-ratio, or of a sequence's.
    """

    divergence: Literal["tv", "chi2", "hellinger", "reverse_kl", "forward_kl", "js"] = "chi2"
    beta: PositiveFloat = 0.1
    level: Literal["token", "sequence"] = "token"


def phi(u: Tensor, divergence: Divergence) -> Tensor:
    """-f*(-u); below the edge of its divergence, its tangent there. Any shape."""
    if divergence == "tv":
        return u
    if divergence == "chi2":
        return u - u.square() / 4
    edge = _EDGES[divergence]
    inside = u.clamp_min(edge)
    return _phi(inside, divergence) - _slope(edge, divergence) * torch.relu(edge - u)


def _phi(u: Tensor, divergence: Divergence) -> Tensor:
    if divergence == "hellinger":
        return u / (1 + u)
    if divergence == "reverse_kl":
        return torch.log1p(u)
    if divergence == "forward_kl":
        return -torch.expm1(-u)
    return torch.log1p(-torch.expm1(-u))


def _slope(u: float, divergence: Divergence) -> float:
    """phi'(u)."""
    if divergence == "hellinger":
        return (1 + u) ** -2
    if divergence == "reverse_kl":
        return 1 / (1 + u)
    return math.exp(-u) if divergence == "forward_kl" else math.exp(-u) / (2 - math.exp(-u))


class ImplicitReward(Sft):
    """Implicit-reward SFT: phi_f of the log-ratio to the reference, for an f-divergence (arXiv 2507.00018; derived)."""

    config: ImplicitRewardConfig
    referenced = True  # its formula has a reference in it
    cached: CachedReference | None = None

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Measure the data set under the reference, which tv has none of.

        Raises:
            ValueError: a log-probability is not finite; names the first such example.
        """
        if self.config.divergence != "tv":
            self.cached = CachedReference.measured(context, self.kind)
        return {}

    def count(self, batch: Batch) -> int:
        """Units of the loss: target tokens, or sequences that have some."""
        return batch.target_count if self.config.level == "token" else len(batch.sequence_K.unique())

    def loss(self, forward: Forward) -> Loss:
        """Sum of -phi(beta log-ratio) over tokens or sequences; for tv of -beta log pi."""
        logps_K = forward.token_logps()
        reference_K = self._reference(forward.batch).to(logps_K.dtype)
        u = self.config.beta * (logps_K - reference_K)
        if self.config.level == "sequence":
            u = sum_by_sequence(u, forward.batch)  # 0, and phi(0) = 0, of a sequence without target tokens
        with torch.no_grad():
            # Per unit, as the loss is.
            metrics = {"log_ratio": (logps_K - reference_K).sum(), "unweighted_loss": -logps_K.sum()}
        return Loss(-phi(u, self.config.divergence).sum(), metrics)

    def _reference(self, batch: Batch) -> Tensor:
        """Log-probabilities of the target tokens under the reference. Returns [K]; zeros for tv."""
        if self.config.divergence == "tv":
            return torch.zeros(batch.target_count, device=batch.input_ids_BT.device)
        assert self.cached is not None, "prepare comes first"
        return self.cached.token_logps(batch)
