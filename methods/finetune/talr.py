"""TALR, token-adaptive loss reweighting: each target token weighs what the current model makes of it, p^(1/tau).

Lin et al.: "SFT Doesn't Always Hurt General Capabilities: Revisiting Domain-Specific Fine-Tuning in LLMs", ICLR 2026,
arXiv 2509.20758. Its comparison of methods on MedCalc.

    tau     = median_b( mean_t -log p_theta(y_{b,t} | ...) )           of the sequences of the batch, at every step anew
    w_{b,t} = sg[ max( p_theta(y_{b,t} | ...)^(1/tau), w_min ) ]       no gradient through w and tau
    L       = sum_{b,t active} w_{b,t} (-log p_theta(y_{b,t} | ...)) / N,          N = active tokens of the step

Without the floor w_min, w is, up to its sum, the argmin over the simplex of sum_i w_i l_i + tau sum_i w_i log w_i.
As a function of its loss l, a token's w l is largest at l = tau: harder tokens count for less until tau has come down.

The authors published no code. That w is not normalised, w_min = 0.01, the median over sequences and p kept above
`p_min` before the power are those of a public re-implementation (shankarp8/distillation-retains-capabilities).

The batch of the median is the *micro-batch* (a guess: the paper's under accumulation or on several devices is not
known), so micro-batch size, packing and number of processes change the result. `normalize: weight_sum` is meant per
micro-batch too: its weighted mean, and over the micro-batches of a step the mean of those by their tokens,
sum_m (N_m / N) (sum w l / sum w)_m.

Legend: K target tokens of the batch, S sequences.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from methods.batch import Batch, mean_by_sequence
from methods.finetune.sft import Sft, SftConfig
from methods.forward import Forward
from methods.objective import Loss

_SMALLEST_TAU = 1e-6  # of a batch that is fitted exactly
_EASY = 0.2  # the share of tokens with a larger p is logged: the paper follows it over training

Tau = Literal["seq_median", "token_median"]
Share = Annotated[float, Ge(0.0), Le(1.0)]


@dataclass(frozen=True, kw_only=True)
class TalrConfig(SftConfig):
    """tau: median of the sequences' mean losses, median of the token losses, or a number (nats per token).

    w_min: floor of the weights. p_min: floor of the probabilities, before the power. normalize: divide by the number of
    tokens, or by the sum of the weights.
    """

    tau: Literal["seq_median", "token_median"] | Annotated[float, Ge(1e-6)] = "seq_median"
    w_min: Share = 0.01
    p_min: Share = 1e-6
    normalize: Literal["tokens", "weight_sum"] = "tokens"


def median(values: Tensor) -> Tensor:
    """The middle value; the mean of the two middle ones for an even number (`torch.median` takes the lower). Scalar."""
    ordered = values.sort().values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def talr_tau(token_losses_K: Tensor, batch: Batch, tau: Tau | float) -> Tensor:
    """The temperature of a batch, at least 1e-6 (which a batch without target tokens gets too). Scalar, no gradient.

    Args:
        token_losses_K: -log p.
        batch: says which sequence each token belongs to; sequences without target tokens do not count.
        tau: `seq_median`, `token_median`, or the temperature itself.
    """
    losses = token_losses_K.detach()
    if isinstance(tau, float | int):
        return losses.new_tensor(tau).clamp_min(_SMALLEST_TAU)
    if tau == "seq_median":
        mean_S = mean_by_sequence(losses, batch)
        losses = mean_S[torch.bincount(batch.sequence_K, minlength=len(mean_S)) > 0]
    return median(losses).clamp_min(_SMALLEST_TAU) if len(losses) else losses.new_tensor(_SMALLEST_TAU)


def talr_weights(token_logps_K: Tensor, tau: Tensor | float, w_min: float, p_min: float) -> Tensor:
    """sg[max(max(p, p_min)^(1/tau), w_min)]. Returns [K], no gradient."""
    # In logarithms: p itself underflows where log p does not.
    logps_K = token_logps_K.detach()
    if p_min > 0:
        logps_K = logps_K.clamp_min(math.log(p_min))
    return (logps_K / tau).exp().clamp_min(w_min)


class Talr(Sft):
    """TALR: weight each token by p^(1/tau), tau the batch's median loss (arXiv 2509.20758)."""

    config: TalrConfig
    couples = "micro-batch"

    def loss(self, forward: Forward) -> Loss:
        """Sum of the weighted token losses; divided by the sum of the weights, it is scaled to a sum over tokens."""
        logps_K = forward.token_logps()
        tau = talr_tau(-logps_K, forward.batch, self.config.tau)
        weights_K = talr_weights(logps_K, tau, self.config.w_min, self.config.p_min)
        weighted = (weights_K * -logps_K).sum()
        if self.config.normalize == "weight_sum":
            # By their mean: the loop divides by the tokens of the whole step, which leaves the weighted mean of this
            # micro-batch times its share of the tokens. Where all weights are 0, so is the loss.
            mean_weight = weights_K.sum() / max(len(weights_K), 1)
            weighted = weighted / mean_weight.clamp_min(torch.finfo(mean_weight.dtype).tiny)
        return Loss(weighted, talr_metrics(logps_K.detach(), weights_K, tau))


def talr_metrics(token_logps_K: Tensor, weights_K: Tensor, tau: Tensor) -> Mapping[str, Tensor]:
    """To be logged, as sums over the tokens: tau, the share of tokens with p > 0.2, the mean weight, SFT's loss."""
    return {
        "tau": tau * len(token_logps_K),
        f"share_p_above_{_EASY}": (token_logps_K > math.log(_EASY)).sum(),
        "weight": weights_K.sum(),
        "unweighted_loss": -token_logps_K.sum(),
    }
