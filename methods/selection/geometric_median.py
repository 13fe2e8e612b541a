"""The geometric median, the point with the least sum of distances to all points; up to half of them may be anything.

Weiszfeld's iteration, m' = (sum x_i / d_i) / (sum 1 / d_i) with d_i = ||x_i - m||, divides by zero at a point of the
data. Vardi and Zhang (PNAS 97, 2000) say what to do there: with eta the number of points at m, T the iteration over the
others, r = ||sum (x_i - m) / d_i|| over the others,

    m' = (1 - min(1, eta / r)) T + min(1, eta / r) m,

and m is the median where r <= eta. Here a point nearer than eps counts as at m: a step that is short because a point is
near does not end the iteration. Where the points lie closer than 1, eps is in units of their median distance to m, so
that a median moves with the unit in which points are measured. The authors' code of GM Matching
(anishacharya/GM-Matching) takes 1e-8 for a distance of zero instead, which stays at any data point that it comes upon,
and has eps as it is; it is here as `floored`.

Legend: N points, D dimensions.
"""

import logging
from collections.abc import Callable

import numpy as np

from methods.selection.points import Array, checked, distances

log = logging.getLogger(__name__)

EPS = 1e-5  # of the authors' code: length of the last step
STEPS = 5000  # of the authors' driver
_FLOOR = 1e-8
_ROUNDING = 2.0**-46  # of a centre, in units of its length: a step as short says nothing


def weiszfeld(points_ND: Array, eps: float = EPS, steps: int = STEPS) -> Array:
    """The geometric median, from the mean on, until a step is at most `eps` long or after `steps`. Returns [D].

    Where it is a point of the data, it is that point exactly. Where the median distance of the points to it is less
    than 1, eps is in units of that: the iteration goes on, with a finer eps and as many steps again. Where the steps do
    not suffice, a warning is logged.

    Raises:
        ValueError: `checked`'s, of a point, or there is none.
    """
    points_ND = checked(points_ND, 1)

    def step(centre_D: Array, distance_N: Array) -> Array:
        pull, others_D, eta = _pull(points_ND, centre_D, distance_N, finest)
        stay = 1.0 if pull <= eta else eta / pull
        return (1 - stay) * others_D + stay * centre_D

    centre_D, finest = points_ND.mean(0), eps
    while True:
        centre_D, is_settled = _iterated(points_ND, centre_D, step, finest, steps)
        distance_N = distances(points_ND, centre_D)
        nearest_D = points_ND[int(np.argmin(distance_N))]
        pull, _, eta = _pull(points_ND, nearest_D, distances(points_ND, nearest_D), 0.0)
        if pull <= eta:
            return nearest_D.copy()
        finer = max(eps * float(np.median(distance_N)), _ROUNDING * float(np.linalg.norm(centre_D)))
        if not is_settled or finer >= finest / 2:
            return centre_D
        finest = finer


def floored(points_ND: Array, eps: float = EPS, steps: int = STEPS) -> Array:
    """Weiszfeld's iteration as in the authors' code: a distance of zero counts as 1e-8. Returns [D].

    A warning is logged where the steps do not suffice.

    Raises:
        ValueError: `checked`'s, of a point, or there is none.
    """
    points_ND = checked(points_ND, 1)

    def step(_: Array, distance_N: Array) -> Array:
        weight_N = 1 / np.where(distance_N > 0, distance_N, _FLOOR)
        return weight_N @ points_ND / weight_N.sum()

    return _iterated(points_ND, points_ND.mean(0), step, eps, steps)[0]


def coordinate(points_ND: Array) -> Array:
    """The median of each coordinate, which the authors' code offers too. Returns [D].

    Raises:
        ValueError: `checked`'s, of a point, or there is none.
    """
    return np.median(checked(points_ND, 1), axis=0)


def _iterated(
    points_ND: Array, centre_D: Array, step: Callable[[Array, Array], Array], eps: float, steps: int
) -> tuple[Array, bool]:
    """Steps from a centre on: where they end [D], and whether the last was at most eps long.

    Args:
        step: from the centre and its distances [N] to the next centre.
    """
    moved = np.inf
    for _ in range(steps):
        next_D = step(centre_D, distances(points_ND, centre_D))
        moved = float(np.linalg.norm(next_D - centre_D))
        centre_D = next_D
        if moved <= eps:
            return centre_D, True
    if moved > _ROUNDING * float(np.linalg.norm(centre_D)):
        log.warning("the geometric median has not converged: step %d was %.2g long, more than %.2g", steps, moved, eps)
    return centre_D, False


def _pull(points_ND: Array, centre_D: Array, distance_N: Array, eps: float) -> tuple[float, Array, int]:
    """r and T of the points further than eps from the centre, and eta, how many there are of the others."""
    away_N = distance_N > eps
    weight_N = np.where(away_N, 1 / np.where(away_N, distance_N, 1.0), 0.0)
    total = float(weight_N.sum())
    if total == 0:
        return 0.0, centre_D, len(points_ND)
    others_D = weight_N @ points_ND / total
    return float(np.linalg.norm(others_D - centre_D)) * total, others_D, int((~away_N).sum())


def objective(points_ND: Array, centre_D: Array) -> float:
    """Sum of the distances of all points to a centre, which the geometric median makes least."""
    return float(distances(points_ND, centre_D).sum())


def error_bound(clean_ND: Array, bad: int, eps: float = 0.0) -> float:
    """Theorem 1 of arXiv 2406.17188: what the expected ||mean of the chosen - mean of the clean||^2 tends to at most.

    8 |G| / (|G| - |B|)^2 sum ||x - mu_G||^2 + 2 eps^2 / (|G| - |B|)^2, for |B| bad points, fewer than the clean ones G.

    Raises:
        ValueError: the bad ones are no minority.
    """
    good = len(clean_ND)
    if not 0 <= bad < good:
        raise ValueError(f"bad={bad}: must be fewer than the {good} clean points")
    spread = float((distances(clean_ND, clean_ND.mean(0)) ** 2).sum())
    return (8 * good * spread + 2 * eps**2) / (good - bad) ** 2
