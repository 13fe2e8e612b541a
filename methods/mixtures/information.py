"""The missing information matrix, which says how fast EM is near a point (arXiv 2411.06056).

    M(theta) = I_{x,z,y}^{-1} I_{z | x, y}

The first is the information of the complete data, the Hessian of the mirror map; the second that of the hidden expert
once x and y are seen. L is alpha-strongly convex relative to A on a convex set if and only if the largest eigenvalue of
M is at most 1 - alpha there, and then L(theta_T) - L* <= (1 - alpha)^T (L(theta_1) - L*).

Legend: V parameters, those of w before those of beta.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

Array = NDArray[np.float64]


def missing_information(complete_VV: Array, hidden_VV: Array) -> Array:
    """M [V, V].

    Raises:
        ValueError: the complete information is not invertible.
    """
    try:
        return np.asarray(np.linalg.solve(complete_VV, hidden_VV))
    except np.linalg.LinAlgError as error:
        raise ValueError(_SINGULAR) from error


def largest_eigenvalue(complete_VV: Array, hidden_VV: Array) -> float:
    """That of M, of the symmetric pencil: real, and between 0 and 1 where L is convex.

    Raises:
        ValueError: the complete information is not invertible.
    """
    try:
        return float(eigh(hidden_VV, complete_VV, eigvals_only=True)[-1])
    except np.linalg.LinAlgError as error:
        raise ValueError(_SINGULAR) from error


_SINGULAR = "the complete information must be invertible, got a singular matrix: more points than features are needed"
