"""Best of n: enumerated values, ties, bounds, agreement with brute force and with simulated draws."""

import itertools
import math

import numpy as np
import pytest

from evals import best_of_n
from evals.best_of_n import outcomes


def increasing(*p: float) -> best_of_n.Outcomes:
    return outcomes(p, range(len(p)))


def uniform(size: int) -> best_of_n.Outcomes:
    return outcomes(np.full(size, 1 / size), np.arange(size))


KNOWN = [  # distribution, n, KL, bound, expected estimate, win rate, its bound
    (increasing(0.5, 0.5), 2, 0.130812, 0.193147, 0.179099, 0.625, 0.666667),
    (increasing(0.5, 0.5), 4, 0.459356, 0.636294, 0.499124, 0.71875, 0.8),
    (increasing(0.5, 0.5), 128, 0.693147, 3.859843, 0.693147, 0.75, 0.992248),
    (uniform(10), 4, 0.628825, 0.636294, 0.634870, 0.796670, 0.8),
    (uniform(10), 128, 2.302565, 3.859843, 2.302567, 0.95, 0.992248),
    (uniform(100), 16, 1.834018, 1.835089, 1.834948, 0.941043, 0.941176),
    (uniform(10_000), 128, 3.859836, 3.859843, 3.859843, 0.992248, 0.992248),
    (increasing(0.9, 0.1), 4, 0.217398, 0.636294, 0.286975, 0.62195, 0.8),
    (increasing(0.9, 0.1), 16, 1.416096, 1.835089, 1.450249, 0.857349, 0.941176),
    (increasing(0.9999, 1e-4), 128, 0.049093, 3.859843, 0.049192, 0.50631, 0.992248),
]


@pytest.mark.parametrize(("of", "n", "kl", "bound", "estimate", "win", "win_bound"), KNOWN)
def test_known_answers(of, n, kl, bound, estimate, win, win_bound) -> None:
    assert best_of_n.kl(of, n) == pytest.approx(kl, abs=6e-7)
    assert best_of_n.kl_bound(n) == pytest.approx(bound, abs=6e-7)
    assert best_of_n.expected_kl_estimate(of, n) == pytest.approx(estimate, abs=6e-7)
    assert best_of_n.win_rate(of, n) == pytest.approx(win, abs=6e-7)
    assert best_of_n.win_rate_bound(n) == pytest.approx(win_bound, abs=6e-7)


def test_two_even_outcomes_by_hand() -> None:
    assert best_of_n.pmf(increasing(0.5, 0.5), 2).tolist() == pytest.approx([0.25, 0.75])
    assert best_of_n.kl(increasing(0.3, 0.7), 1) == 0
    assert best_of_n.win_rate(increasing(0.3, 0.7), 1) == pytest.approx(0.5)


TIED = (np.array([0.2, 0.1, 0.3, 0.15, 0.25]), np.array([1.0, 0.0, 1.0, 2.0, 2.0]))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("p_and_rewards", [TIED, (TIED[0], np.array([3.0, 1, 4, 1.5, 9]))])
def test_pmf_kl_and_win_rate_are_those_of_all_tuples(n: int, p_and_rewards) -> None:
    p, rewards = p_and_rewards
    kept, win = np.zeros(5), 0.0
    for drawn in itertools.product(range(5), repeat=n):
        best = max(drawn, key=lambda y: rewards[y])  # the first of equal ones
        probability = math.prod(p[y] for y in drawn)
        kept[best] += probability
        beaten = (rewards < rewards[best]) + (rewards == rewards[best]) / 2
        win += probability * float(p @ beaten)
    of = outcomes(p, rewards)
    assert best_of_n.pmf(of, n) == pytest.approx(kept, rel=1e-12)
    assert best_of_n.kl(of, n) == pytest.approx(float((kept * np.log(kept / p)).sum()), abs=1e-12)
    assert best_of_n.win_rate(of, n) == pytest.approx(win, rel=1e-12)


def random_outcomes(seed: int, size: int = 30) -> best_of_n.Outcomes:
    random = np.random.default_rng(seed)
    return outcomes(random.dirichlet(np.full(size, 0.3)), random.standard_normal(size))


@pytest.mark.parametrize("seed", range(5))
def test_bounds_hold_for_every_n(seed: int) -> None:
    of = random_outcomes(seed)
    kls = []
    for n in (1, 2, 3, 5, 16, 64, 1000):
        kl, bound = best_of_n.kl(of, n), best_of_n.kl_bound(n)
        assert best_of_n.pmf(of, n).sum() == pytest.approx(1)
        assert bound - best_of_n.kl_gap_bound(of, n) <= kl + 1e-12 and kl <= bound + 1e-12
        assert kl <= best_of_n.expected_kl_estimate(of, n) + 1e-12 <= bound + 2e-12  # the first: a conjecture
        win, most = best_of_n.win_rate(of, n), best_of_n.win_rate_bound(n)
        assert most - best_of_n.win_rate_gap_bound(of, n) <= win + 1e-12 and win <= most + 1e-12
        kls.append(kl)
    assert kls == sorted(kls)


def test_divergence_ends_at_the_surprise_of_the_best() -> None:
    assert best_of_n.kl(increasing(0.99, 0.01), 10**6) == pytest.approx(math.log(100), rel=1e-9)
    tied = outcomes([0.9, 0.06, 0.04], [0, 1, 1])
    assert best_of_n.kl(tied, 10**6) == pytest.approx(math.log(10), rel=1e-9)
    # Far beyond n p_top = 1 the bound is loose by about log(n p_top), theorem 3.6.
    n = 10**6
    assert best_of_n.kl_bound(n) - best_of_n.kl(tied, n) == pytest.approx(math.log(n * 0.1) - 1, rel=1e-4)


def test_many_rare_outcomes_reach_the_bound() -> None:
    assert best_of_n.kl(uniform(10**6), 8) == pytest.approx(best_of_n.kl_bound(8), abs=1e-4)
    assert best_of_n.win_rate(uniform(10**6), 8) == pytest.approx(8 / 9, abs=1e-4)


def test_only_the_order_of_rewards_matters_and_one_reward_for_all_changes_nothing() -> None:
    p = np.array([0.4, 0.35, 0.25])
    one, other = outcomes(p, [-1.0, 2.0, 5.0]), outcomes(p, np.exp([-1.0, 2.0, 5.0]))
    assert best_of_n.kl(one, 7) == best_of_n.kl(other, 7)
    assert best_of_n.pmf(outcomes(p, [1, 1, 1]), 9) == pytest.approx(p)
    assert best_of_n.kl(outcomes(p, [1, 1, 1]), 9) == pytest.approx(0, abs=1e-12)
    # What is never drawn makes no group, however good it would be.
    assert best_of_n.kl(outcomes([*p, 0.0], [-1, 2, 5, 9]), 7) == pytest.approx(best_of_n.kl(one, 7))
    assert best_of_n.pmf(outcomes([*p, 0.0], [-1, 2, 5, 9]), 7)[3] == 0


def test_estimate_of_one_outcome() -> None:
    assert best_of_n.kl_estimate([math.log(1e-9)], 4)[0] == pytest.approx(0.636294, abs=1e-6)
    assert best_of_n.kl_estimate([math.log(0.5)], 2)[0] == pytest.approx(0.179099, abs=1e-6)
    assert best_of_n.kl_estimate([0.0, -1e-320], 4).tolist() == [0, 0]
    assert best_of_n.kl_estimate([-0.3], 1)[0] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("n", [2, 16, 10**6])
@pytest.mark.parametrize("logp", [-1e-12, -0.1, -0.69, -0.7, -3.0, -40.0, -300.0, -599.0])
def test_estimate_keeps_its_digits(n: int, logp: float) -> None:
    """Against 400 digits; naively nothing is left of it at both ends."""
    from mpmath import exp, log, mp, mpf  # comes with torch

    with mp.workdps(400):
        e = exp(mpf(logp))
        none = (1 - e) ** n
        exact = none * (log(n) + (n - 1) * log(1 - e) - mpf(n - 1) / n) + (1 - none) * log((1 - none) / e)
    assert best_of_n.kl_estimate([logp], n)[0] == pytest.approx(float(exact), rel=1e-9, abs=1e-14)


def test_of_what_is_too_rare_for_a_float_the_estimate_is_the_bound() -> None:
    estimates = best_of_n.kl_estimate([-601.0, -1e5, -math.inf], 32)
    assert estimates.tolist() == [best_of_n.kl_bound(32)] * 3


def test_simulated_draws_agree_with_pmf_and_expected_estimate() -> None:
    of = outcomes(*TIED)
    kept = best_of_n.keep_best(of, 3, 40_000, np.random.default_rng(0))
    shares = np.bincount(kept, minlength=5) / len(kept)
    assert shares == pytest.approx(best_of_n.pmf(of, 3), abs=4 * 0.5 / math.sqrt(len(kept)))
    estimate = best_of_n.kl_estimate(np.log(of.p_L)[kept], 3)
    error = estimate.std() / math.sqrt(len(kept))
    assert estimate.mean() == pytest.approx(best_of_n.expected_kl_estimate(of, 3), abs=4 * error)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: outcomes([0.5, 0.6], [1, 2]), r"p.sum\(\)=1.1: must be 1"),
        (lambda: outcomes([1.5, -0.5], [1, 2]), "p=-0.5: must be probabilities >= 0"),
        (lambda: outcomes([0.5, 0.5], [1]), r"p.shape=\(2,\), rewards.shape=\(1,\): must be the same"),
        (lambda: outcomes([], []), r"p.shape=\(0,\), rewards.shape=\(0,\): .*one for each outcome"),
        (lambda: outcomes([0.5, 0.5], [1, math.nan]), "rewards=nan: must be numbers"),
        (lambda: best_of_n.kl(uniform(2), 0), "n=0: must be at least 1"),
        (lambda: best_of_n.kl_bound(-1), "n=-1: must be at least 1"),
        (lambda: best_of_n.kl_estimate([0.1], 2), "logps=0.1: must be log-probabilities, at most 0"),
        (lambda: best_of_n.kl_estimate([math.nan], 2), "logps=nan: must be log-probabilities, at most 0"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
