"""KL(base || tuned): how far fine-tuning has moved a model, on what the base model writes.

    KL(p || q) = E_{z~p}[log p(z) - log q(z)]                                       log_ratio
               = E_{z~p}[sum_t KL(p(. | z_<t) || q(. | z_<t))]    chain rule        chain_rule

p is the base model, q the tuned one, z a sequence drawn from p (temperature 1, nothing cut): from BOS alone for the
divergence of the models themselves (context-free; Bansal, Sanghavi, arXiv 2505.13811), after prompts for that on them.
Both forms estimate the same number without bias; the second uses the whole distribution at every place in place of the
one token drawn there, and varies less. With a length limit it is the divergence of the sequences up to that length.

In nats. Legend: S sequences. A sequence's tokens are those that were drawn, EOS included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over sampled sequences, and the standard error that sampling leaves in it."""

    mean: float
    standard_error: float


@dataclass(frozen=True)
class Divergence:
    """The divergence per sequence and per token of a sequence."""

    per_sequence: Estimate
    per_token: Estimate


def log_ratio(base_logps_S: Floats, tuned_logps_S: Floats, tokens_S: NDArray[np.int64]) -> Divergence:
    """From the log-probability that each model gives to whole sequences; tokens_S: how many each has."""
    base_logps_S, tuned_logps_S = np.asarray(base_logps_S, float), np.asarray(tuned_logps_S, float)
    if not np.isfinite(base_logps_S).all():
        raise ValueError("base_logps_S must be finite, since the base model drew the sequences")
    if base_logps_S.shape != tuned_logps_S.shape:
        raise ValueError(
            f"tuned_logps_S must have the shape of base_logps_S, {base_logps_S.shape}, got {tuned_logps_S.shape}"
        )
    return _divergence(base_logps_S - tuned_logps_S, tokens_S)


def chain_rule(sequence_kls_S: Floats, tokens_S: NDArray[np.int64]) -> Divergence:
    """From sum_t KL(p(. | z_<t) || q(. | z_<t)) over each sequence's tokens; tokens_S: how many it has."""
    return _divergence(np.asarray(sequence_kls_S, float), tokens_S)


def _divergence(values_S: Floats, tokens_S: NDArray[np.int64]) -> Divergence:
    tokens_S = np.asarray(tokens_S)
    if len(values_S) < 2 or values_S.shape != tokens_S.shape:
        raise ValueError(
            f"needs at least two sequences, each with its number of tokens, got {values_S.shape} and {tokens_S.shape}"
        )
    if (tokens_S < 1).any():
        raise ValueError("tokens_S must be at least 1: a sequence without a token was not drawn")
    if np.isnan(values_S).any():
        raise ValueError("log-probabilities and divergences must be numbers, got NaN")
    if np.isinf(values_S).any():  # the tuned model rules out what the base model writes
        infinite = Estimate(math.inf, math.inf)
        return Divergence(infinite, infinite)
    return Divergence(_mean(values_S), _ratio(values_S, tokens_S))


def _mean(values_S: Floats) -> Estimate:
    return Estimate(float(values_S.mean()), float(values_S.std(ddof=1)) / math.sqrt(len(values_S)))


def _ratio(values_S: Floats, tokens_S: NDArray[np.int64]) -> Estimate:
    """E[value] / E[tokens]; its standard error by the delta method, since the number of tokens is random too."""
    ratio = float(values_S.sum() / tokens_S.sum())
    return Estimate(ratio, _mean(values_S - ratio * tokens_S).standard_error / float(tokens_S.mean()))
