"""The missing information: finite differences, the population's eigenvalues, the rate of EM, what is singular."""

import numpy as np
import pytest
from scipy.special import expit

from methods.mixtures import symmetric_linear
from methods.mixtures.information import largest_eigenvalue, missing_information
from methods.mixtures.mixture import Parameters, gradient
from methods.mixtures.regression import Solver
from tests.methods.mixtures.brute import SYMMETRIC, Case


def differences(function: object, theta: Parameters, step: float = 1e-5) -> np.ndarray:
    """Jacobian of a function from parameters to parameters, by central differences."""
    flat, cut = np.concatenate(theta), len(theta.w)
    columns = []
    for index in range(len(flat)):
        ends = []
        for sign in (1, -1):
            moved = flat.copy()
            moved[index] += sign * step
            ends.append(np.concatenate(function(Parameters(moved[:cut], moved[cut:]))))  # type: ignore[operator]
        columns.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("case", SYMMETRIC, ids=lambda case: case.name)
def test_hessians(case: Case) -> None:
    """Hess A and Hess L = Hess A - I_{z | x, y}, of the gradients that torch has of the likelihood written out."""
    theta = case.parameters()
    complete = case.mixture.complete_information(theta, case.x)
    hidden = case.mixture.hidden_information(theta, case.x, case.y)
    of_map = differences(lambda one: case.mixture.mirror_gradient(one, case.x), theta)
    np.testing.assert_allclose(complete, of_map, atol=1e-9)
    of_loss = differences(lambda one: case.loss_and_gradient(one)[1], theta)
    np.testing.assert_allclose(complete - hidden, of_loss, atol=1e-9)
    slope = np.concatenate(case.mixture.mirror_gradient(theta, case.x))
    numeric = []
    for index in range(6):
        ends = []
        for sign in (1, -1):
            moved = np.concatenate(theta)
            moved[index] += sign * 1e-5
            ends.append(case.mixture.mirror_map(Parameters(moved[:3], moved[3:]), case.x))
        numeric.append((ends[0] - ends[1]) / 2e-5)
    np.testing.assert_allclose(slope, numeric, atol=1e-9)


def normal(step: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a standard normal variable, by the trapezoidal rule."""
    nodes = np.arange(-6.5, 6.5 + step / 2, step)
    weights = np.exp(-(nodes**2) / 2)
    return nodes, weights / weights.sum()


def population(snr: float, parallel: bool) -> float:
    """The largest eigenvalue at the truth for x ~ N(0, I), by quadrature over x.beta / snr, x.w / snr and noise.

    Features of which theta* has nothing are independent of the rest, and one of them stands for all.
    """
    (a, wa), (e, we) = normal(min(0.1, 0.2 / snr)), normal(0.3)
    a, e, wae = (one.ravel() for one in (*np.meshgrid(a, e, indexing="ij"), wa[:, None] * we[None]))
    bs, wbs = (np.zeros(1), np.ones(1)) if parallel else normal(min(0.2, 0.4 / snr))
    seen = 1 if parallel else 2  # features of which theta* has something
    hidden, other, curvature, other_curvature = (
        np.zeros((2 * seen, 2 * seen)),
        np.zeros((2, 2)),
        np.zeros((seen, seen)),
        0.0,
    )
    for b, wb in zip(bs, wbs, strict=True):
        gate = snr * (a if parallel else np.full_like(a, b))
        x = np.stack([a] if parallel else [a, np.full_like(a, b)], axis=1)
        s = expit(gate)
        curvature += (x * (wb * wae * s * (1 - s))[:, None]).T @ x
        other_curvature += float((wb * wae * s * (1 - s)).sum())
        for z in (1, -1):
            y = z * snr * a + e
            r = expit(gate + 2 * y * snr * a)
            weight = (wb * wae * expit(z * gate) * r * (1 - r))[:, None]
            v, u = np.concatenate([x, 2 * y[:, None] * x], axis=1), np.stack([np.ones_like(y), 2 * y], axis=1)
            hidden += (v * weight).T @ v
            other += (u * weight).T @ u
    complete = np.eye(2 * seen)
    complete[:seen, :seen] = curvature
    return max(largest_eigenvalue(complete, hidden), largest_eigenvalue(np.diag([other_curvature, 1.0]), other))


KNOWN = {
    False: {0.5: 0.85, 1.0: 0.66, 2.0: 0.44, 4.0: 0.25, 8.0: 0.13},
    True: {0.5: 0.87, 1.0: 0.71, 2.0: 0.57, 4.0: 0.49, 8.0: 0.47},
}


@pytest.mark.parametrize("parallel", [False, True], ids=["orthogonal", "parallel"])
def test_largest_eigenvalues_of_the_population(parallel: bool) -> None:
    """By our functions on a large sample, and by quadrature: the higher the ratio, the faster is EM."""
    random = np.random.default_rng(0)
    x = random.standard_normal((200_000, 3))
    for snr, known in KNOWN[parallel].items():
        assert population(snr, parallel) == pytest.approx(known, abs=0.0051)
        beta = np.array([snr, 0.0, 0.0])
        theta = Parameters(beta if parallel else np.array([0.0, snr, 0.0]), beta)
        y = symmetric_linear.draw(theta, x, random)
        found = largest_eigenvalue(
            symmetric_linear.complete_information(theta, x), symmetric_linear.hidden_information(theta, x, y)
        )
        assert found == pytest.approx(known, abs=0.03)


def test_small_samples_have_larger_eigenvalues() -> None:
    """1,000 points of 10 features, w* orthogonal to beta*, mean of ten samples: 0.98, 0.74, 0.50, 0.32, 0.23 in one."""
    for snr, known, population_value in ((0.5, 0.98, 0.85), (1.0, 0.74, 0.66), (2.0, 0.50, 0.44), (4.0, 0.32, 0.25)):
        found = []
        for seed in range(10):
            random = np.random.default_rng(seed)
            theta = Parameters(snr * np.eye(10)[0], snr * np.eye(10)[1])
            x = random.standard_normal((1000, 10))
            y = symmetric_linear.draw(theta, x, random)
            found.append(
                largest_eigenvalue(
                    symmetric_linear.complete_information(theta, x), symmetric_linear.hidden_information(theta, x, y)
                )
            )
        assert population_value < np.mean(found) == pytest.approx(known, abs=0.05)


def test_it_is_the_rate_at_which_em_ends() -> None:
    """Near its end the error of EM falls by the largest eigenvalue at every step."""
    random = np.random.default_rng(1)
    truth = Parameters(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    x = random.standard_normal((1000, 2))
    y = symmetric_linear.draw(truth, x, random)
    thetas = [truth]
    for _ in range(80):
        r = symmetric_linear.responsibilities(thetas[-1], x, y)
        thetas.append(symmetric_linear.m_step(thetas[-1], r, x, y, Solver(ridge=0.0))[0])
    left = [np.linalg.norm(np.concatenate(theta) - np.concatenate(thetas[-1])) for theta in thetas[15:21]]
    end = thetas[-1]
    assert np.abs(np.concatenate(gradient(symmetric_linear, end, x, y))).max() < 1e-9
    rate = largest_eigenvalue(
        symmetric_linear.complete_information(end, x), symmetric_linear.hidden_information(end, x, y)
    )
    assert left[-1] / left[-2] == pytest.approx(rate, rel=0.01)


def test_matrix_has_the_eigenvalues() -> None:
    random = np.random.default_rng(1)
    root, hidden = random.standard_normal((2, 4, 4))
    complete, hidden = root @ root.T + np.eye(4), hidden @ hidden.T
    values = np.linalg.eigvals(missing_information(complete, hidden))
    assert largest_eigenvalue(complete, hidden) == pytest.approx(values.real.max(), rel=1e-10)
    assert np.abs(values.imag).max() < 1e-10


@pytest.mark.parametrize("function", [missing_information, largest_eigenvalue])
def test_singular_information_is_refused(function: object) -> None:
    with pytest.raises(ValueError, match="the complete information must be invertible"):
        function(np.zeros((2, 2)), np.eye(2))  # type: ignore[operator]
