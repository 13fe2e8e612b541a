"""pass@k from n samples of a problem, and pass@1 after each turn of a dialogue with feedback.

Of n samples c are right; k of them, drawn without replacement, have a right one among them with probability

    pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{j=0}^{k-1} (1 - c / (n - j))

(Chen et al. 2021, arXiv 2107.03374). It is unbiased, which 1 - (1 - c/n)^k is not. pass@1 is the share c/n (avg@n).

Legend: P problems, K the samples drawn one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pass_at_k(samples_P: ArrayLike, right_P: ArrayLike, k: int) -> NDArray[np.float64]:
    """The estimate for every problem, to all digits also where it is near 0 or the binomials overflow.

    Args:
        samples_P: n of each problem, or one number for all.
        right_P: c of each.
        k: how many are drawn.

    Returns:
        [P]; their mean is the pass@k of the set.

    Raises:
        ValueError: numbers that are not whole, c outside 0..n, k below 1 or above an n.
    """
    samples, right = _whole("samples", samples_P), _whole("right", right_P)
    if len(samples) != len(right) and 1 not in (len(samples), len(right)):
        raise ValueError(f"samples={len(samples)}, right={len(right)}: must be as many")
    samples, right = np.broadcast_arrays(samples, right)
    if isinstance(k, bool) or k != int(k) or k < 1:
        raise ValueError(f"k={k}: must be a whole number >= 1")
    if samples.size == 0:
        raise ValueError("samples=[]: must be of at least one problem")
    if samples.min() < k:
        raise ValueError(f"k={k}: must be at most the samples of every problem, one has {samples.min()}")
    outside = (right < 0) | (right > samples)
    if outside.any():
        raise ValueError(f"right={right[outside][0]}: must be from 0 to the {samples[outside][0]} samples")
    share_PK = right[:, None] / (samples[:, None] - np.arange(int(k)))
    with np.errstate(divide="ignore"):
        none_P = np.log1p(-np.minimum(share_PK, 1.0)).sum(1)  # -inf as soon as the wrong ones do not suffice
    return np.asarray(-np.expm1(none_P) + 0.0)  # + 0.0: no -0


def solved_by_turn(turns: Sequence[int | None], last: int) -> list[float]:
    """The share of problems that are solved by each turn: pass@1 after i - 1 rounds of feedback.

    Args:
        turns: the turn (the first is 1) in which each problem was solved, None if in none.
        last: how many turns there were.

    Returns:
        A share for each turn from 1 to `last`; it never falls.

    Raises:
        ValueError: no problem, a turn outside 1..last, `last` below 1.
    """
    if last < 1:
        raise ValueError(f"last={last}: must be at least 1")
    if not turns:
        raise ValueError("turns=[]: must be of at least one problem")
    for turn in turns:
        if turn is not None and not 1 <= turn <= last:
            raise ValueError(f"turns={turn}: must be from 1 to last={last}, or null")
    return [sum(turn is not None and turn <= by for turn in turns) / len(turns) for by in range(1, last + 1)]


def _whole(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = np.atleast_1d(np.asarray(values))
    if array.ndim != 1 or (array.size and not np.array_equal(array, np.floor(array))):
        raise ValueError(f"{name}={array.tolist()}: must be whole numbers, one for each problem")
    return array.astype(np.int64)
