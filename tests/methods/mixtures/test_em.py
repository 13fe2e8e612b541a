"""EM: monotone, exactly a step of mirror descent, and where it ends."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, root

from methods.mixtures.base import em_step
from methods.mixtures.data import SyntheticMixture, SyntheticMixtureConfig
from methods.mixtures.em import Em, EmConfig
from methods.mixtures.mixture import MixtureData, Parameters, gradient
from methods.mixtures.regression import Solver
from tests.methods.mixtures.brute import ALL, SYMMETRIC, Case
from tests.methods.mixtures.fake_context import fitted

EXACT = Solver(ridge=0.0)


def data_of(case: Case, start: Parameters | None = None) -> MixtureData:
    return MixtureData(case.mixture, case.x, case.y, start or case.parameters())


def divergence(case: Case, theta: Parameters, phi: Parameters) -> float:
    """D_A(theta, phi)."""
    slope = case.mixture.mirror_gradient(phi, case.x)
    along = sum(float(s @ (t - p)) for s, t, p in zip(slope, theta, phi, strict=True))
    return float(case.mixture.mirror_map(theta, case.x) - case.mixture.mirror_map(phi, case.x) - along)


@pytest.mark.parametrize("case", SYMMETRIC, ids=lambda case: case.name)
def test_mirror_gradients_tell_the_step(case: Case) -> None:
    """grad A(theta+) = grad A(theta) - grad L(theta)."""
    theta = case.parameters()
    after, _ = em_step(data_of(case), theta, EXACT)
    left = case.mixture.mirror_gradient(after, case.x)
    right = case.mixture.mirror_gradient(theta, case.x)
    slope = gradient(case.mixture, theta, case.x, case.y)
    for one, two, three in zip(left, right, slope, strict=True):
        np.testing.assert_allclose(one, two - three, atol=1e-14 if case.name == "symmetric_linear" else 1e-10)


@pytest.mark.parametrize("case", SYMMETRIC, ids=lambda case: case.name)
def test_em_step_is_the_mirror_descent_step(case: Case) -> None:
    """The minimiser of <grad L, theta> + KL(complete model at theta_t || at theta), found without EM, to 1e-8.

    KL is summed over z (and y, or in closed form for Gaussians) in torch, and grad L is torch's: no formula of ours.
    """
    theta = case.parameters()
    slope = np.concatenate(case.loss_and_gradient(theta)[1])
    x = torch.from_numpy(case.x)

    def kl(now: torch.Tensor) -> torch.Tensor:
        (w, beta), (w_t, beta_t) = now.split(3), (torch.from_numpy(part) for part in theta)
        gate, gate_t = torch.sigmoid(x @ w), torch.sigmoid(x @ w_t)
        found = gate_t * (gate_t / gate).log() + (1 - gate_t) * ((1 - gate_t) / (1 - gate)).log()
        if case.name == "symmetric_linear":
            return (found + (x @ (beta - beta_t)) ** 2 / 2).mean()
        p, p_t = torch.sigmoid(x @ beta), torch.sigmoid(x @ beta_t)
        return (found + p_t * (p_t / p).log() + (1 - p_t) * ((1 - p_t) / (1 - p)).log()).mean()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        now = torch.tensor(flat, requires_grad=True)
        value = (torch.from_numpy(slope) * now).sum() + kl(now)
        value.backward()
        assert now.grad is not None
        return float(value.detach()), now.grad.numpy()

    coarse = minimize(objective, np.concatenate(theta), jac=True, method="BFGS").x
    found = root(lambda flat: objective(flat)[1], coarse, tol=1e-13).x
    after, _ = em_step(data_of(case), theta, EXACT)
    np.testing.assert_allclose(np.concatenate(after), found, atol=1e-8)


@pytest.mark.parametrize("case", SYMMETRIC, ids=lambda case: case.name)
def test_loss_falls_by_at_least_the_divergence(case: Case) -> None:
    theta = case.parameters()
    for _ in range(8):
        after, _ = em_step(data_of(case), theta, EXACT)
        fallen = case.mixture.nll(theta, case.x, case.y) - case.mixture.nll(after, case.x, case.y)
        assert fallen >= divergence(case, theta, after) - 1e-12
        assert divergence(case, theta, after) > 0
        theta = after


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_loss_never_rises(case: Case) -> None:
    theta, losses = case.parameters(), []
    for _ in range(15):
        losses.append(case.mixture.nll(theta, case.x, case.y))
        theta, _ = em_step(data_of(case), theta, EXACT)
    assert all(after <= before + 1e-12 for before, after in pairwise(losses))
    assert losses[0] - losses[-1] > 0.01


def test_rate_of_the_kl_between_steps() -> None:
    """min_t mean_x KL(theta_x^t, theta_x^{t+1}) <= (L(theta_1) - L*) / T, with the lowest loss that was seen for L*."""
    for case in SYMMETRIC:
        thetas = [case.parameters()]
        for _ in range(20):
            thetas.append(em_step(data_of(case), thetas[-1], EXACT)[0])
        fallen = case.mixture.nll(thetas[0], case.x, case.y) - case.mixture.nll(thetas[-1], case.x, case.y)
        steps = [divergence(case, one, two) for one, two in pairwise(thetas)]
        assert min(steps) <= fallen / 20


@pytest.mark.parametrize("model", ["symmetric_linear", "symmetric_logistic", "linear", "logistic", "softmax"])
def test_it_finds_the_truth_from_far_away(model: str) -> None:
    """Relative error 0.8 at the start; at the end what so many points leave, which is more for classes."""
    config = SyntheticMixtureConfig(model=model, d=4, n=3000, snr=4.0, error=0.8)  # type: ignore[arg-type]
    data = SyntheticMixture(config).load(3)
    found = fitted(Em(EmConfig(iterations=25)), data)
    assert found["beta_error/0"] > 0.3
    assert found["beta_error/25"] < (0.1 if "linear" in model else 0.3)
    assert found["w_error/25"] < (0.15 if "linear" in model else 0.4)
    assert found["loss_above_optimum/25"] < 1e-3


def test_settings_reach_the_regressions() -> None:
    data = SyntheticMixture(SyntheticMixtureConfig(n=100, d=3)).load(1)
    exact = fitted(Em(EmConfig(iterations=1)), data)
    heavy = fitted(Em(EmConfig(iterations=1, ridge=1.0)), data)
    hurried = fitted(Em(EmConfig(iterations=1, limit=1)), data)
    other = fitted(Em(EmConfig(iterations=1, solver="lbfgs")), data)
    loose = fitted(Em(EmConfig(iterations=1, tolerance=1.0)), data)
    assert other["loss/1"] == pytest.approx(exact["loss/1"], abs=1e-9)
    assert other["gradients/gate"] != exact["gradients/gate"]
    assert len({heavy["loss/1"], hurried["loss/1"], loose["loss/1"], exact["loss/1"]}) == 4
    assert hurried["gradients/gate"] == 2 and loose["gradients/gate"] == 1 and exact["gradients/experts"] == 1
