"""The divergence frontier of two distributions and its summaries, MAUVE and the frontier integral.

Pillutla et al.: "MAUVE: Measuring the Gap Between Neural Text and Human Text using Divergence Frontiers" (2021, arXiv
2102.01454) and "MAUVE Scores for Generative Models: Theory and Practice" (2023, arXiv 2212.14578). With the mixtures
R = l P + (1 - l) Q, 0 < l < 1, the frontier is the curve

    x(l) = exp(-c KL(Q || R)),     y(l) = exp(-c KL(P || R)),     from (1, 0) to (0, 1).

Mass of Q where P has none lowers x, mass of P where Q has none lowers y.

    MAUVE                the area under the curve, in (0, 1], 1 where P = Q; c = 5, 25 values of l
    frontier integral    2 int_0^1 [l KL(P || R) + (1 - l) KL(Q || R)] dl, in [0, 1], 0 where P = Q; it has no c

In closed form the integral is E_M psi(d), with M = (P + Q)/2, d = (p - q)/(p + q) and

    psi(d) = 1 - (1 - d^2) artanh(d) / d                                                (derived here)

MAUVE* and FI* are the same of histograms smoothed as Krichevsky and Trofimov do, 1/2 added to every count.

P and Q are given as histograms, or by the log-ratio log p/q at samples of each (`evals.mauve` estimates those).
Logarithms are natural. Legend: K bins, L values of l, N samples of P, M samples of Q.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, kl_div

Floats = NDArray[np.float64]

SCALING = 5.0  # c
POINTS = 25  # values of l
_EDGE = 1e-6  # l runs from here to 1 minus this


def mauve(p_K: ArrayLike, q_K: ArrayLike, scaling: float = SCALING, points: int = POINTS) -> float:
    """The area under the frontier of two histograms, in (0, 1].

    Args:
        p_K, q_K: probabilities of the bins.
        scaling: c > 0; larger is stricter.
        points: values of l, at least 2.

    Raises:
        ValueError: no histograms of the same bins, a scaling or a number of points that is none.
    """
    return area(frontier(p_K, q_K, scaling, points))


def frontier(p_K: ArrayLike, q_K: ArrayLike, scaling: float = SCALING, points: int = POINTS) -> Floats:
    """The curve of two histograms, its two end points included. Returns [L + 2, 2], x falling.

    Raises:
        ValueError: as `mauve`.
    """
    p_K, q_K = _histograms(p_K, q_K)
    l_L = _weights(scaling, points)
    mixtures_LK = l_L[:, None] * p_K + (1 - l_L[:, None]) * q_K
    return _curve(_kl(q_K, mixtures_LK), _kl(p_K, mixtures_LK), scaling)


def frontier_integral(p_K: ArrayLike, q_K: ArrayLike) -> float:
    """The frontier integral of two histograms, in [0, 1]; lower is closer.

    Raises:
        ValueError: no histograms of the same bins.
    """
    p_K, q_K = _histograms(p_K, q_K)
    mass_K = p_K + q_K
    difference_K = np.divide(p_K - q_K, mass_K, out=np.zeros_like(mass_K), where=mass_K > 0)
    return float((mass_K / 2) @ _psi(difference_K))


def smoothed(counts_K: ArrayLike) -> Floats:
    """Krichevsky and Trofimov's estimate of the probabilities of bins: 1/2 is added to every count. Returns [K].

    Raises:
        ValueError: no counts.
    """
    counts_K = np.asarray(counts_K, float)
    if counts_K.ndim != 1 or not len(counts_K):
        raise ValueError(f"counts.shape={counts_K.shape}: must be one number for each bin")
    if not counts_K.min() >= 0 or np.isinf(counts_K.max()):
        raise ValueError(f"counts={counts_K.min()} to {counts_K.max()}: must be finite and >= 0")
    return (counts_K + 0.5) / (counts_K.sum() + len(counts_K) / 2)


def frontier_of_ratios(
    p_logratios_N: ArrayLike, q_logratios_M: ArrayLike, scaling: float = SCALING, points: int = POINTS
) -> Floats:
    """The curve from log p(x)/q(x) at samples x of P and of Q, each side with half of the weight. Returns [L + 2, 2].

    With a = p/(p + q) and r = l a + (1 - l)(1 - a), KL(P || R) is the mean of 2 (a log(a/r) - a + r), and KL(Q || R)
    that with 1 - a for a (derived here): no term is negative, so that noise in the ratios never hides a difference.
    Infinite ratios are allowed.

    Raises:
        ValueError: no samples, a ratio that is no number, a scaling or a number of points that is none.
    """
    l_L1 = _weights(scaling, points)[:, None]
    p_kls_L, q_kls_L = np.zeros(points), np.zeros(points)
    for ratios in _ratios(p_logratios_N, q_logratios_M):
        of_p, of_q = expit(ratios), expit(-ratios)
        mixed_L = l_L1 * of_p + (1 - l_L1) * of_q
        p_kls_L += kl_div(of_p, mixed_L).mean(1)
        q_kls_L += kl_div(of_q, mixed_L).mean(1)
    return _curve(q_kls_L, p_kls_L, scaling)


def frontier_integral_of_ratios(p_logratios_N: ArrayLike, q_logratios_M: ArrayLike) -> float:
    """The frontier integral from log p(x)/q(x) at samples of P and of Q, in [0, 1].

    Raises:
        ValueError: no samples, or a ratio that is no number.
    """
    of_each = [_psi(np.tanh(ratios / 2)).mean() for ratios in _ratios(p_logratios_N, q_logratios_M)]
    return float(sum(of_each) / 2)


def area(curve_L2: ArrayLike) -> float:
    """The area between a curve and the axes: the mean of that under y(x) and that under x(y), by trapezoids.

    Points that agree in one coordinate are ordered by the other, so that two equal distributions have area 1.
    """
    x_L, y_L = np.asarray(curve_L2, float).T
    return float((_under(x_L, y_L) + _under(y_L, x_L)) / 2)


def _under(x_L: Floats, y_L: Floats) -> float:
    order = np.lexsort((-y_L, x_L))
    return float(np.trapezoid(y_L[order], x_L[order]))


def _weights(scaling: float, points: int) -> Floats:
    if not (np.isfinite(scaling) and scaling > 0):
        raise ValueError(f"scaling={scaling}: must be a number > 0")
    if points < 2:
        raise ValueError(f"points={points}: must be at least 2")
    return np.linspace(_EDGE, 1 - _EDGE, points)


def _curve(q_kls_L: Floats, p_kls_L: Floats, scaling: float) -> Floats:
    inner_L2 = np.exp(-scaling * np.stack([q_kls_L, p_kls_L], 1))
    return np.concatenate([[[1.0, 0.0]], inner_L2, [[0.0, 1.0]]])


def _kl(p_K: Floats, mixtures_LK: Floats) -> Floats:
    """KL(P || R) of every mixture; a mixture has mass wherever P has. Returns [L]."""
    held = p_K > 0
    kls_L = (p_K[held] * np.log(p_K[held] / mixtures_LK[:, held])).sum(1)
    return np.asarray(np.maximum(kls_L, 0))  # rounding


def _psi(d: Floats) -> Floats:
    """1 - (1 - d^2) artanh(d)/d, for |d| <= 1; near 0, where that cancels, by its series sum 2 d^2k / (4 k^2 - 1)."""
    square = d**2
    series = square * (2 / 3 + square * (2 / 15 + square * 2 / 35))
    inner = (np.abs(d) > 1e-2) & (np.abs(d) < 1)
    safe = np.where(inner, d, 0.5)
    exact = 1 - (1 - safe**2) * np.arctanh(safe) / safe
    return np.where(inner, exact, np.where(np.abs(d) < 1, series, 1.0))


def _histograms(p_K: ArrayLike, q_K: ArrayLike) -> tuple[Floats, Floats]:
    p, q = np.asarray(p_K, float), np.asarray(q_K, float)
    if p.ndim != 1 or p.shape != q.shape or not len(p):
        raise ValueError(f"p.shape={p.shape}, q.shape={q.shape}: must be the same, one number for each bin")
    for name, histogram in (("p", p), ("q", q)):
        if not histogram.min() >= 0:
            raise ValueError(f"{name}={histogram.min()}: must be probabilities >= 0")
        if abs(histogram.sum() - 1) > 1e-6:
            raise ValueError(f"{name}.sum()={histogram.sum()}: must be 1")
    return p, q


def _ratios(p_logratios_N: ArrayLike, q_logratios_M: ArrayLike) -> tuple[Floats, Floats]:
    of_p, of_q = np.asarray(p_logratios_N, float), np.asarray(q_logratios_M, float)
    for name, values in (("p_logratios", of_p), ("q_logratios", of_q)):
        if values.ndim != 1 or not len(values):
            raise ValueError(f"{name}.shape={values.shape}: must be one number for each sample, and one sample or more")
        if np.isnan(values).any():
            raise ValueError(f"{name}=nan: must be numbers")
    return of_p, of_q
