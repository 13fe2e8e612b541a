"""FLOW: fine-tune on samples weighted by how easy the pre-trained model finds them.

Sanyal et al.: "Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting",
ICML 2025, arXiv 2502.02797. Tables 2 and 4 (language).

    f_i  = mean over sample i's active tokens of -log p_theta*(token)      once, pre-trained weights theta*
    tau  = median_i f_i                                                    no hyper-parameter to tune
    w_i  = exp(-f_i / tau)                                                 constant for the whole run
    L    = sum_i w_i sum_{t active} -log p_theta(y_{i,t} | ...) / N        N = active tokens of the step

The weights are those of pi* = argmin over the simplex of sum_i pi_i f_i + tau sum_i pi_i log pi_i, without
its normaliser, which is constant in theta. They multiply the *sum* of a sample's token losses, and the divisor
is the unweighted token count, as in the authors' code (sanyalsunny111/FLOW_finetuning).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat
from torch import Tensor, nn

from methods.batch import Batch, mean_by_sequence
from methods.finetune.sft import Sft, SftConfig
from methods.kinds.causal import frozen
from methods.method import Context
from methods.objective import Loss

Losses = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FlowConfig(SftConfig):
    """temperature: tau in nats per token, or `median`. normalize: divide the weights by their mean."""

    temperature: PositiveFloat | Literal["median"] = "median"
    normalize: bool = False


def flow_temperature(losses_n: Losses) -> float:
    """The paper's temperature: the median of the samples' losses (mean of the two middle ones for even n).

    Raises:
        ValueError: a loss is infinite or negative, or the median is 0 (every other sample is fitted exactly).
    """
    known = losses_n[~np.isnan(losses_n)]
    if known.size == 0 or not np.isfinite(known).all() or (known < 0).any():
        raise ValueError("method.temperature=median: the base model's losses must be finite and not negative")
    median = float(np.median(known))
    if median <= 0:
        raise ValueError(f"method.temperature=median: the median loss must be > 0, got {median}; give a number")
    return median


def flow_weights(losses_n: Losses, temperature: float) -> Losses:
    """w_i = exp(-f_i / tau), in (0, 1]; 0 for a sample without active tokens (its loss is NaN). Shape [n]."""
    return np.where(np.isnan(losses_n), 0.0, np.exp(-losses_n / temperature))


class Flow(Sft):
    """FLOW: upweight easy samples, w = exp(-base loss / median) (arXiv 2502.02797)."""

    config: FlowConfig
    weights_n: Tensor | None = None

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Measure every sample's loss under the pre-trained weights and fix its weight."""
        if self.weights_n is None:  # else: restored from a checkpoint
            losses_n = self._base_losses(context)
            chosen = self.config.temperature
            temperature = flow_temperature(losses_n) if chosen == "median" else float(chosen)
            weights_n = flow_weights(losses_n, temperature)
            if self.config.normalize:
                weights_n = weights_n / weights_n.mean()
            self.weights_n = torch.from_numpy(weights_n)
            self.temperature = temperature
        low, middle, high = np.quantile(self.weights_n.numpy(), [0.1, 0.5, 0.9])
        return {
            "flow/temperature": self.temperature,
            "flow/weight_mean": float(self.weights_n.mean()),
            "flow/weight_p10": float(low),
            "flow/weight_p50": float(middle),
            "flow/weight_p90": float(high),
        }

    def _base_losses(self, context: Context) -> Losses:
        policy = context.role("policy")
        losses_n = np.full(context.examples, np.nan)
        with frozen(policy):
            for batch in context.batches("losses of the base model"):
                mean_S = mean_by_sequence(-self.kind.token_logps(policy, batch), batch)
                losses_n[batch.example_S.cpu().numpy()] = mean_S.double().cpu().numpy()
        return losses_n

    def loss(self, roles: Mapping[str, nn.Module], batch: Batch) -> Loss:
        """Sum over samples of w_i times the sample's summed token losses."""
        assert self.weights_n is not None, "prepare comes first"
        token_losses_K = -self.kind.token_logps(roles["policy"], batch)
        if self.weights_n.device != token_losses_K.device:
            self.weights_n = self.weights_n.to(token_losses_K.device)
        weights_K = self.weights_n[batch.example_K].to(token_losses_K.dtype)
        return Loss((weights_K * token_losses_K).sum(), {"unweighted_loss": token_losses_K.detach().sum()})

    def state_dict(self) -> dict[str, Any]:
        """The weights: the base model is no longer there when a run continues."""
        return {"weights": self.weights_n, "temperature": self.temperature}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the weights measured before the run was interrupted."""
        self.weights_n, self.temperature = state["weights"], state["temperature"]
