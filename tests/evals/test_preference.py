"""Measures of preference runs by hand, by enumeration and against the libraries that define them."""

import itertools
import math

import numpy as np
import pytest
import sacrebleu
import scipy.stats
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from evals import preference
from evals.kl_to_base import Estimate

GENERATOR = np.random.default_rng(0)


# Pairs -------------------------------------------------------------------------------------------------------


def test_pairs_by_hand():
    """Log-ratios of the chosen 1, 0, -1, 0; of the rejected -1, 0, 0, -4: margins 2, 0, -1, 4."""
    chosen, rejected = np.array([-3.0, -5, -9, -2]), np.array([-5.0, -4, -2, -8])
    found = preference.on_pairs(chosen, rejected, np.array([-4.0, -5, -8, -2]), np.array([-4.0, -4, -2, -4]), 0.5)
    means = {name: estimate.mean for name, estimate in found.items()}
    assert means == pytest.approx({
        "accuracy": 2.5 / 4, "margin": 0.5 * 5 / 4, "chosen_log_ratio": 0.0, "rejected_log_ratio": -1.25,
        "chosen_logps": -19 / 4, "rejected_logps": -19 / 4, "likelihood_accuracy": 2 / 4,
    })  # fmt: skip
    assert found["margin"].standard_error == pytest.approx(0.5 * scipy.stats.sem([2, 0, -1, 4]))
    assert found["accuracy"].standard_error == pytest.approx(scipy.stats.sem([1, 0.5, 0, 1]))


def test_what_has_learned_nothing_has_no_log_ratio_and_half_the_pairs():
    chosen, rejected = GENERATOR.normal(-20, 5, (2, 50))
    found = preference.on_pairs(chosen, rejected, chosen, rejected, 0.1)
    assert found["accuracy"] == Estimate(0.5, 0.0)
    for name in ("margin", "chosen_log_ratio", "rejected_log_ratio"):
        assert found[name] == Estimate(0.0, 0.0)
    assert found["likelihood_accuracy"].mean == np.mean(chosen > rejected)


def test_beta_scales_the_margin_alone():
    values = GENERATOR.normal(-20, 5, (4, 30))
    small, large = (preference.on_pairs(*values, beta) for beta in (0.1, 10.0))
    for name, estimate in small.items():
        factor = 100 if name == "margin" else 1
        assert large[name].mean == pytest.approx(factor * estimate.mean)
        assert large[name].standard_error == pytest.approx(factor * estimate.standard_error)


def test_the_order_of_pairs_does_not_matter():
    values = GENERATOR.normal(-20, 5, (4, 30))
    order = GENERATOR.permutation(30)
    assert preference.on_pairs(*values, 1.0)["margin"].mean == pytest.approx(
        preference.on_pairs(*values[:, order], 1.0)["margin"].mean, abs=1e-12
    )


def test_a_response_that_the_model_rules_out():
    found = preference.on_pairs([-1.0, -2], [-math.inf, -3], [-1.0, -2], [-2.0, -3], 1.0)
    assert found["rejected_log_ratio"].mean == -math.inf and found["margin"].mean == math.inf
    assert found["accuracy"].mean == 0.75


@pytest.mark.parametrize(("given", "beta", "message"), [
    (([-1.0], [-1.0], [-1.0], [-1.0]), 1.0, "at least two pairs"),
    (([-1.0, -1], [-1.0, -1], [-1.0], [-1.0, -1]), 1.0, "four numbers of each"),
    (([-1.0, -1], [-1.0, -1], [-1.0, -1], [-1.0, -1]), 0.0, "beta must be greater than 0"),
    (([math.nan, -1], [-1.0, -1], [-1.0, -1], [-1.0, -1]), 1.0, "got NaN"),
])  # fmt: skip
def test_pairs_that_make_no_sense(given, beta, message):
    with pytest.raises(ValueError, match=message):
        preference.on_pairs(*given, beta)


# Means over prompts ------------------------------------------------------------------------------------------


def test_samples_of_one_prompt_are_no_independent_draws():
    """Four equal samples of each prompt say as much as one."""
    values = GENERATOR.normal(size=(20, 1))
    assert preference.over_prompts(np.repeat(values, 4, 1)) == preference.over_prompts(values)
    assert preference.over_prompts(values).standard_error == pytest.approx(scipy.stats.sem(values[:, 0]))


def test_intervals_cover_the_truth_at_their_rate():
    """95% intervals of 2000 experiments, of prompts that differ and samples that differ: about 1900 hold the mean."""
    generator = np.random.default_rng(1)
    values = generator.normal(size=(2000, 40, 1)) + generator.normal(size=(2000, 40, 3))
    found = [preference.over_prompts(one) for one in values]
    covered = np.mean([abs(estimate.mean) < 1.96 * estimate.standard_error for estimate in found])
    assert 0.925 < covered < 0.965


# Win rate ----------------------------------------------------------------------------------------------------

REWARDS = np.array([0.0, 0.5, 0.5, 1.0])  # of the four words of a toy vocabulary; two tie
START, POLICY = np.array([0.4, 0.2, 0.2, 0.2]), np.array([0.1, 0.1, 0.3, 0.5])


def exact_win_rate(own, other):
    """Over all pairs of words."""
    return sum(
        own[a] * other[b] * (1.0 if REWARDS[a] > REWARDS[b] else 0.5 if REWARDS[a] == REWARDS[b] else 0.0)
        for a, b in itertools.product(range(4), repeat=2)
    )


def test_win_rate_is_that_of_the_enumerated_distributions():
    """Samples in the exact shares of the distributions give the exact value; drawn ones are around it."""
    exact = exact_win_rate(POLICY, START)
    assert exact == pytest.approx(0.1 * 0.2 + 0.4 * (0.4 + 0.2) + 0.5 * (0.8 + 0.1))
    own, other = (REWARDS[np.repeat(np.arange(4), (10 * shares).astype(int))] for shares in (POLICY, START))
    assert preference.win_rate([own, own], [other, other]).mean == pytest.approx(exact)
    drawn = [REWARDS[GENERATOR.choice(4, (3000, 4), p=shares)] for shares in (POLICY, START)]
    found = preference.win_rate(*drawn)
    assert abs(found.mean - exact) < 4 * found.standard_error < 0.02


def test_win_rate_of_the_other_side_is_the_rest():
    own, other = GENERATOR.integers(0, 3, (10, 4)), GENERATOR.integers(0, 3, (10, 2))
    assert preference.win_rate(own, other).mean == pytest.approx(1 - preference.win_rate(other, own).mean)
    assert preference.win_rate(own, own).mean == 0.5


@pytest.mark.parametrize(("own", "other", "message"), [
    ([[1.0], [1.0]], [[1.0]], "for the same prompts"),
    ([1.0, 1.0], [1.0, 1.0], "for the same prompts"),
    ([[1.0], [math.nan]], [[1.0], [1.0]], "got NaN"),
    ([[1.0]], [[1.0]], "at least two values"),
])  # fmt: skip
def test_comparisons_that_make_no_sense(own, other, message):
    with pytest.raises(ValueError, match=message):
        preference.win_rate(own, other)


# Diversity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "n", "expected"), [
    ([[1, 2, 3], [1, 2, 4]], 1, 4 / 6),
    ([[1, 2, 3], [1, 2, 4]], 2, 3 / 4),
    ([[1, 1, 1, 1]], 1, 1 / 4),
    ([[1, 1, 1, 1]], 2, 1 / 3),
    ([[1, 2], [2, 1]], 2, 1.0),
    ([[1], [2], []], 2, 0.0),
])  # fmt: skip
def test_distinct_by_hand(samples, n, expected):
    assert preference.distinct(samples, n) == pytest.approx(expected)


@pytest.mark.parametrize(("samples", "expected"), [
    ([[1, 2], [1, 2], [3]], 2 / 3),
    ([[1], [1], [1], [1]], 1 / 4),
    ([[1], [1, 1], [], [2]], 1.0),
])  # fmt: skip
def test_distinct_responses_by_hand(samples, expected):
    assert preference.distinct_responses(samples) == pytest.approx(expected)


def random_samples(seed, count, shortest, longest, symbols):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, symbols, generator.integers(shortest, longest + 1)).tolist() for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_self_bleu_is_the_mean_of_nltks_sentence_bleu(seed):
    samples = random_samples(seed, 4, 1, 12, 4)
    smooth = SmoothingFunction().method1
    each = [
        sentence_bleu(samples[:i] + samples[i + 1 :], samples[i], smoothing_function=smooth, auto_reweigh=True)
        for i in range(4)
    ]
    assert preference.self_bleu(samples) == pytest.approx(np.mean(each), abs=1e-12)


def test_self_bleu_is_sacrebleus_where_nothing_is_smoothed():
    """Long samples of few symbols share n-grams of every length."""
    samples = random_samples(7, 3, 60, 80, 2)
    words = [" ".join(map(str, sample)) for sample in samples]
    each = [
        sacrebleu.sentence_bleu(words[i], words[:i] + words[i + 1 :], tokenize="none", smooth_method="none").score / 100
        for i in range(3)
    ]
    assert preference.self_bleu(samples) == pytest.approx(np.mean(each), abs=1e-9)


@pytest.mark.parametrize(("samples", "expected"), [
    ([[1, 2, 3, 4, 5]] * 3, 1.0),
    ([[1]] * 2, 1.0),  # shorter than four tokens
    ([[1, 2, 3, 4], [5, 6, 7, 8]], 0.0),
    ([[], []], 1.0),
    ([[], [1, 2]], 0.0),
    ([[1, 2], [1, 2], [3, 4]], 2 / 3),
])  # fmt: skip
def test_self_bleu_known_answers(samples, expected):
    assert preference.self_bleu(samples) == pytest.approx(expected)


def test_self_bleu_needs_another_sample():
    with pytest.raises(ValueError, match="at least two samples of a prompt, got 1"):
        preference.self_bleu([[1, 2]])


def test_diversity_is_the_mean_over_prompts():
    prompts = [random_samples(seed, 3, 4, 9, 5) for seed in range(6)]
    found = preference.diversity(prompts)
    assert list(found) == ["distinct_1", "distinct_2", "self_bleu", "distinct_responses"]
    each = [preference.self_bleu(samples) for samples in prompts]
    assert found["self_bleu"].mean == pytest.approx(np.mean(each))
    assert found["self_bleu"].standard_error == pytest.approx(scipy.stats.sem(each))
    shuffled = preference.diversity([samples[::-1] for samples in reversed(prompts)])
    assert {name: e.mean for name, e in shuffled.items()} == pytest.approx({name: e.mean for name, e in found.items()})


def test_metrics_are_named_as_lm_eval_names_them():
    assert preference.named({"kl": Estimate(2.0, 0.1)}) == {"kl,none": 2.0, "kl_stderr,none": 0.1}
