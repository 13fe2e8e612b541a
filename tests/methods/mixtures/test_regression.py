"""The regressions of an M-step, against scikit-learn and against one another; what is singular, separable or steep."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LinearRegression, LogisticRegression

from methods.mixtures.regression import Solver, softmax_regression, weighted_least_squares


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)


def test_least_squares_is_that_of_scikit_learn(random: np.random.Generator) -> None:
    x, y, weight = random.standard_normal((40, 5)), random.standard_normal(40), random.random(40)
    other = LinearRegression(fit_intercept=False).fit(x, y, sample_weight=weight)
    np.testing.assert_allclose(weighted_least_squares(x, y, weight), other.coef_, atol=1e-12)


def test_points_without_weight_do_not_count(random: np.random.Generator) -> None:
    x, y = random.standard_normal((40, 5)), random.standard_normal(40)
    weight = np.repeat([1.0, 0.0], 20)
    np.testing.assert_allclose(
        weighted_least_squares(x, y, weight), weighted_least_squares(x[:20], y[:20], np.ones(20)), atol=1e-12
    )


@pytest.mark.parametrize(
    ("what", "rank"), [("a column twice", 4), ("too few points", 3), ("too few with weight", 2), ("no weight", 0)]
)
def test_least_squares_without_a_unique_solution_is_refused(random: np.random.Generator, what: str, rank: int) -> None:
    x, weight = random.standard_normal((40, 5)), np.ones(40)
    if what == "a column twice":
        x[:, 4] = x[:, 0]
    elif what == "too few points":
        x, weight = x[:3], weight[:3]
    else:
        weight[rank:] = 0
    with pytest.raises(
        ValueError, match=f"the least squares of expert 1 must be invertible, got features of rank {rank} "
    ):
        weighted_least_squares(x, np.ones(len(x)), weight, "expert 1")


@pytest.mark.parametrize("name", ["newton", "lbfgs"])
@pytest.mark.parametrize("classes", [2, 4])
def test_softmax_regression_is_that_of_scikit_learn(random: np.random.Generator, name: str, classes: int) -> None:
    """Soft labels there: each point once for every class, weighted by its share."""
    x, weight = random.standard_normal((80, 3)), random.random(80)
    label = random.dirichlet(np.ones(classes), 80)
    solver = Solver(name, tolerance=1e-9, ridge=0.01)  # type: ignore[arg-type]
    found, evaluations = softmax_regression(x, label, weight, np.zeros((classes, 3)), solver)
    # sum weight loss + ||W||^2 / (2 C), against mean weight loss + ridge ||W||^2 / 2.
    other = LogisticRegression(C=1 / (0.01 * 80), fit_intercept=False, tol=1e-10, max_iter=10_000).fit(
        np.repeat(x, classes, 0), np.tile(np.arange(classes), 80), sample_weight=(weight[:, None] * label).ravel()
    )
    if classes == 2:  # scikit-learn has one row for two classes, whose ridge differs: a row of each is half of it
        other.set_params(C=2 / (0.01 * 80)).fit(
            np.repeat(x, 2, 0), np.tile(np.arange(2), 80), sample_weight=(weight[:, None] * label).ravel()
        )
        np.testing.assert_allclose(found[1] - found[0], other.coef_[0], atol=1e-5)
        np.testing.assert_allclose(found[0], -found[1], atol=1e-7)
    else:
        np.testing.assert_allclose(found, other.coef_, atol=1e-5)
    assert evaluations > 1


def test_a_row_less_is_the_same_regression(random: np.random.Generator) -> None:
    x, label = random.standard_normal((50, 3)), random.dirichlet(np.ones(3), 50)
    solver = Solver(ridge=0.0)
    full, _ = softmax_regression(x, label, np.ones(50), np.zeros((3, 3)), solver)
    less, _ = softmax_regression(x, label, np.ones(50), np.zeros((2, 3)), solver)
    np.testing.assert_allclose(full[:2] - full[2], less, atol=1e-8)


def test_the_two_searches_agree(random: np.random.Generator) -> None:
    x, label = random.standard_normal((50, 3)), random.dirichlet(np.ones(3), 50)
    newton, few = softmax_regression(x, label, np.ones(50), np.zeros((2, 3)), Solver())
    lbfgs, many = softmax_regression(x, label, np.ones(50), np.zeros((2, 3)), Solver("lbfgs"))
    np.testing.assert_allclose(newton, lbfgs, atol=1e-8)
    assert few < many


def test_newton_without_a_line_search_diverges_where_ours_does_not(random: np.random.Generator) -> None:
    """A steep gate, searched from a steep start on the wrong side: full steps leave every bound."""
    x = random.standard_normal((200, 2))
    label = expit(x @ np.array([4.0, 0.0]))
    start = np.array([0.0, 8.0])
    plain = start
    for _ in range(30):
        s = expit(x @ plain)
        hessian = (x * (s * (1 - s))[:, None]).T @ x / 200 + 1e-8 * np.eye(2)
        plain = plain - np.linalg.solve(hessian, (s - label) @ x / 200)
    assert np.linalg.norm(plain) > 1e3
    found, _ = softmax_regression(x, np.stack([label, 1 - label], 1), np.ones(200), start[None], Solver())
    np.testing.assert_allclose(found[0], [4, 0], atol=1e-4)


def test_separable_labels_stay_finite(random: np.random.Generator) -> None:
    x = random.standard_normal((100, 2))
    hard = (x[:, 0] > 0).astype(float)
    for name in ("newton", "lbfgs"):
        solver = Solver(name, tolerance=1e-7)  # type: ignore[arg-type]
        found, _ = softmax_regression(x, np.stack([hard, 1 - hard], 1), np.ones(100), np.zeros((1, 2)), solver)
        assert np.isfinite(found).all() and 10 < np.linalg.norm(found) < 1e6
        assert ((x @ found[0] > 0) == (hard > 0)).all()


def test_an_expert_without_points_stays_where_it_is(random: np.random.Generator) -> None:
    x, start = random.standard_normal((10, 2)), random.standard_normal((3, 2))
    found, evaluations = softmax_regression(x, np.eye(3)[np.zeros(10, int)], np.zeros(10), start, Solver())
    assert np.array_equal(found, start) and evaluations == 0
