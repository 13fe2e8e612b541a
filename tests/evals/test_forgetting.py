"""What is kept and lost of general abilities, by hand."""

import itertools
import math
import random
import subprocess
import sys

import pytest

from evals.forgetting import drop, mean_score, pareto_front


def test_mean_score_by_hand() -> None:
    assert mean_score([0.5, 0.7, 0.9]) == pytest.approx(0.7)
    assert mean_score([3.0]) == 3.0


def test_drop_is_what_the_base_had_more() -> None:
    assert drop(62.0, 53.5) == 8.5
    assert drop(0.25, 0.5) == -0.25  # a gain


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="scores must be finite numbers, got"):
        mean_score([0.5, bad])
    with pytest.raises(ValueError, match="base must be finite numbers, got"):
        drop(bad, 0.5)
    with pytest.raises(ValueError, match="tuned must be finite numbers, got"):
        drop(0.5, bad)
    with pytest.raises(ValueError, match="scores must hold at least one number, got none"):
        mean_score([])


def test_pareto_front_by_hand() -> None:
    # (2, 2) is beaten by (3, 2), which is as good on y; (1, 1) by all; the ends stay.
    points = [(1.0, 3.0), (2.0, 2.0), (3.0, 2.0), (1.0, 1.0), (4.0, 0.0)]
    assert pareto_front(points) == [True, False, True, False, True]


def test_each_axis_can_be_turned_round() -> None:
    points = [(1.0, 1.0), (2.0, 2.0), (1.0, 2.0), (2.0, 1.0)]
    assert pareto_front(points) == [False, True, False, False]
    assert pareto_front(points, ("lower", "lower")) == [True, False, False, False]
    assert pareto_front(points, ("lower", "higher")) == [False, False, True, False]
    assert pareto_front(points, ("higher", "lower")) == [False, False, False, True]
    with pytest.raises(ValueError, match="better must be higher or lower for each axis, got 'up'"):
        pareto_front(points, ("higher", "up"))


def test_equal_points_do_not_beat_each_other() -> None:
    assert pareto_front([(1.0, 1.0), (1.0, 1.0), (1.0, 0.5)]) == [True, True, False]
    assert pareto_front([]) == [] and pareto_front([(0.0, 0.0)]) == [True]


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_point_without_a_value_is_not_on_the_front_and_beats_none(missing: float | None) -> None:
    assert pareto_front([(1.0, 1.0), (missing, 9.0), (9.0, missing)]) == [True, False, False]


def test_pareto_front_agrees_with_peeling_off_the_best() -> None:
    """An independent way: from the best x on, a point stays where its y is a new best."""
    chance = random.Random(0)
    points = [(chance.random(), chance.random()) for _ in range(200)]
    best = -math.inf
    kept = set()
    for x, y in sorted(points, reverse=True):
        if y > best:
            kept.add((x, y))
            best = y
    assert [point in kept for point in points] == pareto_front(points)
    shuffled = chance.sample(points, len(points))
    assert set(itertools.compress(shuffled, pareto_front(shuffled))) == kept


def test_importing_forgetting_loads_nothing_heavy() -> None:
    code = (
        "import sys, evals.forgetting\n"
        "heavy = {'torch', 'numpy', 'scipy', 'lm_eval', 'runners', 'methods'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
