"""The lower bound's program for many estimates at once: an exact simplex method on arrays of small problems.

An algorithm that tracks the bound solves it anew for each repetition and estimate, hundreds of times. A call of HiGHS
takes milliseconds, whatever the size; here all problems are solved together. The dual of

    min costs . c   subject to   c P >= needs, c >= 0           (P: 1 / sigma^2, rows played)

is  max needs . y   subject to   P y <= costs, y >= 0;

it starts at the feasible y = 0, and c are its prices. The best arm costs nothing: what it tells about is left out, for
it is known for nothing, and its own row with it. The column with the largest gain enters; after many pivots the first
one that gains (Bland's rule, which cannot cycle), and always the first row among equals leaves.

Legend: U problems, K arms.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from methods.bandits.lower_bound import completing, joint_needs

Array = NDArray[np.float64]
Arms = NDArray[np.int64]

_TOLERANCE = 1e-11  # relative: all data are scaled to 1
_PATIENCE = 10  # pivots for each arm, until Bland's rule
_SHRINKING = (np.sqrt(5) - 1) / 2
_SEARCH_STEPS = 40  # of the golden section: the share is then known to 1e-8


def allocations(gaps_UK: Array, best_U: Arms, precision_KK: Array, constraint: str = "lp") -> Array:
    """c, the plays per log T that attain the lower bound of each estimate.

    Args:
        gaps_UK, best_U: as `lower_bound.gaps` returns them, the gaps positive.
        precision_KK: 1 / sigma^2; every column has an entry that is not 0.
        constraint: lp or joint.

    Returns:
        [U, K]; for the best arm the least that completes the others.
    """
    needs_UK = 2 / gaps_UK**2
    plays_UK = covering(gaps_UK, best_U, needs_UK, precision_KK)
    blind_U = np.flatnonzero(precision_KK[best_U, best_U] == 0)
    if constraint == "joint" and len(blind_U):
        plays_UK[blind_U] = _joint(gaps_UK[blind_U], best_U[blind_U], precision_KK)
    plays_UK[np.arange(len(best_U)), best_U] = completing(plays_UK, needs_UK, precision_KK, best_U)
    return plays_UK


def covering(gaps_UK: Array, best_U: Arms, needs_UK: Array, precision_KK: Array) -> Array:
    """The cheapest plays that meet what the best arm, which costs nothing, does not; the others cost their gaps.

    Returns [U, K]; 0 for the best arms.
    """
    problems, arms = gaps_UK.shape
    rows_U = np.arange(problems)
    need_U, told = needs_UK.max(1), precision_KK.max()
    costs_UK = gaps_UK / gaps_UK.max(1, keepdims=True)
    # Rows: arms, then the objective. Columns: y, slacks, right-hand side.
    tableau = np.zeros((problems, arms + 1, 2 * arms + 1))
    tableau[:, :arms, :arms] = precision_KK / told
    tableau[rows_U, best_U, :arms] = 0
    tableau[:, np.arange(arms), arms + np.arange(arms)] = 1
    tableau[:, :arms, -1] = costs_UK
    tableau[:, arms, :arms] = np.where(precision_KK[best_U] > 0, 0, -needs_UK / need_U[:, None])
    _solve(tableau)
    plays_UK: Array = np.maximum(tableau[:, arms, arms:-1], 0) * (need_U / told)[:, None]
    return plays_UK


def _solve(tableau: Array) -> None:
    """Pivot every tableau, in place, until no column improves its objective."""
    arms = tableau.shape[1] - 1
    basis_UK = np.tile(np.arange(arms, 2 * arms), (len(tableau), 1))
    open_U = np.arange(len(tableau))
    for pivots in itertools.count():
        prices = tableau[open_U, arms, :-1]
        wanted = prices.min(1) < -_TOLERANCE
        open_U, prices = open_U[wanted], prices[wanted]
        if not len(open_U):
            return
        column_U = prices.argmin(1) if pivots < _PATIENCE * arms else (prices < -_TOLERANCE).argmax(1)
        here = tableau[open_U]
        each = np.arange(len(open_U))
        entering_UK = here[each, :, column_U]
        positive = entering_UK[:, :arms] > _TOLERANCE
        ratios_UK = np.where(positive, here[:, :arms, -1] / np.where(positive, entering_UK[:, :arms], 1), np.inf)
        equal = ratios_UK <= ratios_UK.min(1, keepdims=True) * (1 + _TOLERANCE)
        row_U = np.where(equal, basis_UK[open_U], 2 * arms).argmin(1)
        pivot_row = here[each, row_U] / entering_UK[each, row_U][:, None]
        here -= entering_UK[:, :, None] * pivot_row[:, None, :]
        here[each, row_U] = pivot_row
        tableau[open_U] = here
        basis_UK[open_U, row_U] = column_U


def _joint(gaps_UK: Array, best_U: Arms, precision_KK: Array) -> Array:
    """The joint program where the best arm does not tell about itself: a golden section for each problem."""

    def solved(share_U: Array) -> tuple[Array, Array]:
        plays_UK = covering(gaps_UK, best_U, joint_needs(gaps_UK, best_U, share_U), precision_KK)
        return plays_UK, (plays_UK * gaps_UK).sum(1)  # those of the best arm are 0

    low_U, high_U = np.zeros(len(gaps_UK)), np.ones(len(gaps_UK))
    left_U, right_U = high_U - _SHRINKING, low_U + _SHRINKING
    left_value_U, right_value_U = solved(left_U)[1], solved(right_U)[1]
    for _ in range(_SEARCH_STEPS):
        falls_U = left_value_U > right_value_U  # the least is right of `left`; else it is left of `right`
        low_U, high_U = np.where(falls_U, left_U, low_U), np.where(falls_U, high_U, right_U)
        step_U = _SHRINKING * (high_U - low_U)
        new_U = np.where(falls_U, low_U + step_U, high_U - step_U)
        value_U = solved(new_U)[1]
        left_U, right_U = np.where(falls_U, right_U, new_U), np.where(falls_U, new_U, left_U)
        left_value_U, right_value_U = (
            np.where(falls_U, right_value_U, value_U),
            np.where(falls_U, value_U, left_value_U),
        )
    return solved((low_U + high_U) / 2)[0]
