"""Intervals and tests over seeds: the seed is the unit, never the item or the episode.

The t distribution and the t-test are SciPy's; Holm's step-down correction (Holm 1979, Scandinavian Journal of
Statistics 6:65-70) is written out, because SciPy offers only false-discovery-rate corrections. SciPy is
imported when a number is computed, so that importing this module costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Differences that agree up to this share of their operands are equal: 0.3 - 0.2 is 0.5 - 0.4.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean with the half-width of its confidence interval; `half_width` is None for a single value."""

    mean: float
    half_width: float | None
    n: int


@dataclass(frozen=True)
class PairedTest:
    """The mean of the paired differences a - b, its 95% interval, and the two-sided p against the margin.

    `p_value` is None for fewer than two pairs. Pairs that all differ by the same amount have no variance:
    then `half_width` is 0 and `p_value` is 0 (the amount is not the margin) or 1 (it is), never NaN.
    """

    mean: float
    half_width: float | None
    n: int
    p_value: float | None


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean and Student-t confidence interval of `values` (one per seed): mean ± t_{n-1} s / sqrt(n).

    Raises ValueError for no values, a value that is not finite, or a confidence outside (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    _check_finite(values, "values")
    n = len(values)
    if n == 0:
        raise ValueError("values must hold at least one number, got none")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, n)
    if min(values) == max(values):
        return Interval(float(values[0]), 0.0, n)
    from scipy import stats

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    quantile = float(stats.t.ppf(0.5 + confidence / 2.0, n - 1))
    return Interval(mean, quantile * deviation / math.sqrt(n), n)


def paired_test(a: Sequence[float], b: Sequence[float], margin: float = 0.0) -> PairedTest:
    """Two-sided one-sample t-test of the differences a[i] - b[i] against `margin`.

    a, b: one number per seed, in the same order. Raises ValueError when their lengths differ, when there is
    no pair, or for a number that is not finite.
    """
    if len(a) != len(b):
        raise ValueError(f"a and b must hold one number per pair each, got {len(a)} and {len(b)}")
    _check_finite(a, "a")
    _check_finite(b, "b")
    _check_finite([margin], "margin")
    differences = [float(x) - float(y) for x, y in zip(a, b, strict=True)]
    rounding = ROUNDING * max(abs(x) for x in (*a, *b, margin))
    if len(differences) > 1 and max(differences) - min(differences) <= rounding:
        mean = math.fsum(differences) / len(differences)
        return PairedTest(mean, 0.0, len(differences), 1.0 if abs(mean - margin) <= rounding else 0.0)
    interval = mean_interval(differences)
    if interval.n < 2:
        return PairedTest(interval.mean, None, interval.n, None)
    from scipy import stats

    p_value = float(stats.ttest_1samp(differences, popmean=margin).pvalue)
    return PairedTest(interval.mean, interval.half_width, interval.n, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given.

    The k-th smallest of m becomes the maximum over j <= k of (m - j + 1) p_(j), at most 1. Rejecting where it
    is below alpha keeps the family-wise error at alpha under any dependence between the tests.
    Raises ValueError for a p-value outside [0, 1].
    """
    _check_finite(p_values, "p_values")
    for p_value in p_values:
        if not 0.0 <= p_value <= 1.0:
            raise ValueError(f"p_values must lie in [0, 1], got {p_value}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _check_finite(values: Sequence[float], name: str) -> None:
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite numbers, got {value}")
