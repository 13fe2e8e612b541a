"""Uniform selection: k points at random, the first of a random permutation, as in the authors' code of GM Matching.

It converges to the mean with an error of O(1 / sqrt(k)). Legend: N points, D dimensions.
"""

from dataclasses import dataclass

import numpy as np

from methods.selection.base import Selector, SelectorConfig
from methods.selection.points import Array, Indices, check_count
from methods.selection.proxy import Labelled


def select(count: int, k: int, random: np.random.Generator) -> Indices:
    """k of `count` points at random. Returns [k].

    Raises:
        ValueError: k is not from 1 to `count`.
    """
    check_count(count, k)
    return random.permutation(count)[:k]


@dataclass(frozen=True, kw_only=True)
class UniformConfig(SelectorConfig):
    """Nothing of its own."""


class Uniform(Selector):
    """Random points, which every selector must beat."""

    config: UniformConfig
    blind = True

    def see(self, images: Labelled, seed: int) -> Array:
        """Nothing of them but how many there are: zeros [N]."""
        return np.zeros(len(images.labels_N))

    def select(self, seen_N: Array, k: int, random: np.random.Generator) -> Indices:
        """Any k."""
        return select(len(seen_N), k, random)
