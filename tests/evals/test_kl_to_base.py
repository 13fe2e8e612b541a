"""KL(base || tuned) from samples, against exact values by enumeration, and its standard errors against repetition."""

import math

import numpy as np
import pytest

from evals.kl_to_base import chain_rule, log_ratio


class Toy:
    """A model of sequences of up to `length` symbols: p(next | all before), symbol 0 ends a sequence if `ends`."""

    def __init__(self, length, symbols, seed=0, ends=False, tables=None):
        generator = np.random.default_rng(seed)
        self.length, self.symbols, self.ends = length, symbols, ends
        self.tables = tables
        if tables is None:
            self.tables = {p: generator.dirichlet(np.ones(symbols)) for p in self.prefixes(length - 1)}

    def prefixes(self, longest):
        found, last = [()], [()]
        for _ in range(longest):
            last = [(*p, s) for p in last for s in range(self.symbols) if not (self.ends and p and p[-1] == 0)]
            found += last
        return found

    def done(self, prefix):
        return len(prefix) == self.length or bool(self.ends and prefix and prefix[-1] == 0)

    def logp(self, sequence):
        return sum(math.log(self.tables[sequence[:t]][symbol]) for t, symbol in enumerate(sequence))

    def sequences(self):
        return [p for p in self.prefixes(self.length) if self.done(p)]

    def sample(self, generator):
        prefix = ()
        while not self.done(prefix):
            prefix = (*prefix, int(generator.choice(self.symbols, p=self.tables[prefix])))
        return prefix


def kl(p, q):
    return float((p * np.log(p / q)).sum())


def exact(base, tuned):
    """KL over whole sequences, and the expected number of tokens."""
    every = base.sequences()
    probabilities = np.exp([base.logp(z) for z in every])
    assert probabilities.sum() == pytest.approx(1)
    ratios = np.array([base.logp(z) - tuned.logp(z) for z in every])
    return float(probabilities @ ratios), float(probabilities @ [len(z) for z in every])


def estimated(base, tuned, sequences):
    """Both estimates from samples of the base model."""
    lengths = np.array([len(z) for z in sequences])
    first = log_ratio([base.logp(z) for z in sequences], [tuned.logp(z) for z in sequences], lengths)
    kls = [sum(kl(base.tables[z[:t]], tuned.tables[z[:t]]) for t in range(len(z))) for z in sequences]
    return first, chain_rule(kls, lengths)


def uniform_like(base):
    tables = {prefix: np.full(base.symbols, 1 / base.symbols) for prefix in base.tables}
    return Toy(base.length, base.symbols, ends=base.ends, tables=tables)


ONE = Toy(1, 4, tables={(): np.array([0.5, 0.3, 0.15, 0.05])})
TWO = Toy(2, 2, tables={(): np.array([0.6, 0.4]), (0,): np.array([0.9, 0.1]), (1,): np.array([0.2, 0.8])})


@pytest.mark.parametrize(("base", "expected"), [(ONE, 0.244174), (TWO, 0.318072)])
def test_worked_examples(base, expected):
    """Against uniform. Every sequence as often as the base model gives it: both estimates are exact."""
    tuned = uniform_like(base)
    assert exact(base, tuned)[0] == pytest.approx(expected, abs=5e-7)
    sequences = [z for z in base.sequences() for _ in range(round(100 * math.exp(base.logp(z))))]
    assert len(sequences) == 100
    for found in estimated(base, tuned, sequences):
        assert found.per_sequence.mean == pytest.approx(expected, abs=5e-7)
        assert found.per_token.mean == pytest.approx(expected / base.length, abs=5e-7)


def test_equal_models_are_at_zero_without_error():
    base = Toy(3, 3)
    generator = np.random.default_rng(1)
    for found in estimated(base, base, [base.sample(generator) for _ in range(50)]):
        for estimate in (found.per_sequence, found.per_token):
            assert (estimate.mean, estimate.standard_error) == (0.0, 0.0)


@pytest.mark.parametrize("base", [pytest.param(TWO, marks=pytest.mark.slow), Toy(3, 3, seed=2, ends=True)])
def test_intervals_cover_the_truth_at_their_rate(base):
    """95% intervals (1.96 standard errors) of 1000 experiments of 300 sequences: about 950 hold the exact value.

    The binomial spread is 0.7 points; sequences end at different lengths in the last model.
    """
    tuned = uniform_like(base) if base is TWO else Toy(3, 3, seed=11, ends=base.ends)
    truth, tokens = exact(base, tuned)
    generator = np.random.default_rng(0)
    every = base.sequences()
    probabilities = np.exp([base.logp(z) for z in every])
    covered, means, errors = np.zeros(4), [], []
    for _ in range(1000):
        drawn = [every[place] for place in generator.choice(len(every), 300, p=probabilities)]
        both = estimated(base, tuned, drawn)
        found = [getattr(one, form) for form in ("per_sequence", "per_token") for one in both]
        truths = [truth, truth, truth / tokens, truth / tokens]
        covered += [abs(e.mean - t) < 1.96 * e.standard_error for e, t in zip(found, truths, strict=True)]
        means.append([e.mean for e in found])
        errors.append([e.standard_error for e in found])
    assert ((covered > 925) & (covered < 972)).all(), covered
    np.testing.assert_allclose(np.mean(errors, 0), np.std(means, 0), rtol=0.1)
    np.testing.assert_allclose(np.mean(means, 0), [truth, truth, truth / tokens, truth / tokens], rtol=0.02)
    assert (np.mean(errors, 0)[[1, 3]] < 0.75 * np.mean(errors, 0)[[0, 2]]).all(), "the chain rule varies less"


def test_lengths_may_differ():
    """Per token by hand: ratio of the sums, and the delta method's error."""
    values, lengths = np.array([1.0, 3.0, 2.0, 6.0]), np.array([1, 2, 2, 5])
    found = log_ratio(values, np.zeros(4), lengths)
    assert found.per_sequence.mean == 3.0
    assert found.per_sequence.standard_error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert found.per_token.mean == pytest.approx(1.2)
    residuals = values - 1.2 * lengths
    assert found.per_token.standard_error == pytest.approx(math.sqrt((residuals**2).sum() / 3 / 4) / 2.5)
    assert chain_rule(values, lengths) == found


def test_what_the_tuned_model_rules_out_is_infinitely_far():
    found = log_ratio([-1.0, -2.0], [-1.0, -math.inf], [1, 1])
    assert found.per_sequence.mean == math.inf == found.per_token.mean
    assert chain_rule([math.inf, 0.1], [1, 1]).per_sequence.standard_error == math.inf


@pytest.mark.parametrize(("base", "tuned", "tokens", "message"), [
    ([-1.0], [-1.0], [1], "at least two sequences"),
    ([-1.0, -math.inf], [-1.0, -1.0], [1, 1], "base_logps_S must be finite"),
    ([-1.0, -1.0], [-1.0], [1, 1], "tuned_logps_S must have the shape"),
    ([-1.0, -1.0], [-1.0, math.nan], [1, 1], "got NaN"),
    ([-1.0, -1.0], [-1.0, -1.0], [1, 0], "tokens_S must be at least 1"),
    ([-1.0, -1.0], [-1.0, -1.0], [1], "each with its number of tokens"),
])  # fmt: skip
def test_input_that_makes_no_sense(base, tuned, tokens, message):
    with pytest.raises(ValueError, match=message):
        log_ratio(base, tuned, tokens)


def test_chain_rule_needs_every_sequence():
    with pytest.raises(ValueError, match="tokens_S must be at least 1"):
        chain_rule([0.1, 0.2], [2, 0])
    with pytest.raises(ValueError, match="each with its number of tokens"):
        chain_rule([0.1, 0.2], [2])
