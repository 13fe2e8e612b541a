"""Best of n: what n draws and a reward make of a distribution, its exact KL, the usual formula and an estimator.

Beirami et al.: "Theoretical guarantees on the best-of-n alignment policy", 2024, arXiv 2401.01879. Of n independent
draws from p the one with the highest reward is kept. With F(y) the probability of a reward of at most r(y), F^-(y) that
of a lower one, the one kept is y with probability

    pi_n(y) = F(y)^n - F^-(y)^n,

and outcomes of equal reward share theirs as p does. What is usually reported as KL(pi_n || p) is only an upper bound,

    KL(pi_n || p) <= log n - (n - 1)/n,

which is tight where no outcome is likely and loose where draws repeat. The paper's estimator needs only e = p(y), the
probability of the whole outcome that was kept:

    (1 - e)^n [log n + (n - 1) log(1 - e) - (n - 1)/n] + (1 - (1 - e)^n) log((1 - (1 - e)^n) / e)

Its mean is near KL(pi_n || p) and, the paper conjectures, not below. All divergences are in nats.

Legend: L outcomes, G groups of equal reward, M outcomes that were kept.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Below this the estimator is the bound to all digits; e itself is soon 0 in fp64.
_SMALLEST_LOGP = -600.0
_TINY = float(np.finfo(float).tiny)


class Outcomes(NamedTuple):
    """Outcomes grouped by reward, in its order.

    group_L: the group of each outcome. mass_G: probability of a group. up_to_G: F, that of a reward up to the group's.
    """

    p_L: Floats
    group_L: NDArray[np.int64]
    mass_G: Floats
    up_to_G: Floats

    @property
    def below_G(self) -> Floats:
        """F^-."""
        return np.concatenate([[0.0], self.up_to_G[:-1]])


def outcomes(p_L: ArrayLike, rewards_L: ArrayLike) -> Outcomes:
    """Outcomes with probabilities and rewards, of which only the order matters; equal rewards are a tie.

    Raises:
        ValueError: not a reward for each probability, probabilities that do not sum to 1, a reward that is no number.
    """
    p, rewards = np.asarray(p_L, float), np.asarray(rewards_L, float)
    if p.ndim != 1 or p.shape != rewards.shape or not len(p):
        raise ValueError(f"p.shape={p.shape}, rewards.shape={rewards.shape}: must be the same, one for each outcome")
    if not p.min() >= 0:
        raise ValueError(f"p={p.min()}: must be probabilities >= 0")
    if abs(p.sum() - 1) > 1e-6:
        raise ValueError(f"p.sum()={p.sum()}: must be 1")
    if np.isnan(rewards).any():
        raise ValueError("rewards=nan: must be numbers")
    held = p > 0  # what never is drawn is in no group of its own
    values, inverse = np.unique(rewards[held], return_inverse=True)
    group = np.zeros(len(p), np.int64)
    group[held] = inverse
    mass = np.bincount(inverse, p[held], len(values))
    up_to = np.minimum(np.cumsum(mass) / mass.sum(), 1.0)
    up_to[-1] = 1.0
    return Outcomes(p / p.sum(), group, mass / mass.sum(), up_to)


def pmf(of: Outcomes, n: int) -> Floats:
    """pi_n, the probability that each outcome is the one that is kept. Returns [L]."""
    return np.asarray(np.exp(_group_logs(of, n)[of.group_L]) / of.mass_G[of.group_L] * of.p_L)


def kl(of: Outcomes, n: int) -> float:
    """KL(pi_n || p), exactly; never decreases with n and ends at log(1/p) of the best group."""
    logs_G = _group_logs(of, n)
    return max(0.0, float(np.exp(logs_G) @ (logs_G - np.log(of.mass_G))))


def kl_bound(n: int) -> float:
    """log n - (n - 1)/n, which KL(pi_n || p) is for a continuous reward and never exceeds."""
    _check(n)
    return math.log(n) - (n - 1) / n


def kl_gap_bound(of: Outcomes, n: int) -> float:
    """How far KL(pi_n || p) can be below the bound: 2 n (n - 1) sum_y p(y)^2 (theorem 3.4, for different rewards)."""
    _check(n)
    return 2 * n * (n - 1) * float(of.p_L @ of.p_L)


def kl_estimate(logps_M: ArrayLike, n: int) -> Floats:
    """The estimate of KL(pi_n || p) that each kept outcome gives; their mean is the estimator.

    Args:
        logps_M: log p(y) of the whole outcome, not of a token.

    Returns:
        [M], each from 0 to the bound.

    Raises:
        ValueError: a log-probability above 0 or NaN; n below 1.
    """
    _check(n)
    logps = np.asarray(logps_M, float)
    if not (logps <= 0).all():
        raise ValueError(f"logps={logps.max()}: must be log-probabilities, at most 0")
    inner = np.clip(logps, _SMALLEST_LOGP, -_TINY)
    half = -math.log(2)  # on either side of it the formula that keeps its digits
    # log(1 - e), log (1 - e)^n and 1 - (1 - e)^n
    log_rest = np.where(inner > half, np.log(-np.expm1(inner)), np.log1p(-np.exp(np.minimum(inner, half))))
    log_none = n * log_rest
    some = -np.expm1(log_none)
    first = np.exp(log_none) * (math.log(n) + (n - 1) * log_rest - (n - 1) / n)
    estimates = first + some * (np.log(some) - inner)
    estimates = np.where(logps > -_TINY, 0.0, np.where(logps < _SMALLEST_LOGP, kl_bound(n), estimates))
    return np.clip(estimates, 0.0, kl_bound(n))


def expected_kl_estimate(of: Outcomes, n: int) -> float:
    """The estimator's expectation, over the outcome that is kept."""
    held = of.p_L > 0
    return float(pmf(of, n)[held] @ kl_estimate(np.minimum(np.log(of.p_L[held]), 0.0), n))


def win_rate(of: Outcomes, n: int) -> float:
    """How often the best of n has a higher reward than one more draw from p; a tie counts 1/2."""
    return float(np.exp(_group_logs(of, n)) @ (of.below_G + of.mass_G / 2))


def win_rate_bound(n: int) -> float:
    """n / (n + 1), which the win rate is for a continuous reward and never exceeds (theorem 5.3)."""
    _check(n)
    return n / (n + 1)


def win_rate_gap_bound(of: Outcomes, n: int) -> float:
    """How far the win rate can be below its bound: (n - 1)/2 sum_y p(y)^2 (theorem 5.4, for different rewards)."""
    _check(n)
    return (n - 1) / 2 * float(of.p_L @ of.p_L)


def keep_best(of: Outcomes, n: int, draws: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw n outcomes and keep the best, `draws` times; of equal ones the first drawn. Returns their numbers [M]."""
    _check(n)
    drawn_MN = random.choice(len(of.p_L), size=(draws, n), p=of.p_L)
    return np.asarray(drawn_MN[np.arange(draws), of.group_L[drawn_MN].argmax(1)])


def _group_logs(of: Outcomes, n: int) -> Floats:
    """log(F^n - F^-^n) of every group, as n log F + log(1 - (1 - mass/F)^n): also where the two nearly agree. [G]."""
    _check(n)
    share_G = np.minimum(of.mass_G / of.up_to_G, 1.0)
    share_G[0] = 1.0  # nothing is below the worst
    with np.errstate(divide="ignore"):
        return np.asarray(n * np.log(of.up_to_G) + np.log(-np.expm1(n * np.log1p(-share_G))))


def _check(n: int) -> None:
    if n < 1:
        raise ValueError(f"n={n}: must be at least 1")
