"""How independent and how good the codes of an autoencoder are.

Without labels, as in Fruytier et al.: "Sculpting Latent Spaces With MMD: Disentanglement With Programmable Priors",
2025, arXiv 2510.11953:

    latent predictability (LPS)   mean over dimensions i of R^2 on held-out codes, z_i predicted from all other z_j;
                                  lower is better, 0 where nothing can be predicted, and a little below by chance
    covariance ratio              sum_i |C_ii| / sum_{i != j} |C_ij|; higher is better
    NMSE                          sum ||x - x^||^2 / sum ||x||^2, in dB 10 log10 of it; lower is better

LPS sees conditional means alone: codes on a circle depend on each other and score 0. Of a dimension with nearly no
variance R^2 says little, so variances are to be reported beside it.

Against known factors v_k, all higher when better:

    MIG     mean over factors of the gap between the two largest I(z_i; v_k), over H(v_k), or in nats (Chen et al.,
            2018, arXiv 1802.04942); the paper above reports values above 1, so its MIG is not the one in [0, 1]
    SAP     mean over factors of the gap between the two largest squared correlations of z_i and v_k (Kumar et al.,
            2018, arXiv 1711.00848, factors that are numbers)
    DCI     disentanglement, completeness and informativeness from the importances of a random forest (Eastwood and
            Williams, 2018)

Legend: N codes, D dimensions, K factors, B bins.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Regressor = Literal["lgbm", "mlp"]

_HIDDEN = (64, 64)  # of the MLP, a guess
# Codes that a regressor is fitted to, at least: the MLP leaves out a tenth of them, which must be two or more.
_LEAST = {"lgbm": 2, "mlp": 11}
_TREES = 100


@dataclass(frozen=True)
class Predictability:
    """R^2 of every dimension on held-out codes, and their mean, the LPS."""

    mean: float
    r2_D: Floats


def latent_predictability(
    codes_ND: ArrayLike, regressor: Regressor = "lgbm", *, held_out: float = 0.2, seed: int = 0
) -> Predictability:
    """The latent predictability score.

    Args:
        regressor: lgbm, LightGBM with its defaults, or mlp, scikit-learn's with two layers of 64 on standardised codes,
            which leaves out a tenth of those it is fitted to and stops once it gets no better at them
            (`early_stopping`), after 200 passes at the latest; all of this is a guess.
        held_out: share of the codes on which R^2 is measured (a guess).
        seed: of the split and the regressor.

    Raises:
        ValueError: an unknown regressor, fewer than 10 codes or 2 dimensions, a share that leaves fewer than 2 to fit
            (for mlp 11, so that 14 codes are needed at the default share), codes that are no finite numbers.
    """
    codes = _codes(codes_ND)
    if regressor not in _LEAST:
        raise ValueError(f"regressor={regressor}: must be lgbm or mlp")
    test, train = _split(len(codes), held_out, _LEAST[regressor], seed)
    scale_D = codes[train].std(0)
    standard = (codes - codes[train].mean(0)) / np.where(scale_D > 0, scale_D, 1.0)
    r2_D = np.zeros(codes.shape[1])
    for i in range(codes.shape[1]):
        others, target = np.delete(standard, i, axis=1), standard[:, i]
        if scale_D[i] > 0:  # where nothing varies nothing is to be predicted
            r2_D[i] = r2(target[test], _fitted(regressor, others[train], target[train], seed).predict(others[test]))
    return Predictability(float(r2_D.mean()), r2_D)


def r2(y_N: ArrayLike, predicted_N: ArrayLike) -> float:
    """1 - sum (y - predicted)^2 / sum (y - mean y)^2; 0 for y that does not vary."""
    y, predicted = np.asarray(y_N, float), np.asarray(predicted_N, float)
    spread = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - predicted) ** 2).sum()) / spread if spread > 0 else 0.0


def covariance_ratio(codes_ND: ArrayLike) -> float:
    """Variances over covariances, in absolute values; infinite where the codes are not correlated at all.

    Raises:
        ValueError: fewer than 10 codes or 2 dimensions, codes that are no finite numbers.
    """
    covariance = np.abs(np.cov(_codes(codes_ND), rowvar=False))
    on = float(np.trace(covariance))
    off = float(covariance.sum()) - on
    return on / off if off > 0 else float("inf")


def nmse(x: ArrayLike, reconstruction: ArrayLike) -> float:
    """sum ||x - x^||^2 / sum ||x||^2 over everything.

    Raises:
        ValueError: shapes that differ, or x that is 0 everywhere.
    """
    x, found = np.asarray(x, float), np.asarray(reconstruction, float)
    if x.shape != found.shape:
        raise ValueError(f"reconstruction must have the shape of x, {x.shape}, got {found.shape}")
    power = float((x**2).sum())
    if power == 0:
        raise ValueError("x must not be 0 everywhere")
    return float(((x - found) ** 2).sum()) / power


def decibel(ratio: float) -> float:
    """10 log10 of a ratio of powers; -inf of 0."""
    return float("-inf") if ratio == 0 else float(10 * np.log10(ratio))


# With known factors ------------------------------------------------------------------------------------------


def mutual_information_gap(
    codes_ND: ArrayLike, factors_NK: ArrayLike, *, bins: int = 20, normalised: bool = True
) -> float:
    """MIG, over the entropy of each factor, in [0, 1], or in nats.

    Codes, and factors of more different values than bins, are cut into bins of equal width (20 are customary).

    Raises:
        ValueError: codes and factors that do not fit together, fewer than two bins, a factor that is always the same.
    """
    codes, factors = _with_factors(codes_ND, factors_NK)
    if bins < 2:
        raise ValueError(f"bins={bins}: must be at least 2")
    binned = [_cut(code, bins) for code in codes.T]
    gaps = []
    for factor in factors.T:
        values = np.unique(factor, return_inverse=True)[1] if len(np.unique(factor)) <= bins else _cut(factor, bins)
        information = sorted(mutual_information(code, values) for code in binned)
        gap = information[-1] - information[-2]
        gaps.append(gap / mutual_information(values, values) if normalised else gap)
    return float(np.mean(gaps))


def mutual_information(a_N: ArrayLike, b_N: ArrayLike) -> float:
    """I(a; b) of two columns of whole numbers, in nats, from how often each pair is met; I(a; a) is the entropy."""
    a, b = (np.unique(column, return_inverse=True)[1] for column in (a_N, b_N))
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    held = joint > 0
    return max(0.0, float((joint[held] * np.log(joint[held] / apart[held])).sum()))


def separated_attribute_predictability(codes_ND: ArrayLike, factors_NK: ArrayLike) -> float:
    """SAP, in [0, 1]; a dimension that does not vary predicts nothing.

    Raises:
        ValueError: codes and factors that do not fit together, a factor that is always the same.
    """
    codes, factors = _with_factors(codes_ND, factors_NK)
    centred, about = codes - codes.mean(0), factors - factors.mean(0)
    scale_DK = (centred**2).sum(0)[:, None] * (about**2).sum(0)
    scores_DK = np.divide((centred.T @ about) ** 2, scale_DK, out=np.zeros_like(scale_DK), where=scale_DK > 0)
    best = np.sort(scores_DK, axis=0)
    return float((best[-1] - best[-2]).mean())


@dataclass(frozen=True)
class Dci:
    """What a random forest says of codes and factors.

    disentanglement: whether a dimension tells one factor alone. completeness: whether a factor is told by one dimension
    alone. Both in [0, 1]. informativeness: mean R^2 with which held-out factors are told.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def dci(
    codes_ND: ArrayLike, factors_NK: ArrayLike, *, held_out: float = 0.2, trees: int = _TREES, seed: int = 0
) -> Dci:
    """DCI from a random forest for each factor.

    Raises:
        ValueError: codes and factors that do not fit together, a single factor, a factor that is always the same, a
            share held out that leaves fewer than two codes to fit.
    """
    codes, factors = _with_factors(codes_ND, factors_NK)
    if factors.shape[1] < 2:
        raise ValueError("factors must be at least two, got 1")
    from sklearn.ensemble import RandomForestRegressor

    test, train = _split(len(codes), held_out, 2, seed)
    importance_DK = np.zeros((codes.shape[1], factors.shape[1]))
    told = []
    for k, factor in enumerate(factors.T):
        forest = RandomForestRegressor(trees, random_state=seed).fit(codes[train], factor[train])
        importance_DK[:, k] = forest.feature_importances_
        told.append(r2(factor[test], forest.predict(codes[test])))
    return Dci(*_dci_of(importance_DK), informativeness=float(np.mean(told)))


def _dci_of(importance_DK: Floats) -> tuple[float, float]:
    """1 - entropy of each row, weighted by what it matters, and the same of the columns."""
    total = importance_DK.sum()
    if total == 0:  # the codes do not vary
        return 0.0, 0.0
    rows = 1 - _entropies(importance_DK) / np.log(importance_DK.shape[1])
    columns = 1 - _entropies(importance_DK.T) / np.log(importance_DK.shape[0])
    return float(rows @ importance_DK.sum(1) / total), float(columns @ importance_DK.sum(0) / total)


def _entropies(weights: Floats) -> Floats:
    """Entropy of each row, scaled to sum 1, in nats; the largest of a row that is 0."""
    sums = weights.sum(1, keepdims=True)
    p = np.where(sums > 0, weights / np.where(sums > 0, sums, 1), 1 / weights.shape[1])
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1))).sum(1))


def _cut(column_N: Floats, bins: int) -> NDArray[np.int64]:
    """The number of each value's bin, of bins of equal width from the smallest value to the largest."""
    return np.asarray(np.digitize(column_N, np.histogram_bin_edges(column_N, bins)[1:-1]))


def _split(count: int, held_out: float, least: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which codes are held out, at least two, and which are fitted to."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out}: must be above 0 and below 1")
    order = np.random.default_rng(seed).permutation(count)
    test, train = np.split(order, [max(2, round(held_out * count))])
    if len(train) < least:
        raise ValueError(f"held_out={held_out}: must leave at least {least} codes to fit, got {len(train)} of {count}")
    return test, train


def _fitted(regressor: Regressor, x: Floats, y: Floats, seed: int) -> Any:
    """A regressor, fitted; one thread, so that the result does not depend on how many there are."""
    import warnings

    if regressor == "mlp":
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # its 200 passes are its default
            return MLPRegressor(hidden_layer_sizes=_HIDDEN, early_stopping=True, random_state=seed).fit(x, y)
    from lightgbm import LGBMRegressor

    return LGBMRegressor(random_state=seed, n_jobs=1, verbose=-1).fit(x, y)


def _codes(codes_ND: ArrayLike) -> Floats:
    codes = np.asarray(codes_ND, float)
    if codes.ndim != 2 or codes.shape[1] < 2 or len(codes) < 10:
        raise ValueError(f"codes must be at least 10 of at least two dimensions, got shape {codes.shape}")
    if not np.isfinite(codes).all():
        raise ValueError("codes must be finite numbers")
    return codes


def _with_factors(codes_ND: ArrayLike, factors_NK: ArrayLike) -> tuple[Floats, Floats]:
    codes, factors = _codes(codes_ND), np.asarray(factors_NK, float)
    if factors.ndim != 2 or len(factors) != len(codes) or not factors.shape[1]:
        raise ValueError(f"factors must be a row for each of {len(codes)} codes, got shape {factors.shape}")
    if not (np.ptp(factors, axis=0) > 0).all():
        raise ValueError(f"factors must vary, got column {int(np.argmin(np.ptp(factors, axis=0)))} always the same")
    return codes, factors
