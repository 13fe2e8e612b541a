"""Gaussian bandits with side observations: a play of one arm tells something about others as well.

The setting of Wu, György and Szepesvári (2015, arXiv 1510.08108), as in Atsidakou et al.: "Asymptotically-Optimal
Gaussian Bandits with Side Observations", ICML 2022, arXiv 2505.10698. A play of arm i gives, for every arm j,

    X_ij ~ N(mu_j, sigma_ij^2),     sigma_ij in (0, inf], known; inf: nothing.

The row is the arm that is played, the column the arm that is told about. All that the algorithms need of what was seen
are the plays N_i and, for each arm, its information and its precision-weighted mean,

    I_j = sum_i N_i / sigma_ij^2,
    m_j = (sum of x / sigma_ij^2 over the observations x of j) / I_j   ~ N(mu_j, 1 / I_j).

Sampling works with precisions 1 / sigma^2, which are 0 where there is nothing to see.

Legend: K arms (rows are played, columns told about), R repetitions, D arms that a play tells about at most, B rounds.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from methods.bandits.lower_bound import lower_bound
from methods.dataset import Dataset

Array = NDArray[np.float64]
Arms = NDArray[np.int64]

_FINEST = 1e-6  # standard deviation: of much smaller or larger ones the precisions cannot be summed


@dataclass(frozen=True, kw_only=True)
class BanditConfig:
    """An instance, how long it is played and how often.

    means: mu_K; the best must be unique. kind: of side information, with `sigma`

        standard  each arm tells about itself, with sigma
        full      each arm tells about all, with sigma
        graph     each arm tells about those that `graph` lists for it (arms count from 0), with sigma
        matrix    `sigma` is the matrix sigma_ij, a row for each arm that is played; null: nothing
        random    drawn with `seed` (see `random_instance`): `arms`, `density`, `smallest_gap`, scale `sigma`

    horizon: T. repetitions: R, independent, in one run. constraint: of the lower bound (`lower_bound.py`).
    """

    kind: Literal["standard", "full", "graph", "matrix", "random"] = "standard"
    means: tuple[float, ...] | None = (1.0, 0.5, 0.2)
    sigma: float | tuple[tuple[float | None, ...], ...] = 1.0
    graph: tuple[tuple[NonNegativeInt, ...], ...] | None = None
    arms: Annotated[int, Ge(2)] | None = None
    density: Annotated[float, Ge(0.0), Le(1.0)] = 0.3
    smallest_gap: Annotated[float, Gt(0.0), Lt(1.0)] = 0.2
    seed: NonNegativeInt = 0
    horizon: Annotated[int, Ge(100)] = 20_000
    repetitions: PositiveInt = 100
    constraint: Literal["lp", "joint"] = "lp"

    def __post_init__(self) -> None:
        if isinstance(self.sigma, tuple) != (self.kind == "matrix"):
            wanted, got = ("a matrix", self.sigma) if self.kind == "matrix" else ("a number", "a matrix")
            raise ValueError(f"dataset.sigma: must be {wanted} for kind {self.kind}, got {got}")
        if not isinstance(self.sigma, tuple) and not _FINEST <= self.sigma <= 1 / _FINEST:
            raise ValueError(f"dataset.sigma={self.sigma}: must be a number from {_FINEST} to {1 / _FINEST}")
        for key, kind in (("graph", "graph"), ("arms", "random")):
            if (getattr(self, key) is not None) != (self.kind == kind):
                wanted = "be given for" if self.kind == kind else "be null but for"
                raise ValueError(f"dataset.{key}={getattr(self, key)}: must {wanted} kind {kind}")
        if self.kind == "random":
            if self.means is not None:
                raise ValueError(f"dataset.means={list(self.means)}: must be null for kind random, which draws them")
            arms = self.arms or 0
        else:
            arms = self._check_means()
        if isinstance(self.sigma, tuple):
            self._check_matrix(self.sigma, arms)
        if self.graph is not None:
            self._check_graph(self.graph, arms)
        if self.horizon < 10 * arms:
            raise ValueError(f"dataset.horizon={self.horizon}: must be at least ten times the {arms} arms")

    def _check_means(self) -> int:
        """How many there are."""
        means = self.means
        if means is None or len(means) < 2 or not all(map(math.isfinite, means)):
            raise ValueError(f"dataset.means={means and list(means)}: must be at least two finite numbers")
        best = [arm for arm, mean in enumerate(means) if mean == max(means)]
        if len(best) > 1:
            raise ValueError(
                f"dataset.means={list(means)}: must have one best arm, got arms {' and '.join(map(str, best))}"
            )
        return len(means)

    def _check_matrix(self, matrix: tuple[tuple[float | None, ...], ...], arms: int) -> None:
        widths = [len(row) for row in matrix]
        if widths != [arms] * arms:
            raise ValueError(
                f"dataset.sigma: must be a square matrix of {arms} rows (one for each of dataset.means) and as many "
                f"columns, got {len(widths)} rows of {' and '.join(map(str, sorted(set(widths))))} columns"
            )
        for i, j in itertools.product(range(arms), repeat=2):
            value = matrix[i][j]
            if value is not None and 0 < value < math.inf and not _FINEST <= value <= 1 / _FINEST:
                raise ValueError(f"dataset.sigma[{i}][{j}]={value}: must be from {_FINEST} to {1 / _FINEST}")
            if value is not None and not value > 0:
                raise ValueError(
                    f"dataset.sigma[{i}][{j}]={value}: must be greater than 0, or null where arm {i} tells nothing "
                    f"about arm {j}"
                )
        for j in range(arms):
            if all(row[j] is None or row[j] == math.inf for row in matrix):
                raise ValueError(f"dataset.sigma: some arm must tell about arm {j}, got none in its column")

    def _check_graph(self, graph: tuple[tuple[int, ...], ...], arms: int) -> None:
        if len(graph) != arms or any(j >= arms for told in graph for j in told):
            raise ValueError(
                f"dataset.graph={[list(told) for told in graph]}: must list, for each of {arms} arms, arms from 0 to "
                f"{arms - 1}"
            )
        for j in range(arms):
            if not any(j in told for told in graph):
                raise ValueError(f"dataset.graph={[list(told) for told in graph]}: some arm must tell about arm {j}")


class Bandit(NamedTuple):
    """means_K; precision_KK: 1 / sigma^2, rows are played. lower_bound: C, regret per log T."""

    means_K: Array
    precision_KK: Array
    horizon: int
    repetitions: int
    lower_bound: float

    @property
    def regrets_K(self) -> Array:
        """Delta_K: what a play of each arm costs."""
        gaps_K: Array = self.means_K.max() - self.means_K
        return gaps_K


class GaussianBandit(Dataset):
    """A Gaussian bandit with side observations: standard, full or graph feedback, or any matrix (arXiv 2505.10698)."""

    config: BanditConfig
    type = "bandit"

    def load(self, seed: int) -> Bandit:
        """The instance, which is the same for all seeds, and its lower bound."""
        config = self.config
        if config.kind == "random":
            assert config.arms is not None and not isinstance(config.sigma, tuple)
            random = np.random.default_rng(config.seed)
            means_K, precision_KK = random_instance(
                config.arms, config.density, config.smallest_gap, config.sigma, random
            )
        else:
            means_K, precision_KK = np.array(config.means), precisions(config)
        bound = lower_bound(means_K, precision_KK, config.constraint)
        return Bandit(means_K, precision_KK, config.horizon, config.repetitions, bound.value)


def precisions(config: BanditConfig) -> Array:
    """1 / sigma_ij^2 of an instance that is not random. Returns [K, K], 0 where nothing is seen."""
    if isinstance(config.sigma, tuple):
        sigma_KK = np.array([[math.inf if value is None else value for value in row] for row in config.sigma])
        return 1 / sigma_KK**2
    arms = len(config.means or ())
    seen_KK = np.eye(arms) if config.kind == "standard" else np.zeros((arms, arms))
    if config.kind == "full":
        seen_KK[:] = 1
    for i, told in enumerate(config.graph or ()):
        seen_KK[i, list(told)] = 1
    return seen_KK / config.sigma**2


def random_instance(
    arms: int, density: float, smallest_gap: float, scale: float, random: np.random.Generator
) -> tuple[Array, Array]:
    """A random instance (its distribution is ours): means_K and precision_KK.

    The best arm, a random one, has mean 1, the others 1 less a gap that is uniform on [smallest_gap, 1]. Every arm
    tells about itself, and about each other one with probability `density`, with sigma uniform on [0.5, 2] x `scale`.
    """
    means_K = 1 - random.uniform(smallest_gap, 1, arms)
    means_K[random.integers(arms)] = 1
    seen_KK = (random.random((arms, arms)) < density) | np.eye(arms, dtype=bool)
    return means_K, seen_KK / (scale * random.uniform(0.5, 2, (arms, arms))) ** 2


class Seen(NamedTuple):
    """What repetitions have seen, at one moment or (with B leading) after each of B rounds.

    information_RK: I. weighted_RK: the sums of x / sigma^2.
    """

    information_RK: Array
    weighted_RK: Array

    @property
    def means_RK(self) -> Array:
        """m: the precision-weighted means."""
        means_RK: Array = self.weighted_RK / self.information_RK
        return means_RK


class Feedback:
    """What plays tell: x / sigma^2 = mu / sigma^2 + z / sigma for every arm j of the row, z standard normal."""

    def __init__(self, means_K: Array, precision_KK: Array, repetitions: int) -> None:
        # The columns that a row tells about, filled up with others, to which 0 is added: most matrices are sparse.
        self.told = int((precision_KK > 0).sum(1).max())
        self._columns_KD = np.sort(np.argsort(precision_KK == 0, axis=1, kind="stable")[:, : self.told], axis=1)
        self._gain_KD = np.take_along_axis(precision_KK, self._columns_KD, 1)
        self._drift_KD = np.take_along_axis(precision_KK * means_K, self._columns_KD, 1)
        self._spread_KD = np.sqrt(self._gain_KD)
        self._dense = self.told == len(means_K)
        self._rows_R1 = np.arange(repetitions)[:, None]

    def add(self, seen: Seen, arm_R: Arms, noise_RD: Array) -> None:
        """Add one play of each repetition, in place."""
        gain_RD, told_RD = self._gain_KD.take(arm_R, 0), self._drift_KD.take(arm_R, 0)
        told_RD += self._spread_KD.take(arm_R, 0) * noise_RD
        if self._dense:
            np.add(seen.information_RK, gain_RD, out=seen.information_RK)
            np.add(seen.weighted_RK, told_RD, out=seen.weighted_RK)
            return
        at_RD = self._columns_KD.take(arm_R, 0)
        at_RD += self._rows_R1 * seen.information_RK.shape[1]
        seen.information_RK.reshape(-1)[at_RD] += gain_RD
        seen.weighted_RK.reshape(-1)[at_RD] += told_RD

    def ahead(self, seen: Seen, arm_R: Arms, noise_BRD: Array) -> Seen:
        """What would be seen before and after each of B more plays of the same arms: arrays [B + 1, R, K]."""
        rounds = len(noise_BRD)
        found = Seen(*(np.zeros((rounds + 1, *array.shape)) for array in seen))
        columns_RD = self._columns_KD.take(arm_R, 0)
        found.information_RK[1:, self._rows_R1, columns_RD] = self._gain_KD.take(arm_R, 0)
        told_BRD = self._drift_KD.take(arm_R, 0) + self._spread_KD.take(arm_R, 0) * noise_BRD
        found.weighted_RK[1:, self._rows_R1, columns_RD] = told_BRD
        for now, all_rounds in zip(seen, found, strict=True):
            all_rounds[0] = now
            np.cumsum(all_rounds, axis=0, out=all_rounds)  # adds in the order of the rounds, as `add` does
        return found
