"""Herding: choose points one by one so that their mean runs to a target's, with an error of O(1/k).

Welling: "Herding Dynamical Weights to Learn", ICML 2009. From a direction theta_0, the k steps are

    x_{t+1} = argmax over the points not yet taken of <theta_t, x>,      theta_{t+1} = theta_t + mu - x_{t+1},

so that theta_T = theta_0 + T mu - (sum of the chosen) stays bounded only if their mean tends to mu. Here mu is the
mean of all points, the baseline of GM Matching (`gm_matching.py`), which differs in mu alone. Inner products are not
invariant to translation and favour long points; `cosine`, the default of the authors' code, has all points and then mu
on the sphere, and `l2` takes the point nearest to theta instead.

Each of k steps needs the inner products with all N points, which is N D numbers read from memory. `herd` looks several
steps ahead instead: it drafts them among few promising points, then checks all of them in one product of matrices in
single precision, and settles what is too close to call in double precision. The picks are those of the plain steps.

Legend: N points, D dimensions, A steps looked ahead, P promising points.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from methods.selection.base import Embedded, EmbeddedConfig
from methods.selection.points import Array, Indices, checked, normalised

Similarity = Literal["inner", "cosine", "l2"]
Start = Literal["target", "mean", "random"]

_PLAIN = 2**20  # numbers; fewer are gone through at every step
_AHEAD = 12  # steps at most
_RECENT = 32  # steps whose best points are promising
_ROWS = 256  # of a block that is turned at a time
_ROUNDING = 2.0**-24  # of single precision
_SHORTEST = 1e-100  # of a theta that is scaled to length 1


def herd(points_ND: Array, target_D: Array, k: int, theta_D: Array, bias_N: Array | None = None) -> Indices:
    """The k steps above, by <theta, x> + bias; of equal points the first. Returns [k], in their order."""
    bias_N = np.zeros(len(points_ND)) if bias_N is None else bias_N
    if points_ND.size < _PLAIN:
        return step_by_step(points_ND, target_D, k, theta_D, bias_N)
    return look_ahead(points_ND, target_D, k, theta_D, bias_N)


def step_by_step(points_ND: Array, target_D: Array, k: int, theta_D: Array, bias_N: Array) -> Indices:
    """Herding as it is written: the inner products with all points at every step."""
    open_N = bias_N.copy()  # -inf once taken
    picks = np.empty(k, dtype=np.int64)
    for step in range(k):
        picks[step] = pick = int(np.argmax(points_ND @ theta_D + open_N))
        open_N[pick] = -np.inf
        theta_D = theta_D + target_D - points_ND[pick]
    return picks


def look_ahead(points_ND: Array, target_D: Array, k: int, theta_D: Array, bias_N: Array) -> Indices:
    """The same picks, several steps for each time that all points are read."""
    count, dimensions = points_ND.shape
    longest = float(np.sqrt(np.einsum("nd,nd->n", points_ND, points_ND).max())) or 1.0
    unit_DN = _unit_columns(points_ND, longest)
    largest_bias = float(np.abs(bias_N).max())
    shortest = max(largest_bias / longest, _SHORTEST)  # theta counts as no shorter: no scaled bias is above 1
    open_N = bias_N.copy()  # -inf once taken
    picks: list[int] = []
    # Promising are the best of the newest step, and fewer of each recent one: theta turns, and may come back.
    newest, each = min(max(count // 50, 64), count), min(max(count // 1000, 16), count)
    recent: deque[Indices] = deque(maxlen=_RECENT)
    ahead = 4
    scores_N = points_ND @ theta_D + open_N
    while len(picks) < k:
        pool_P = np.unique(np.concatenate([_best(scores_N, newest), *recent]))
        pool_P = pool_P[np.isfinite(open_N[pool_P])]
        drafted, theta_AD = _draft(points_ND, pool_P, open_N, target_D, theta_D, min(ahead, k - len(picks)))
        length_A = np.maximum(np.linalg.norm(theta_AD, axis=1), shortest)
        scores_AN = (theta_AD / length_A[:, None]).astype(np.float32) @ unit_DN
        accepted = 0
        for draft, theta_D, length, scores_N in zip(drafted, theta_AD, length_A, scores_AN, strict=True):
            scores_N += open_N / (longest * length)
            # Twice the most by which rounding can move a product of vectors of length 1, and a bias.
            doubt = 2 * _ROUNDING * (dimensions + 8 + 2 * largest_bias / (longest * length))
            near = np.flatnonzero(scores_N >= scores_N.max() - doubt)
            pick = int(near[np.argmax(points_ND[near] @ theta_D + open_N[near])])
            recent.append(_best(scores_N, each))
            picks.append(pick)
            open_N[pick] = -np.inf
            theta_D = theta_D + target_D - points_ND[pick]
            accepted += 1
            if pick != draft:  # what was drafted from here on follows another pick
                break
        ahead = min(max(2 * accepted, 2), _AHEAD)
    return np.array(picks, dtype=np.int64)


def _best(scores_N: NDArray[np.floating], number: int) -> Indices:
    """Where the highest scores are, in any order."""
    return np.argpartition(scores_N, len(scores_N) - number)[len(scores_N) - number :]


def _unit_columns(points_ND: Array, longest: float) -> NDArray[np.float32]:
    """The points as columns of length at most 1, in single precision: nothing overflows. Returns [D, N]."""
    unit_DN = np.empty(points_ND.shape[::-1], dtype=np.float32)
    for start in range(0, len(points_ND), _ROWS):
        unit_DN[:, start : start + _ROWS] = (points_ND[start : start + _ROWS] / longest).T
    return unit_DN


def _draft(
    points_ND: Array, pool_P: Indices, open_N: Array, target_D: Array, theta_D: Array, steps: int
) -> tuple[list[int], Array]:
    """Herding among the promising points: what is picked, and theta before each pick."""
    longest = float(np.linalg.norm(points_ND[pool_P], axis=1).max()) or 1.0
    unit_PD, open_P = (points_ND[pool_P] / longest).astype(np.float32), open_N[pool_P].copy()
    shortest = max(float(np.abs(open_P).max()) / longest, _SHORTEST)
    drafted, theta_AD = [], np.empty((steps, len(theta_D)))
    for step in range(steps):
        theta_AD[step] = theta_D
        length = max(float(np.linalg.norm(theta_D)), shortest)
        best = int(np.argmax(unit_PD @ (theta_D / length).astype(np.float32) + open_P / (longest * length)))
        open_P[best] = -np.inf
        drafted.append(int(pool_P[best]))
        theta_D = theta_D + target_D - points_ND[pool_P[best]]
    return drafted, theta_AD


def match(
    points_ND: Array,
    target_D: Array,
    k: int,
    *,
    similarity: Similarity = "inner",
    init: Start = "target",
    batches: int = 1,
    random: np.random.Generator | None = None,
) -> Indices:
    """Herd to a target, in the forms of the paper (arXiv 2504.00564) and of its authors' code. Returns [k].

    Args:
        points_ND, target_D: as they are; `cosine` brings both to length 1 here, after the target has been computed.
        init: theta_0 is the target, the mean of all points or one of them at random (the authors' code).
        batches: the points are split at random, and of each batch in turn an equal share is picked, theta going on.
            Where k is no multiple, the first batches give one more.
        random: for `random` and batches; None for one of seed 0.

    Raises:
        ValueError: `checked`'s, or batches is not from 1 to k.
    """
    points_ND = checked(points_ND, k)
    if not 1 <= batches <= k:
        raise ValueError(f"batches={batches}: must be from 1 to {k}, the number that is picked")
    random = random or np.random.default_rng(0)
    theta_D = {"target": target_D, "mean": points_ND.mean(0)}.get(init)
    if theta_D is None:
        theta_D = points_ND[random.integers(len(points_ND))]
    if similarity == "cosine":
        points_ND, target_D, theta_D = normalised(points_ND), normalised(target_D), normalised(theta_D)
    # The nearest to theta: ||theta - x||^2 = ||theta||^2 - 2 (<theta, x> - ||x||^2 / 2).
    bias_N = -np.einsum("nd,nd->n", points_ND, points_ND) / 2 if similarity == "l2" else np.zeros(len(points_ND))
    if batches == 1:
        return herd(points_ND, target_D, k, theta_D, bias_N)
    picks: list[Indices] = []
    for number, batch in enumerate(np.array_split(random.permutation(len(points_ND)), batches)):
        share = k // batches + (number < k % batches)
        chosen = batch[herd(points_ND[batch], target_D, share, theta_D, bias_N[batch])]
        theta_D = theta_D + share * target_D - points_ND[chosen].sum(0)
        picks.append(chosen)
    return np.concatenate(picks)


def select(
    points_ND: Array,
    k: int,
    *,
    similarity: Similarity = "inner",
    init: Start = "target",
    random: np.random.Generator | None = None,
) -> Indices:
    """Herd to the mean of all points. Returns [k].

    Raises:
        ValueError: `checked`'s.
    """
    points_ND = checked(points_ND, k)
    return match(points_ND, points_ND.mean(0), k, similarity=similarity, init=init, random=random)


@dataclass(frozen=True, kw_only=True)
class HerdingConfig(EmbeddedConfig):
    """similarity: inner (products), cosine or l2. init: theta_0 is the target, the mean or a random point."""

    similarity: Literal["inner", "cosine", "l2"] = "inner"
    init: Literal["target", "mean", "random"] = "target"


class Herding(Embedded):
    """Herding to the mean of all points, the baseline that one bad point misleads (arXiv 2406.17188)."""

    config: HerdingConfig

    def select(self, seen_N: Array, k: int, random: np.random.Generator) -> Indices:
        """The first k that herding takes."""
        return select(seen_N, k, similarity=self.config.similarity, init=self.config.init, random=random)
