"""Measures of codes: populations whose values are known, scikit-learn and SciPy, limits, what they are blind to."""

import math

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score, r2_score

from evals import latents

N = 5000


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def correlated(rho: float, width: int, seed: int = 0) -> np.ndarray:
    """Every two dimensions have correlation rho."""
    return math.sqrt(1 - rho) * normal(seed, N, width) + math.sqrt(rho) * normal(seed + 1, N, 1)


def squared(seed: int = 0) -> np.ndarray:
    """The second dimension is told by the first, the first not by the second."""
    z = normal(seed, N)
    return np.stack([z, (z**2 - 1) / math.sqrt(2)], 1)


# Latent predictability ---------------------------------------------------------------------------------------

# Codes, and what LightGBM and the MLP reach on 5,000 of them, which a draw moves by 0.02; the R^2 of the populations
# are 0, 0.81, 0.5 (1 and 0) and 0.4.
POPULATIONS = {
    "independent": (normal(0, N, 5), -0.08, -0.01),
    "pair": (correlated(0.9, 2), 0.80, 0.80),
    "square": (squared(), 0.47, 0.50),
    "equicorrelated": (correlated(0.5, 5, seed=4), 0.34, 0.39),
}


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("regressor", ["lgbm", "mlp"])
def test_lps_of_known_populations(name: str, regressor: latents.Regressor) -> None:
    codes, by_trees, by_network = POPULATIONS[name]
    found = latents.latent_predictability(codes, regressor)
    assert found.mean == pytest.approx(by_trees if regressor == "lgbm" else by_network, abs=0.03)
    assert found.mean == pytest.approx(found.r2_D.mean())
    if name == "square" and regressor == "mlp":
        assert found.r2_D == pytest.approx([0, 1], abs=0.03)


@pytest.mark.parametrize(("count", "regressor"), [(10, "lgbm"), (14, "mlp")])
def test_lps_of_the_fewest_codes(count: int, regressor: latents.Regressor) -> None:
    assert math.isfinite(latents.latent_predictability(normal(0, count, 2), regressor).mean)


@pytest.mark.parametrize("shape", ["circle", "turned square"])
def test_lps_is_blind_to_dependence_without_a_conditional_mean(shape: str) -> None:
    random = np.random.default_rng(0)
    if shape == "circle":
        angle = random.uniform(0, 2 * math.pi, N)
        codes = np.stack([np.cos(angle), np.sin(angle)], 1)
    else:
        codes = random.uniform(-1, 1, (N, 2)) @ np.array([[1, 1], [-1, 1]]) / math.sqrt(2)
    assert latents.latent_predictability(codes, "lgbm").mean == pytest.approx(-0.05, abs=0.05)


def test_lps_does_not_depend_on_scale_or_place_and_a_dead_dimension_counts_as_0() -> None:
    codes = correlated(0.9, 2)[:800]
    moved = codes * [1e-3, 40.0] + [5.0, -2.0]
    plain = latents.latent_predictability(codes, "mlp")
    np.testing.assert_allclose(latents.latent_predictability(moved, "mlp").r2_D, plain.r2_D, atol=1e-6)
    dead = np.column_stack([codes, np.zeros(len(codes))])
    found = latents.latent_predictability(dead, "lgbm")
    assert found.r2_D[2] == 0 and found.mean == pytest.approx(found.r2_D[:2].sum() / 3)


def test_r2_is_scikit_learns() -> None:
    y, predicted = normal(0, 50), normal(1, 50)
    assert latents.r2(y, predicted) == pytest.approx(r2_score(y, predicted))
    assert latents.r2(np.ones(5), np.zeros(5)) == 0


# Covariance and reconstruction -------------------------------------------------------------------------------


def test_covariance_ratio_by_hand() -> None:
    z = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]] * 5)
    mixed = z @ np.array([[2.0, 1], [0, 1]])  # covariance in the proportions 4 : 2 : 2
    assert latents.covariance_ratio(z) == math.inf
    assert latents.covariance_ratio(mixed) == pytest.approx((4 + 2) / (2 * 2))


def test_covariance_ratio_of_equal_correlations() -> None:
    assert latents.covariance_ratio(correlated(0.5, 4)) == pytest.approx(4 / (4 * 3 * 0.5), rel=0.05)


def test_nmse_and_its_decibels() -> None:
    x = normal(0, 4, 1, 3, 3)
    assert latents.nmse(x, x) == 0 and latents.decibel(0.0) == -math.inf
    assert latents.nmse(x, np.zeros_like(x)) == pytest.approx(1) and latents.decibel(1.0) == 0
    assert math.isnan(latents.decibel(math.nan))  # not the best there is
    assert latents.nmse(x, 0.9 * x) == pytest.approx(0.01) and latents.decibel(0.01) == pytest.approx(-20)
    assert latents.decibel(0.027) == pytest.approx(-15.7, abs=0.05)  # of the paper's table 5


# Against known factors ---------------------------------------------------------------------------------------


def test_mutual_information_is_scikit_learns_and_of_itself_the_entropy() -> None:
    random = np.random.default_rng(0)
    a = random.integers(0, 5, 400)
    b = (a + random.integers(0, 2, 400)) % 5 - 7
    assert latents.mutual_information(a, b) == pytest.approx(mutual_info_score(a, b))
    assert latents.mutual_information(a, a) == pytest.approx(entropy(np.bincount(a)))
    assert latents.mutual_information(a, np.zeros(400)) == 0


def test_mig_of_codes_that_are_the_factors() -> None:
    """Every pair of values once: factors are independent in the sample as well."""
    factors = np.stack(np.meshgrid(np.arange(8.0), np.arange(4.0)), -1).reshape(-1, 2)
    assert latents.mutual_information_gap(factors, factors, bins=8) == pytest.approx(1)
    in_nats = latents.mutual_information_gap(factors, factors, bins=8, normalised=False)
    assert in_nats == pytest.approx((math.log(8) + math.log(4)) / 2)  # above 1, as some of the paper's
    twice = np.column_stack([factors, factors])  # two dimensions tell the same
    assert latents.mutual_information_gap(twice, factors, bins=8) == pytest.approx(0)


def test_sap_is_the_gap_of_squared_correlations() -> None:
    codes, factors = normal(0, 300, 3), normal(1, 300, 2) + normal(0, 300, 3)[:, :2]
    squares = np.corrcoef(codes, factors, rowvar=False)[:3, 3:] ** 2
    best = np.sort(squares, axis=0)
    found = latents.separated_attribute_predictability(codes, factors)
    assert found == pytest.approx((best[-1] - best[-2]).mean())
    dead = np.column_stack([codes, np.full(300, 2.0)])
    assert latents.separated_attribute_predictability(dead, factors) == pytest.approx(found)


def test_dci_of_importances_by_hand() -> None:
    """Two dimensions, one each for a factor; a third that tells both equally and matters as much as both together."""
    found = latents._dci_of(np.array([[1.0, 0], [0, 1], [1, 1]]))
    assert found[0] == pytest.approx(0.5)  # 1/4 + 1/4, and nothing of the half that tells both
    assert found[1] == pytest.approx(1 - math.log(2) / math.log(3))
    assert latents._dci_of(np.zeros((3, 2))) == (0, 0)
    assert latents._dci_of(np.eye(3)) == pytest.approx((1, 1))


def test_dci_of_codes_that_are_the_factors_or_turned() -> None:
    factors = np.random.default_rng(0).uniform(-1, 1, (600, 2))
    plain = latents.dci(factors, factors, trees=20)
    turned = latents.dci(factors @ np.array([[1, 1], [-1, 1]]) / math.sqrt(2), factors, trees=20)
    assert min(plain.disentanglement, plain.completeness, plain.informativeness) > 0.97
    assert turned.disentanglement < 0.2 and turned.completeness < 0.2 and turned.informativeness > 0.9


CODES = normal(0, 40, 3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: latents.latent_predictability(CODES[:, :1]), "codes must be at least 10 of at least two dimensions"),
        (lambda: latents.latent_predictability(CODES[:9]), "codes must be at least 10 of at least two dimensions"),
        (lambda: latents.latent_predictability(CODES, "forest"), "regressor=forest: must be lgbm or mlp"),
        (lambda: latents.latent_predictability(CODES, held_out=1.0), "held_out=1.0: must be above 0 and below 1"),
        (
            lambda: latents.latent_predictability(CODES, held_out=0.99),
            "held_out=0.99: must leave at least 2 codes to fit, got 0 of 40",
        ),
        (
            lambda: latents.latent_predictability(CODES[:13], "mlp"),
            "held_out=0.2: must leave at least 11 codes to fit, got 10 of 13",
        ),
        (lambda: latents.dci(CODES, CODES, held_out=0.0), "held_out=0.0: must be above 0 and below 1"),
        (lambda: latents.dci(CODES, CODES, held_out=0.99), "held_out=0.99: must leave at least 2 codes to fit"),
        (lambda: latents.covariance_ratio(CODES * math.nan), "codes must be finite numbers"),
        (lambda: latents.nmse([1.0], [1.0, 2.0]), "reconstruction must have the shape of x"),
        (lambda: latents.nmse([0.0], [1.0]), "x must not be 0 everywhere"),
        (lambda: latents.mutual_information_gap(CODES, CODES[:9]), "factors must be a row for each of 40 codes"),
        (lambda: latents.mutual_information_gap(CODES, CODES, bins=1), "bins=1: must be at least 2"),
        (lambda: latents.dci(CODES, CODES[:, :1]), "factors must be at least two, got 1"),
        (
            lambda: latents.separated_attribute_predictability(CODES, np.column_stack([CODES, np.ones(40)])),
            "factors must vary, got column 3 always the same",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
