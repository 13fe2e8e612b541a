"""What a tuned model prefers and writes, compared with the model that its training started from.

On held-out pairs (chosen y_w, rejected y_l), with the log-ratio of a whole response r(y) = log pi(y|x) - log ref(y|x):

    accuracy            share of pairs with beta r(y_w) > beta r(y_l)      does it rank as the pairs do?
    margin              mean of beta (r(y_w) - r(y_l))
    likelihood_accuracy share of pairs with log pi(y_w) > log pi(y_l)      without the reference

On several samples for each of many prompts: means, the share of comparisons that are won (`win_rate`), and how much the
samples of one prompt differ:

    distinct_n          different n-grams among all n-grams (Li et al., arXiv 1510.03055), here of one prompt's samples
    self_bleu           BLEU of each sample against the others (Zhu et al., arXiv 1802.01886); high is little diversity
    distinct_responses  different samples among all samples

A tie counts 1/2 everywhere: what has learned nothing has accuracy and win rate 1/2. Samples of one prompt are no
independent draws of the whole, so that standard errors are taken over prompts.

Legend: P pairs or prompts, N samples of a prompt. Log-probabilities in nats.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from evals.kl_to_base import Estimate, Floats

Tokens = Sequence[int]


def on_pairs(
    chosen_P: Floats, rejected_P: Floats, chosen_reference_P: Floats, rejected_reference_P: Floats, beta: float
) -> dict[str, Estimate]:
    """Measures of held-out pairs, from the log-probability of whole responses under the model and its reference.

    Args:
        chosen_P, rejected_P: log pi(y | x) of each pair's responses.
        chosen_reference_P, rejected_reference_P: log ref(y | x) of the same.
        beta: scale of the implicit reward beta (log pi - log ref); greater than 0.

    Returns:
        accuracy, margin, chosen_log_ratio, rejected_log_ratio, chosen_logps, rejected_logps, likelihood_accuracy.
    """
    given = [np.asarray(values, float) for values in (chosen_P, rejected_P, chosen_reference_P, rejected_reference_P)]
    if len({values.shape for values in given}) > 1 or given[0].ndim != 1 or len(given[0]) < 2:
        raise ValueError(f"needs at least two pairs, four numbers of each, got {[values.shape for values in given]}")
    if not beta > 0:
        raise ValueError(f"beta must be greater than 0, got {beta}")
    chosen, rejected, chosen_reference, rejected_reference = given
    chosen_ratio, rejected_ratio = chosen - chosen_reference, rejected - rejected_reference
    margin = beta * (chosen_ratio - rejected_ratio)
    return {
        "accuracy": mean(_won(margin)),
        "margin": mean(margin),
        "chosen_log_ratio": mean(chosen_ratio),
        "rejected_log_ratio": mean(rejected_ratio),
        "chosen_logps": mean(chosen),
        "rejected_logps": mean(rejected),
        "likelihood_accuracy": mean(_won(chosen - rejected)),
    }


def mean(values_P: Floats) -> Estimate:
    """The mean of independent values, and its standard error; infinite where one of them is.

    Raises:
        ValueError: fewer than two values, a NaN.
    """
    values_P = np.asarray(values_P, float)
    if values_P.ndim != 1 or len(values_P) < 2:
        raise ValueError(f"needs at least two values, got shape {values_P.shape}")
    if np.isnan(values_P).any():
        raise ValueError("values must be numbers, got NaN")
    if np.isinf(values_P).any():
        return Estimate(float(values_P.sum()), math.inf)
    return Estimate(float(values_P.mean()), float(values_P.std(ddof=1)) / math.sqrt(len(values_P)))


def over_prompts(values_PN: Floats) -> Estimate:
    """The mean over all samples; its standard error is over prompts, whose samples belong together."""
    values_PN = np.asarray(values_PN, float)
    if values_PN.ndim != 2:
        raise ValueError(f"values_PN must have one row for each prompt, got shape {values_PN.shape}")
    return mean(values_PN.mean(1))


def win_rate(own_PN: Floats, other_PM: Floats) -> Estimate:
    """Probability that a sample is rewarded more than one of another model for the same prompt; a tie counts 1/2.

    Every sample is compared with every one of the other's: it varies less than one comparison each.

    Args:
        own_PN, other_PM: rewards; the samples of the two models are drawn independently.
    """
    own_PN, other_PM = np.asarray(own_PN, float), np.asarray(other_PM, float)
    if own_PN.ndim != 2 or other_PM.ndim != 2 or len(own_PN) != len(other_PM):
        raise ValueError(f"needs rewards for the same prompts, got shapes {own_PN.shape} and {other_PM.shape}")
    if np.isnan(own_PN).any() or np.isnan(other_PM).any():
        raise ValueError("rewards must be numbers, got NaN")
    return mean(_won(own_PN[:, :, None] - other_PM[:, None, :]).mean((1, 2)))


def _won(differences: Floats) -> Floats:
    """1 where positive, 1/2 where 0, 0 where negative."""
    return (np.sign(differences) + 1) / 2


def diversity(samples_PN: Sequence[Sequence[Tokens]]) -> dict[str, Estimate]:
    """How much the samples of a prompt differ, averaged over prompts.

    Args:
        samples_PN: token ids of the samples of each prompt, without EOS; at least two of a prompt.

    Returns:
        distinct_1, distinct_2, self_bleu, distinct_responses.
    """
    return {
        "distinct_1": mean(np.array([distinct(samples, 1) for samples in samples_PN])),
        "distinct_2": mean(np.array([distinct(samples, 2) for samples in samples_PN])),
        "self_bleu": mean(np.array([self_bleu(samples) for samples in samples_PN])),
        "distinct_responses": mean(np.array([distinct_responses(samples) for samples in samples_PN])),
    }


def distinct(samples_N: Sequence[Tokens], n: int) -> float:
    """Different n-grams among all n-grams of a prompt's samples, in [0, 1]; 0 where no sample has n tokens."""
    grams = [tuple(sample[at : at + n]) for sample in samples_N for at in range(len(sample) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def distinct_responses(samples_N: Sequence[Tokens]) -> float:
    """Different samples among all samples of a prompt: 1 where all differ, 1/N where none does."""
    return len({tuple(sample) for sample in samples_N}) / len(samples_N)


def self_bleu(samples_N: Sequence[Tokens]) -> float:
    """Mean BLEU of each sample against the prompt's others, in [0, 1]: 1 where all are equal.

    n-grams of up to four tokens of the model's own tokenizer, of up to its length for a shorter sample; where none of a
    length is shared, nltk's method 1 smooths. A sample without tokens is like another one without, and like no other.

    Raises:
        ValueError: fewer than two samples.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    if len(samples_N) < 2:
        raise ValueError(f"needs at least two samples of a prompt, got {len(samples_N)}")
    smooth = SmoothingFunction().method1
    total = 0.0
    for sample, count in Counter(map(tuple, samples_N)).items():
        if count > 1:  # there is one like it
            total += count
        elif sample:
            others = [other for other in map(tuple, samples_N) if other != sample]
            total += sentence_bleu(others, sample, smoothing_function=smooth, auto_reweigh=True)
    return total / len(samples_N)


def named(found: Mapping[str, Estimate]) -> dict[str, float]:
    """Metrics as lm-eval names them: `accuracy,none` and `accuracy_stderr,none`."""
    metrics: dict[str, float] = {}
    for name, estimate in found.items():
        metrics[f"{name},none"] = estimate.mean
        metrics[f"{name}_stderr,none"] = estimate.standard_error
    return metrics
