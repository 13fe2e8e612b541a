"""The divergence frontier: published formulas on small histograms, limits, symmetries, integrals by quadrature."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gamma

from evals import frontier

HALVES, SKEWED = (0.5, 0.5), (0.9, 0.1)
KNOWN = [  # p, q, MAUVE, with 1000 points, with c = 1, frontier integral
    (HALVES, SKEWED, 0.671096, 0.671272, 0.975527, 0.137560),
    ((0.25,) * 4, (0.7, 0.1, 0.1, 0.1), 0.660443, 0.660606, 0.974548, 0.141447),
    ((1, 0), (0, 1), 0.004072, 0.003968, 0.5, 1.0),
    ((0.5, 0.5, 0), (0, 0.5, 0.5), 0.092572, 0.092039, 0.783646, 0.5),
]


@pytest.mark.parametrize(("p", "q", "score", "fine", "loose", "integral"), KNOWN)
def test_known_answers_and_symmetry(p, q, score, fine, loose, integral) -> None:
    for one, other in ((p, q), (q, p)):
        assert frontier.mauve(one, other) == pytest.approx(score, abs=6e-7)
        assert frontier.mauve(one, other, points=1000) == pytest.approx(fine, abs=6e-7)
        assert frontier.mauve(one, other, scaling=1) == pytest.approx(loose, abs=6e-7)
        assert frontier.frontier_integral(one, other) == pytest.approx(integral, abs=6e-7)


def test_smoothed_histograms_of_counts() -> None:
    p, q = frontier.smoothed([5, 5, 0]), frontier.smoothed([0, 5, 5])
    assert p == pytest.approx([5.5 / 11.5, 5.5 / 11.5, 0.5 / 11.5])
    assert frontier.mauve(p, q) == pytest.approx(0.301060, abs=6e-7)
    assert frontier.frontier_integral(p, q) == pytest.approx(0.292375, abs=6e-7)


@pytest.mark.parametrize("p", [HALVES, (0.1, 0.2, 0.7), (1.0,), (0.0, 0.25, 0.75)])
def test_equal_histograms_score_one(p) -> None:
    """Where all points of the curve tie in one coordinate: an unstable sort of them gives 0.75."""
    assert frontier.mauve(p, p) == pytest.approx(1, abs=1e-12)
    assert frontier.frontier_integral(p, p) == 0


@pytest.mark.parametrize("scaling", [1.0, 2.0, 5.0])
def test_disjoint_supports_have_the_area_of_a_beta_function(scaling: float) -> None:
    """x = (1 - l)^c and y = l^c."""
    limit = gamma(scaling + 1) ** 2 / gamma(2 * scaling + 1)
    assert frontier.mauve((1, 0), (0, 1), scaling, points=20_001) == pytest.approx(limit, rel=1e-5)
    assert scaling != 5 or limit == pytest.approx(1 / 252)


def drawn(bins: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.dirichlet(np.ones(bins)), random.dirichlet(np.ones(bins))


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


@pytest.mark.parametrize("seed", range(3))
def test_the_integral_is_that_of_the_divergences(seed: int) -> None:
    p, q = drawn(7, seed)
    p[0], q[1] = 0, 0  # mass that the other does not have
    p, q = p / p.sum(), q / q.sum()

    def integrand(part: float) -> float:
        mixture = part * p + (1 - part) * q
        return part * divergence(p, mixture) + (1 - part) * divergence(q, mixture)

    assert frontier.frontier_integral(p, q) == pytest.approx(2 * quad(integrand, 0, 1)[0], rel=1e-7)


@pytest.mark.parametrize("difference", [1e-9, 1e-5, 1e-2 - 1e-9, 1e-2 + 1e-9, 0.3])
def test_the_closed_form_keeps_its_digits_near_equality(difference: float) -> None:
    from mpmath import atanh, mp, mpf  # comes with torch

    with mp.workdps(50):
        d = mpf(difference)
        exact = float(1 - (1 - d**2) * atanh(d) / d)
    half = difference / 2
    found = frontier.frontier_integral((0.5 + half, 0.5 - half), (0.5 - half, 0.5 + half))
    assert found == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_may_be_permuted_merged_and_split(seed: int) -> None:
    p, q = drawn(6, seed)
    order = np.random.default_rng(seed).permutation(6)
    # The first bin in two, of the same likelihood ratio.
    split = [np.concatenate([[0.3 * h[0], 0.7 * h[0]], h[1:]]) for h in (p, q)]
    for other in ((p[order], q[order]), split):
        assert frontier.mauve(*other) == pytest.approx(frontier.mauve(p, q), rel=1e-12)
        assert frontier.frontier_integral(*other) == pytest.approx(frontier.frontier_integral(p, q), rel=1e-12)


def test_a_larger_scaling_lowers_the_score() -> None:
    scores = [frontier.mauve(*drawn(5, 0), scaling=c) for c in (0.5, 1, 2, 5, 10, 50)]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 0


def test_the_curve_falls_from_corner_to_corner() -> None:
    curve = frontier.frontier(*drawn(5, 1))
    assert curve.shape == (27, 2) and curve[0].tolist() == [1, 0] and curve[-1].tolist() == [0, 1]
    assert (np.diff(curve[:, 0]) <= 0).all() and (np.diff(curve[:, 1]) >= 0).all()


def test_ratios_at_every_sample_give_what_histograms_give() -> None:
    """Samples in the very proportions of p and q, with the true ratio at each."""
    counts = np.array([[10, 30, 60], [50, 40, 10]])
    p, q = counts / 100
    ratios = np.log(p / q)
    of_samples = [np.repeat(ratios, count) for count in counts]
    curve = frontier.frontier_of_ratios(*of_samples)
    np.testing.assert_allclose(curve, frontier.frontier(p, q), rtol=1e-9)
    found = frontier.frontier_integral_of_ratios(*of_samples)
    assert found == pytest.approx(frontier.frontier_integral(p, q), rel=1e-9)


def test_infinite_ratios_are_disjoint_supports() -> None:
    far = np.full(4, np.inf)
    assert frontier.area(frontier.frontier_of_ratios(far, -far)) == pytest.approx(frontier.mauve((1, 0), (0, 1)))
    assert frontier.frontier_integral_of_ratios(far, -far) == 1


def test_the_plain_score_of_few_samples_is_too_low_and_smoothing_mends_most_of_it() -> None:
    """At a fixed number of bins, as many as samples: means over draws."""
    random = np.random.default_rng(0)
    p, q = drawn(50, 3)
    truth = frontier.mauve(p, q)

    def plain_and_smooth(samples: int) -> np.ndarray:
        counts = [(random.multinomial(samples, p), random.multinomial(samples, q)) for _ in range(40)]
        plain = [frontier.mauve(a / samples, b / samples) for a, b in counts]
        smooth = [frontier.mauve(frontier.smoothed(a), frontier.smoothed(b)) for a, b in counts]
        return np.mean([plain, smooth], axis=1)

    few, more, many = (plain_and_smooth(samples) for samples in (50, 500, 20_000))
    assert few[0] < more[0] < many[0] < truth + 0.005
    assert abs(few[1] - truth) < abs(few[0] - truth) / 2
    assert many == pytest.approx(truth, abs=0.01)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: frontier.mauve((0.5, 0.5), (1.0,)), r"p.shape=\(2,\), q.shape=\(1,\): must be the same"),
        (lambda: frontier.mauve((), ()), r"p.shape=\(0,\), q.shape=\(0,\): .*one number for each bin"),
        (lambda: frontier.mauve((0.5, 0.6), (0.5, 0.5)), r"p.sum\(\)=1.1: must be 1"),
        (lambda: frontier.frontier_integral((0.5, 0.5), (1.5, -0.5)), "q=-0.5: must be probabilities >= 0"),
        (lambda: frontier.mauve(HALVES, SKEWED, scaling=0), "scaling=0: must be a number > 0"),
        (lambda: frontier.mauve(HALVES, SKEWED, points=1), "points=1: must be at least 2"),
        (lambda: frontier.smoothed([1, -1]), "counts=-1.0 to 1.0: must be finite and >= 0"),
        (lambda: frontier.smoothed([1, math.inf]), "counts=1.0 to inf: must be finite and >= 0"),
        (lambda: frontier.smoothed([]), r"counts.shape=\(0,\): must be one number for each bin"),
        (lambda: frontier.frontier_of_ratios([], [1.0]), r"p_logratios.shape=\(0,\): must be one number"),
        (lambda: frontier.frontier_integral_of_ratios([math.nan], [1.0]), "p_logratios=nan: must be numbers"),
        (lambda: frontier.frontier_integral_of_ratios([1.0], [math.nan]), "q_logratios=nan: must be numbers"),
    ],
)
def test_what_is_no_distribution_is_refused(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
