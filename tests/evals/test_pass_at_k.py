"""pass@k and pass@1 by turn: known answers, all subsets, digits, bad input."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from evals.pass_at_k import pass_at_k, solved_by_turn


def test_known_answers() -> None:
    assert pass_at_k(10, 3, 1) == pytest.approx([0.3])
    assert pass_at_k([10], [3], 5) == pytest.approx([0.9166667], abs=5e-8)
    assert pass_at_k([10, 10, 4], [0, 10, 1], 2).tolist() == pytest.approx([0, 1, 0.5])


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_the_share_of_subsets_with_a_right_one(n) -> None:
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * right + [False] * (n - right), k))
        assert pass_at_k(n, right, k)[0] == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


@pytest.mark.parametrize(("n", "right", "k"), [(200, 1, 100), (10_000, 3, 17), (10_000, 5000, 2000), (10**9, 1, 3)])
def test_it_keeps_its_digits(n, right, k) -> None:
    exact = 1 - Fraction(math.comb(n - right, k), math.comb(n, k))
    assert pass_at_k(n, right, k)[0] == pytest.approx(float(exact), rel=1e-13)


def test_it_is_unbiased() -> None:
    """The mean over binomially many right ones is what k independent samples reach."""
    n, p, k = 12, 0.3, 4
    right = np.arange(n + 1)
    probability = np.array([math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in right])
    assert probability @ pass_at_k(n, right, k) == pytest.approx(1 - (1 - p) ** k, rel=1e-12)


def test_zero_and_one_are_exact() -> None:
    found = pass_at_k([8, 8, 8, 8], [0, 5, 4, 8], 4)
    assert found[0] == 0 and not np.signbit(found[0])
    assert found[1] == found[3] == 1 and found[2] < 1


def test_shares_solved_by_turn() -> None:
    assert solved_by_turn([1, None, 3, 1, 2], 4) == [0.4, 0.6, 0.8, 0.8]
    assert solved_by_turn([None], 2) == [0, 0]
    assert solved_by_turn([1], 1) == [1]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: pass_at_k(10, 3, 0), "k=0: must be a whole number >= 1"),
        (lambda: pass_at_k(10, 3, 1.5), "k=1.5: must be a whole number >= 1"),
        (lambda: pass_at_k([10, 4], [3, 3], 5), "k=5: must be at most the samples of every problem, one has 4"),
        (lambda: pass_at_k([10, 4], [3, 5], 2), "right=5: must be from 0 to the 4 samples"),
        (lambda: pass_at_k(10, -1, 2), "right=-1: must be from 0 to the 10 samples"),
        (lambda: pass_at_k(10, 0.5, 2), r"right=\[0.5\]: must be whole numbers"),
        (lambda: pass_at_k([[10]], 1, 2), r"samples=\[\[10\]\]: must be whole numbers, one for each problem"),
        (lambda: pass_at_k([1, 2], [1, 1, 1], 1), r"samples=2, right=3: must be as many"),
        (lambda: pass_at_k([], [], 1), r"samples=\[\]: must be of at least one problem"),
        (lambda: solved_by_turn([1, 6], 5), "turns=6: must be from 1 to last=5, or null"),
        (lambda: solved_by_turn([0], 5), "turns=0: must be from 1 to last=5, or null"),
        (lambda: solved_by_turn([], 5), r"turns=\[\]: must be of at least one problem"),
        (lambda: solved_by_turn([1], 0), "last=0: must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said) -> None:
    with pytest.raises(ValueError, match=said):
        call()
