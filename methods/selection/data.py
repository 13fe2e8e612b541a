"""Points of which some are bad, and it is known which: what selectors are measured on without a network.

Legend: N points, D dimensions.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge, Le, Lt
from numpy.typing import NDArray
from pydantic import PositiveInt

from methods.dataset import Dataset
from methods.selection.points import Array

_LARGEST = 1e98  # with noise and all of them added up, points stay below what selectors take
Length = Annotated[float, Ge(0.0), Le(_LARGEST)]


class Features(NamedTuple):
    """points_ND; is_bad_N: which of them are contaminated."""

    points_ND: Array
    is_bad_N: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ContaminatedGaussianConfig:
    """n points in so many dimensions: standard normal, around `offset` on the first axis.

    psi: share of the points, round(psi n) of them, that are bad: moved by `radius` along the last axis, and with normal
    noise of standard deviation `noise` added to each (feature noise).
    """

    n: PositiveInt = 1000
    dimensions: PositiveInt = 2
    psi: Annotated[float, Ge(0.0), Lt(1.0)] = 0.4
    radius: Length = 10.0
    noise: Length = 0.0
    offset: Annotated[float, Ge(-_LARGEST), Le(_LARGEST)] = 0.0

    def __post_init__(self) -> None:
        if round(self.psi * self.n) >= self.n:
            raise ValueError(f"dataset.psi={self.psi}: must leave at least one of {self.n} points clean")


class ContaminatedGaussian(Dataset):
    """A Gaussian of which a share was moved far away or made noisy."""

    config: ContaminatedGaussianConfig
    type = "features"

    def load(self, seed: int) -> Features:
        """Draw the points; the bad ones stand anywhere among them."""
        config, random = self.config, np.random.default_rng([seed, 5])
        points_ND = random.standard_normal((config.n, config.dimensions))
        is_bad_N = np.zeros(config.n, dtype=bool)
        is_bad_N[random.permutation(config.n)[: round(config.psi * config.n)]] = True
        points_ND[:, 0] += config.offset
        points_ND[is_bad_N, -1] += config.radius
        points_ND[is_bad_N] += config.noise * random.standard_normal((int(is_bad_N.sum()), config.dimensions))
        return Features(points_ND, is_bad_N)
