"""Intervals, paired tests and Holm's correction against numbers worked out by hand and brute force."""

import itertools
import math
import subprocess
import sys
import warnings

import pytest
from scipy import stats

from runners.tables.statistics import holm, mean_interval, paired_test


def test_interval_of_one_two_three_is_two_plus_minus_2_484():
    # s = 1, t_{0.975, 2} = 4.30265 (tables), 4.30265 / sqrt(3) = 2.48414.
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(2.48414, abs=1e-5)
    assert interval.n == 3


def test_interval_of_two_values_uses_one_degree_of_freedom():
    # s = sqrt(2), t_{0.975, 1} = 12.7062, so the half-width is 12.7062 * sqrt(2) / sqrt(2).
    assert mean_interval([0.0, 2.0]).half_width == pytest.approx(12.7062, abs=1e-4)


def test_interval_at_another_confidence_agrees_with_scipy():
    values = [0.31, 0.29, 0.35, 0.33, 0.30]
    low, high = stats.t.interval(0.9, 4, loc=sum(values) / 5, scale=stats.sem(values))
    interval = mean_interval(values, confidence=0.9)
    assert interval.mean - interval.half_width == pytest.approx(low)
    assert interval.mean + interval.half_width == pytest.approx(high)


def test_interval_of_one_value_has_no_width_and_of_equal_values_width_zero():
    assert mean_interval([0.7]).half_width is None
    equal = mean_interval([0.1, 0.1, 0.1])
    assert (equal.mean, equal.half_width) == (0.1, 0.0)


def test_interval_shifts_and_scales_with_its_values():
    values = [3.0, 5.0, 10.0]
    base, moved = mean_interval(values), mean_interval([100.0 - 2.0 * value for value in values])
    assert moved.mean == pytest.approx(100.0 - 2.0 * base.mean)
    assert moved.half_width == pytest.approx(2.0 * base.half_width)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="values must be finite numbers, got"):
        mean_interval([1.0, bad])
    with pytest.raises(ValueError, match="a must be finite"):
        paired_test([1.0, bad], [0.0, 0.0])
    with pytest.raises(ValueError, match="margin must be finite"):
        paired_test([1.0, 2.0], [0.0, 0.0], margin=bad)
    with pytest.raises(ValueError, match="p_values must be finite"):
        holm([bad])


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="at least one number"):
        mean_interval([])
    with pytest.raises(ValueError, match="at least one number"):
        paired_test([], [])
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_test([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        mean_interval([1.0, 2.0], confidence=95)


def test_paired_p_by_hand():
    # Differences 4, 4, 6: mean 14/3, s = 2/sqrt(3), t = 7; for 2 degrees of freedom p = 1 - t/sqrt(t^2 + 2).
    test = paired_test([5.0, 6.0, 9.0], [1.0, 2.0, 3.0])
    assert test.mean == pytest.approx(14 / 3)
    assert test.p_value == pytest.approx(1 - 7 / math.sqrt(51))
    # Against a margin of 4, t = (14/3 - 4) / (2/3) = 1.
    assert paired_test([5.0, 6.0, 9.0], [1.0, 2.0, 3.0], margin=4.0).p_value == pytest.approx(1 - 1 / math.sqrt(3))


def test_paired_test_agrees_with_scipys_related_samples():
    a, b = [0.61, 0.55, 0.70, 0.64], [0.58, 0.56, 0.61, 0.60]
    assert paired_test(a, b).p_value == pytest.approx(stats.ttest_rel(a, b).pvalue)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    test = paired_test(a, b)
    assert (test.mean - test.half_width, test.mean + test.half_width) == pytest.approx((low, high))


def test_paired_test_is_antisymmetric_and_ignores_what_pairs_share():
    a, b, shared = [1.0, 3.0, 4.0], [0.5, 1.0, 3.0], [100.0, -7.0, 12.0]
    test, mirrored = paired_test(a, b, 0.25), paired_test(b, a, -0.25)
    assert mirrored.mean == -test.mean and mirrored.p_value == pytest.approx(test.p_value)
    moved = paired_test(
        [x + s for x, s in zip(a, shared, strict=True)], [x + s for x, s in zip(b, shared, strict=True)], 0.25
    )
    assert moved.p_value == pytest.approx(test.p_value)


def test_pairs_without_variance_are_decided_and_never_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # 0.3 - 0.2 and 0.5 - 0.4 differ in the last bit only.
        apart = paired_test([0.3, 0.5], [0.2, 0.4])
        assert (apart.p_value, apart.half_width) == (0.0, 0.0)
        equal = paired_test([0.3, 0.5], [0.2, 0.4], margin=0.1)
        assert (equal.p_value, equal.half_width) == (1.0, 0.0)
        assert paired_test([0.0, 0.0], [0.0, 0.0]).p_value == 1.0


def test_one_pair_cannot_be_tested():
    test = paired_test([3.0], [1.0])
    assert (test.mean, test.half_width, test.n, test.p_value) == (2.0, None, 1, None)


def test_holm_by_hand():
    # Sorted 0.005*4 = 0.02, 0.01*3 = 0.03, 0.03*2 = 0.06, 0.04*1 = 0.04 -> 0.06 (never below the one before).
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [0.2, 0.2, 0.001], [0.0, 1.0, 0.02, 0.021]])
def test_holm_is_the_closed_bonferroni_test(p_values):
    # Marcus, Peritz and Gabriel: reject i when every intersection that holds i is rejected (by Bonferroni).
    everything = range(len(p_values))
    subsets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(everything, size)]
    closed = [max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s) for i in everything]
    assert holm(p_values) == pytest.approx(closed)


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\], got 1.2"):
        holm([0.1, 1.2])


def test_importing_statistics_and_tables_loads_nothing_heavy():
    code = (
        "import sys, runners.tables.statistics, runners.tables.table, runners.tables.render\n"
        "heavy = {'torch', 'scipy', 'numpy', 'matplotlib', 'jinja2', 'rich', 'wandb'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
