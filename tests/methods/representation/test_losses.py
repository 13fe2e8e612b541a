"""Losses of autoencoders on a batch by hand, and what they become at the ends of their weights."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from methods.representation import losses
from methods.representation.divergences import batch_kl, decomposed_kl, gaussian_kl
from methods.representation.mmd import squared_mmd


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, FOUND = torch.zeros(2, 1, 2, 2), torch.tensor([[[[1.0, 0], [0, 0]]], [[[2.0, 2], [0, 0]]]])
IMAGES, RECONSTRUCTIONS = drawn(0, 6, 1, 2, 2), drawn(1, 6, 1, 2, 2)
CODES, MEAN, LOGVAR, SAMPLES = drawn(2, 6, 3), drawn(3, 6, 3), drawn(4, 6, 3), drawn(5, 6, 3)


def test_squared_errors_by_hand() -> None:
    assert float(losses.mean_squared_error(X, FOUND)) == pytest.approx((1 + 8) / 8)
    assert float(losses.gaussian_nll(X, FOUND, 0.5)) == pytest.approx((1 + 8) / 2)
    assert float(losses.gaussian_nll(X, FOUND, 2.0)) == pytest.approx((1 + 8) / 2 / 4)


def test_gaussian_nll_is_torchs_up_to_its_constant() -> None:
    noise = 0.3
    exact = -Normal(RECONSTRUCTIONS, math.sqrt(noise)).log_prob(IMAGES).flatten(1).sum(1).mean()
    constant = 4 * 0.5 * math.log(2 * math.pi * noise)
    assert float(losses.gaussian_nll(IMAGES, RECONSTRUCTIONS, noise)) == pytest.approx(float(exact) - constant)


def test_each_is_its_reconstruction_and_its_divergence() -> None:
    error = losses.mean_squared_error(IMAGES, RECONSTRUCTIONS)
    likelihood = losses.gaussian_nll(IMAGES, RECONSTRUCTIONS, 0.5)
    found = {
        "ae_mmd": losses.ae_mmd(IMAGES, RECONSTRUCTIONS, CODES, SAMPLES, 0.3) - error,
        "ae_kld": losses.ae_kld(IMAGES, RECONSTRUCTIONS, CODES, 0.3) - error,
        "vae": losses.vae(IMAGES, RECONSTRUCTIONS, MEAN, LOGVAR, noise=0.5) - likelihood,
        "beta_vae": losses.vae(IMAGES, RECONSTRUCTIONS, MEAN, LOGVAR, noise=0.5, beta=4) - likelihood,
        "beta_tcvae": losses.beta_tcvae(
            IMAGES, RECONSTRUCTIONS, CODES, MEAN, LOGVAR, dataset_size=60, noise=0.5, beta=4
        )
        - likelihood,
        "factor_vae": losses.factor_vae(
            IMAGES, RECONSTRUCTIONS, MEAN, LOGVAR, torch.tensor([[3.0, 1.0]]), noise=0.5, gamma=10
        )
        - likelihood,
    }
    kl = gaussian_kl(MEAN, LOGVAR)
    parts = decomposed_kl(CODES, MEAN, LOGVAR, 60)
    expected = {
        "ae_mmd": 0.3 * squared_mmd(CODES, SAMPLES),
        "ae_kld": 0.3 * batch_kl(CODES),
        "vae": kl,
        "beta_vae": 4 * kl,
        "beta_tcvae": parts.information + 4 * parts.total_correlation + parts.marginals,
        "factor_vae": kl + 10 * 2.0,
    }
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value)), name


def test_without_weight_they_are_autoencoders() -> None:
    error = losses.mean_squared_error(IMAGES, RECONSTRUCTIONS)
    assert losses.ae_mmd(IMAGES, RECONSTRUCTIONS, CODES, SAMPLES, 0.0) == error
    assert losses.ae_kld(IMAGES, RECONSTRUCTIONS, CODES, 0.0) == error
    likelihood = losses.gaussian_nll(IMAGES, RECONSTRUCTIONS, 0.5)
    assert losses.vae(IMAGES, RECONSTRUCTIONS, MEAN, LOGVAR, noise=0.5, beta=0.0) == likelihood


def test_with_gamma_0_and_beta_1_they_are_vaes() -> None:
    """beta-TCVAE in expectation: its divergence is log q - log p of the samples."""
    plain = losses.vae(IMAGES, RECONSTRUCTIONS, MEAN, LOGVAR, noise=0.5)
    factor = losses.factor_vae(IMAGES, RECONSTRUCTIONS, MEAN, LOGVAR, torch.rand(6, 2), noise=0.5, gamma=0)
    assert factor == plain
    found = []
    for seed in range(300):
        codes = MEAN + (LOGVAR / 2).exp() * drawn(100 + seed, 6, 3)
        found.append(losses.beta_tcvae(IMAGES, RECONSTRUCTIONS, codes, MEAN, LOGVAR, dataset_size=6, noise=0.5, beta=1))
    assert float(torch.stack(found).mean()) == pytest.approx(float(plain), abs=0.2)


def test_gradient_of_the_prior_reaches_the_codes_and_not_the_samples() -> None:
    codes, samples = CODES.clone().requires_grad_(), SAMPLES.clone()
    losses.ae_mmd(IMAGES, RECONSTRUCTIONS, codes, samples, 0.3).backward()
    assert codes.grad is not None and float(codes.grad.abs().sum()) > 0 and samples.grad is None
