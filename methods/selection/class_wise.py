"""Selection within each class: as many points of every class, by the labels as they are, wrong ones included.

The authors' code of GM Matching (anishacharya/GM-Matching) takes k // classes of each and drops the rest. Here exactly
k are taken: what is left over, and what a small class cannot give, goes to the others.

Legend: N points, C classes, M members of a class.
"""

from collections.abc import Callable

import numpy as np

from methods.selection.points import Indices, check_count


def quotas(sizes_C: Indices, k: int) -> Indices:
    """How many of k to take of each class, by the sizes of the classes: as equal as these allow. Returns [C].

    Raises:
        ValueError: k is more than there are, or less than one for each class that has points.
    """
    check_count(int(sizes_C.sum()), k)
    classes = int((sizes_C > 0).sum())
    if k < classes:
        raise ValueError(f"k={k}: must be at least one for each of the {classes} classes")
    # The largest equal share that does not exceed k, then one more for the first classes that have one.
    share = max(each for each in range(k // classes, int(sizes_C.max()) + 1) if np.minimum(sizes_C, each).sum() <= k)
    given_C = np.minimum(sizes_C, share)
    more = np.flatnonzero(sizes_C > share)[: k - int(given_C.sum())]
    given_C[more] += 1
    return given_C


def select(labels_N: Indices, k: int, within: Callable[[Indices, int], Indices]) -> Indices:
    """k points, of each class its quota. Returns [k], class after class.

    Args:
        within: from the members of a class [M] and a number to positions among the members.

    Raises:
        ValueError: `quotas`'.
    """
    quota_C = quotas(np.bincount(labels_N), k)
    picks = []
    for label in np.flatnonzero(quota_C):
        members_M = np.flatnonzero(labels_N == label)
        picks.append(members_M[within(members_M, int(quota_C[label]))])
    return np.concatenate(picks)
