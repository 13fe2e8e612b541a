"""FLOW: fine-tune on samples weighted by how easy the pre-trained model finds them.

Sanyal, Prairie, Das, Kavis, Sanghavi: "Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting",
ICML 2025, arXiv 2502.02797. Tables 2 and 4 (language).

    f_i  = mean over sample i's active tokens of -log p_theta*(token)      once, pre-trained weights theta*
    tau  = median_i f_i                                                    no hyper-parameter to tune
    w_i  = exp(-f_i / tau)                                                 constant for the whole run
    L    = sum_i w_i sum_{t active} -log p_theta(y_{i,t} | ...) / N        N = active tokens of the step

The weights are those of pi* = argmin over the simplex of sum_i pi_i f_i + tau sum_i pi_i log pi_i, without
its normaliser, which is constant in theta. They multiply the *sum* of a sample's token losses, and the divisor
is the unweighted token count, as in the authors' code (sanyalsunny111/FLOW_finetuning).

`granularity: token` is the paper's token-wise ablation (appendix I.2): w_{i,t} = exp(-nll_{i,t}(theta*) / tau), with
tau the median over all active tokens, and the same divisor.

Images (tables 1, 3 and 5) are augmented, and an image's weight goes with how it was changed: `weights: live` asks
theta* for the losses of every batch as it is. theta* is then a linear probe (`model.from_run`), as an untrained head
knows no image from another; after FLOW the head is trained once more, unweighted, with the rest frozen (round 2). The
median is that of the images as they are (the authors' is of images changed at random).

Legend: n samples of the data set, M weights (one for each sample, or for each active token); of a batch: K target
tokens, S sequences.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat
from torch import Tensor, nn

from methods.batch import Batch, mean_by_sequence, place_in_sequence
from methods.examples import Examples
from methods.finetune.sft import Sft, SftConfig
from methods.forward import Forward
from methods.method import Context
from methods.objective import Loss

Losses = NDArray[np.float64]

# Losses that differ by less are equal but for the rounding of 32-bit arithmetic.
_ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class FlowConfig(SftConfig):
    """temperature: tau in nats per token, or `median`. normalize: divide the weights by their mean.

    granularity: one weight per sample (`sequence`, the method) or per token (`token`, the paper's ablation).
    weights: measured `once` (the method), or `live`, of every batch by the frozen start (augmented images).
    """

    temperature: PositiveFloat | Literal["median"] = "median"
    normalize: bool = False
    granularity: Literal["sequence", "token"] = "sequence"
    weights: Literal["once", "live"] = "once"

    def __post_init__(self) -> None:
        if self.weights == "live" and self.normalize:
            raise ValueError("method.normalize=true: needs all weights beforehand; set method.weights=once")


def flow_temperature(losses_M: Losses) -> float:
    """The paper's temperature: the median of the base model's losses (mean of the two middle ones for an even number).

    Args:
        losses_M: NaN for a sample without active tokens, which does not count.

    Raises:
        ValueError: there is no loss, the median is 0, or all are equal: then every weight is exp(-1), and FLOW is SFT.
    """
    known = losses_M[~np.isnan(losses_M)]
    if known.size == 0:
        raise ValueError("method.temperature=median: must have a loss to take the median of, got no active token")
    median = float(np.median(known))
    if median <= 0:
        raise ValueError(f"method.temperature=median: the median loss must be > 0, got {median}; give a number")
    if float(np.ptp(known)) <= _ROUNDING * median:
        raise ValueError(
            f"method.temperature=median: the base model's losses must differ, got {median:.6g} for all {known.size}; "
            "FLOW would be SFT with a smaller learning rate; give a number"
        )
    return median


def flow_weights(losses_M: Losses, temperature: float) -> Losses:
    """w = exp(-f / tau), in [0, 1]; 0 for a sample without active tokens (its loss is NaN). Returns [M]."""
    return np.where(np.isnan(losses_M), 0.0, np.exp(-losses_M / temperature))


def check_losses(losses_M: Losses, example_M: NDArray[np.int64]) -> None:
    """Refuse base losses that no weight can be made of.

    Args:
        losses_M: of what has active tokens.
        example_M: the example that each loss belongs to.

    Raises:
        ValueError: a loss is not finite, or negative; names the first such example.
    """
    bad = ~np.isfinite(losses_M) | (losses_M < 0)
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(
            f"method=finetune/flow: the base model's losses must be finite and not negative, got {losses_M[first]} "
            f"for example {example_M[first]}" + (f" and {int(bad.sum()) - 1} more" if bad.sum() > 1 else "")
        )


class Flow(Sft):
    """FLOW: upweight easy samples, w = exp(-base loss / median) (arXiv 2502.02797)."""

    config: FlowConfig
    weights_n: Tensor | None = None  # for each sample; token-wise: for each active token, one sample after the other
    first_n: Tensor | None = None  # token-wise: where each sample's weights begin

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        if config.weights == "live":
            self.frozen = ("reference",)  # type: ignore[misc]

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Measure the losses under the pre-trained weights and fix the weights."""
        counts_n = context.examples.lengths - context.examples.targets
        if self.config.granularity == "token":
            self.first_n = torch.from_numpy(np.cumsum(counts_n) - counts_n)
        if self.weights_n is None:  # else: restored from a checkpoint
            losses_M = self._base_losses(context, context.examples)
            chosen = self.config.temperature
            self.temperature = flow_temperature(losses_M) if chosen == "median" else float(chosen)
            weights_M = flow_weights(losses_M, self.temperature)
            if not (weights_M > 0).any():
                raise ValueError(
                    f"method.temperature={chosen}: must be large enough for a weight > 0; the base model's smallest "
                    f"loss is {np.nanmin(losses_M):.6g}"
                )
            if self.config.normalize:
                weights_M = weights_M / weights_M[~np.isnan(losses_M)].mean()
            self.weights_n = torch.from_numpy(weights_M)
        low, middle, high = np.quantile(self.weights_n.numpy(), [0.1, 0.5, 0.9])
        return {
            "flow/temperature": self.temperature,
            "flow/weight_mean": float(self.weights_n.mean()),
            "flow/weight_p10": float(low),
            "flow/weight_p50": float(middle),
            "flow/weight_p90": float(high),
        }

    def _base_losses(self, context: Context, examples: Examples) -> Losses:
        """Losses under the pre-trained weights, [n] or by token; NaN for a sample without active tokens."""
        counts_n = examples.lengths - examples.targets
        example_n = np.arange(len(examples))
        if self.config.granularity == "token":
            losses_M = context.measure("base token losses", self._token_losses, per="token")
            check_losses(losses_M, np.repeat(example_n, counts_n))
            return losses_M
        losses_n = np.where(counts_n > 0, context.measure("base losses", self._mean_losses, per="example"), np.nan)
        check_losses(losses_n[counts_n > 0], example_n[counts_n > 0])
        return losses_n

    def _token_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return -self.kind.token_logps(model, batch)

    def _mean_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return mean_by_sequence(self._token_losses(model, batch), batch)

    def loss(self, forward: Forward) -> Loss:
        """Sum over samples of w_i times the sample's summed token losses; token-wise, of w_{i,t} times each."""
        if self.config.weights == "live":
            with torch.no_grad():
                weights_K = self._live_weights(-forward.token_logps("reference"), forward.batch)
        else:
            weights_K = self._weights(forward.batch)
        token_losses_K = -forward.token_logps()
        weights_K = weights_K.to(token_losses_K.dtype)
        return Loss((weights_K * token_losses_K).sum(), {"unweighted_loss": token_losses_K.detach().sum()})

    def _live_weights(self, base_losses_K: Tensor, batch: Batch) -> Tensor:
        """The weight of every target token, by what the frozen start makes of the batch. Returns [K]."""
        if self.config.granularity == "sequence":
            base_losses_K = mean_by_sequence(base_losses_K, batch)[batch.sequence_K]
        return torch.exp(-base_losses_K / self.temperature)

    def _weights(self, batch: Batch) -> Tensor:
        """The weight of every target token. Returns [K]."""
        assert self.weights_n is not None, "prepare comes first"
        example_K = batch.example_K
        self.weights_n = self.weights_n.to(example_K.device)  # moved once
        if self.config.granularity == "sequence":
            return self.weights_n[example_K]
        assert self.first_n is not None, "prepare comes first"
        self.first_n = self.first_n.to(example_K.device)
        return self.weights_n[self.first_n[example_K] + place_in_sequence(batch)]

    def state_dict(self) -> dict[str, Any]:
        """The weights: the base model is no longer there when a run continues."""
        return {"weights": self.weights_n, "temperature": self.temperature}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the weights measured before the run was interrupted."""
        self.weights_n, self.temperature = state["weights"], state["temperature"]
