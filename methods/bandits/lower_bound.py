"""The least regret per log T of a Gaussian bandit with side observations (Graves and Lai, 1997; arXiv 2505.10698).

With the gaps Delta_i = mu_* - mu_i of all arms but the best one *, Delta_* = the smallest of them, and c_i plays of arm
i per log T, every consistent policy has liminf R_T / log T >= C, the value of

    lp       min sum_i (mu_* - mu_i) c_i   subject to   I_i >= 2 / Delta_i^2 for every arm i, the best included,
    joint    the same costs                subject to   1 / I_i + 1 / I_* <= Delta_i^2 / 2 for every i but the best,

I_j = sum_i c_i / sigma_ij^2, c >= 0. The LP optimises the cost of reliable estimates of the gaps (abstract of the
paper). This form of it is derived here, from changes of one mean at a time: arm i raised by Delta_i, or the best one
lowered by Delta_*. The joint program moves two means at once; it is exact, and the LP a relaxation of it, with at least
half of its value. They agree where the best arm tells about itself: it is played for nothing, and I_* grows without
limit. Whether the paper assumes that was not in our sources.

A play of the best arm costs nothing, so its c is not determined; given is the least with which the LP's constraints
hold. In an algorithm that tracks c, it is supplied by the rounds in which the best arm is played anyway.

Legend: K arms; rows of a matrix are played, columns told about.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Bound(NamedTuple):
    """value: C. plays_K: c, plays per log T."""

    value: float
    plays_K: Array


def gaps(means_RK: Array, floor: float = 0.0) -> tuple[Array, NDArray[np.int64]]:
    """Gaps to the best arm [..., K], for the best to the second best, none below `floor`; the best arms [...]."""
    best_R = means_RK.argmax(-1)
    at_R1 = best_R[..., None]
    gaps_RK = np.take_along_axis(means_RK, at_R1, -1) - means_RK
    np.put_along_axis(gaps_RK, at_R1, np.inf, -1)
    np.put_along_axis(gaps_RK, at_R1, gaps_RK.min(-1, keepdims=True), -1)
    return np.maximum(gaps_RK, floor), best_R


def lower_bound(means_K: Array, precision_KK: Array, constraint: str = "lp") -> Bound:
    """C and the plays that attain it.

    Args:
        means_K: of which one is the largest.
        precision_KK: 1 / sigma^2, 0 where a row tells nothing about a column.
        constraint: lp or joint.

    Raises:
        ValueError: no unique best arm, or no arm tells about some arm.
    """
    gaps_1K, best_1 = gaps(means_K[None])
    gaps_K, best = gaps_1K[0], int(best_1[0])
    if gaps_K.min() <= 0:
        raise ValueError(f"dataset.means={means_K.tolist()}: must have one best arm")
    if not (precision_KK > 0).any(0).all():
        raise ValueError(f"dataset.sigma: some arm must tell about arm {int((precision_KK > 0).any(0).argmin())}")
    costs_K = gaps_K.copy()
    costs_K[best] = 0
    needs_K = 2 / gaps_K**2
    if constraint == "joint" and precision_KK[best, best] == 0:
        value, plays_K = _joint(costs_K, gaps_K, precision_KK, best)
    else:
        value, plays_K = _covering(costs_K, needs_K, precision_KK, best)
    plays_K[best] = completing(plays_K[None], needs_K[None], precision_KK, best_1)[0]
    return Bound(value, plays_K)


def _covering(costs_K: Array, needs_K: Array, precision_KK: Array, best: int) -> Bound:
    """min costs . c subject to c P >= needs, c >= 0, by HiGHS. The plays of the best arm, which cost nothing: 0."""
    from scipy.optimize import linprog

    # Every need is scaled to 1, and the plays so that no entry of a row vanishes, however far apart the needs are.
    scale = float((needs_K / precision_KK.max(0)).max())
    rows_KK = scale * precision_KK.T / needs_K[:, None]
    solved = linprog(costs_K, A_ub=-rows_KK, b_ub=-np.ones(len(needs_K)), method="highs")
    if not solved.success:
        raise ValueError(f"dataset.sigma: HiGHS did not solve the linear program of the lower bound: {solved.message}")
    plays_K = scale * np.array(solved.x)
    plays_K[best] = 0
    return Bound(float(costs_K @ plays_K), plays_K)


def completing(plays_UK: Array, needs_UK: Array, precision_KK: Array, best_U: NDArray[np.int64]) -> Array:
    """The least plays of the best arm, which cost nothing, that meet every need it can. Returns [U]."""
    missing_UK = np.maximum(needs_UK - plays_UK @ precision_KK, 0)
    told_UK = precision_KK[best_U]
    least_U: Array = np.where(told_UK > 0, missing_UK / np.where(told_UK > 0, told_UK, 1), 0).max(1)
    return least_U


def _joint(costs_K: Array, gaps_K: Array, precision_KK: Array, best: int) -> Bound:
    """The joint program, convex: a linear program for each I_*, and a search for the best I_*."""
    from scipy.optimize import minimize_scalar

    def at(share: float) -> Bound:
        return _covering(costs_K, joint_needs(gaps_K[None], np.array([best]), np.array([share]))[0], precision_KK, best)

    found = minimize_scalar(lambda share: at(share).value, bounds=(0, 1), method="bounded", options={"xatol": 1e-10})
    return at(float(found.x))


def joint_needs(gaps_UK: Array, best_U: NDArray[np.int64], share_U: Array) -> Array:
    """What every I must be where I_* = 2 / (share Delta_*^2), 0 < share < 1, in the joint program. Returns [U, K].

    1 / I_i <= Delta_i^2 / 2 - 1 / I_* = (Delta_i^2 - share Delta_*^2) / 2.
    """
    rows_U = np.arange(len(gaps_UK))
    least_U = gaps_UK[rows_U, best_U] ** 2
    left_UK = gaps_UK**2 - (share_U * least_U)[:, None]
    left_UK[rows_U, best_U] = share_U * least_U
    needs_UK: Array = 2 / left_UK
    return needs_UK
