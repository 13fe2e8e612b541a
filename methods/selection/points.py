"""What every selector asks of its points: finite numbers of which squares are finite too, and enough of them.

Legend: N points, D dimensions.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

LARGEST = 1e100  # sums of squares, and sums of these, stay finite
_ROWS = 1024  # of a block: differences of so many points stay in the processor's cache


def checked(points_ND: NDArray[np.generic], k: int) -> Array:
    """The points as finite float64 [N, D], of which k are to be chosen.

    Raises:
        ValueError: they are no table, a number is not finite or too large, or k is not from 1 to N.
    """
    found_ND: Array = np.asarray(points_ND, dtype=np.float64)
    if found_ND.ndim != 2:
        raise ValueError(f"points: must have one row for each point, got shape {found_ND.shape}")
    check_count(len(found_ND), k)
    # Of a table with nan, smallest and largest are nan, which is within no bounds.
    if not -LARGEST <= found_ND.min(initial=0.0) <= found_ND.max(initial=0.0) <= LARGEST:
        row, column = np.argwhere(~(np.abs(found_ND) <= LARGEST))[0]
        value = found_ND[row, column]
        rule = f"at most {LARGEST:g} in size" if np.isfinite(value) else "finite"
        raise ValueError(f"points: must be {rule}, got {value} in row {row}")
    return found_ND


def check_count(count: int, k: int) -> None:
    """Raises ValueError unless k of `count` points can be chosen."""
    if not 1 <= k <= count:
        raise ValueError(f"k={k}: must be from 1 to {count}, the number of points")


def distances(points_ND: Array, centre_D: Array) -> Array:
    """Euclidean distances to one point, from differences: exact for near ones. Returns [N]."""
    squares = np.empty(len(points_ND))
    for start in range(0, len(points_ND), _ROWS):
        away = points_ND[start : start + _ROWS] - centre_D
        squares[start : start + _ROWS] = np.einsum("nd,nd->n", away, away)
    return np.sqrt(squares)


def normalised(points_ND: Array) -> Array:
    """The points scaled to length 1; the origin stays where it is. Returns [N, D]."""
    lengths_N = np.linalg.norm(points_ND, axis=-1, keepdims=True)
    return points_ND / np.where(lengths_N > 0, lengths_N, 1.0)
