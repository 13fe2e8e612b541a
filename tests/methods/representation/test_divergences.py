"""Divergences of the baselines: PyTorch's distributions, brute force, Gaussians whose total correlation is known."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from methods.representation import divergences


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kl_of_a_sample_is_torchs_and_0_at_the_prior() -> None:
    mean, logvar = drawn(0, 6, 3), drawn(1, 6, 3)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(torch.zeros(1), torch.ones(1))).sum(1).mean()
    assert float(divergences.gaussian_kl(mean, logvar)) == pytest.approx(float(expected))
    assert float(divergences.gaussian_kl(torch.zeros(4, 3), torch.zeros(4, 3))) == 0


def whitened(codes: Tensor) -> Tensor:
    centred = codes - codes.mean(0)
    return centred @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(centred.T))).T


def test_kl_of_a_batch() -> None:
    codes = drawn(0, 50, 4) @ drawn(1, 4, 4) + 0.3
    expected = kl_divergence(
        MultivariateNormal(codes.mean(0), torch.cov(codes.T)),
        MultivariateNormal(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)),
    )
    assert float(divergences.batch_kl(codes)) == pytest.approx(float(expected))
    assert float(divergences.batch_kl(whitened(codes))) == pytest.approx(0, abs=1e-10)
    assert float(divergences.batch_kl(whitened(codes) + 1)) == pytest.approx(2)  # m.m / 2 alone


def test_kl_of_a_batch_sees_no_dependence_beyond_covariance() -> None:
    z = drawn(0, 2000)
    codes = whitened(torch.stack([z, z**2], 1))  # one tells the other
    assert float(divergences.batch_kl(codes)) == pytest.approx(0, abs=1e-10)


def test_kl_of_a_batch_in_fewer_dimensions_is_infinite() -> None:
    codes = drawn(0, 20, 2)
    assert float(divergences.batch_kl(torch.cat([codes, torch.zeros(20, 1, dtype=torch.float64)], 1))) == math.inf
    with pytest.raises(ValueError, match=r"method.batch_size=4: must be above the number of latents, 4"):
        divergences.batch_kl(drawn(0, 4, 4))


def test_three_parts_are_log_q_less_log_p_whatever_the_size_of_the_data() -> None:
    mean, logvar = drawn(0, 7, 3), drawn(1, 7, 3)
    codes = mean + (logvar / 2).exp() * drawn(2, 7, 3)
    posterior = Independent(Normal(mean, (logvar / 2).exp()), 1).log_prob(codes)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1).log_prob(codes)
    for size in (7, 1000):
        parts = divergences.decomposed_kl(codes, mean, logvar, size)
        assert float(sum(parts)) == pytest.approx(float((posterior - prior).mean()))


def test_three_parts_by_brute_force() -> None:
    mean, logvar = drawn(0, 4, 2), drawn(1, 4, 2)
    codes, size = drawn(2, 4, 2), 30

    def density(i: int, b: int, j: int) -> float:
        variance = math.exp(logvar[b, j])
        return math.exp(-((codes[i, j] - mean[b, j]) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    joint = [sum(density(i, b, 0) * density(i, b, 1) for b in range(4)) / (4 * size) for i in range(4)]
    apart = [math.prod(sum(density(i, b, j) for b in range(4)) / (4 * size) for j in range(2)) for i in range(4)]
    expected = sum(math.log(a / b) for a, b in zip(joint, apart, strict=True)) / 4
    found = divergences.decomposed_kl(codes, mean, logvar, size)
    assert float(found.total_correlation) == pytest.approx(expected)
    own = sum(math.log(density(i, i, 0) * density(i, i, 1)) for i in range(4)) / 4
    assert float(found.information) == pytest.approx(own - sum(map(math.log, joint)) / 4)


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_total_correlation_of_gaussians(rho: float) -> None:
    """Of the mixture of all q(z | x), as the size 1 leaves it: -log(1 - r^2) / 2, r the correlation of the codes."""
    count, noise = 1500, 0.5
    mix = torch.tensor([[1.0, rho], [0.0, math.sqrt(1 - rho**2)]], dtype=torch.float64)
    mean = drawn(0, count, 2) @ mix
    codes = mean + noise * drawn(1, count, 2)
    logvar = torch.full_like(mean, 2 * math.log(noise))
    found = divergences.decomposed_kl(codes, mean, logvar, 1)
    r = rho / (1 + noise**2)
    assert float(found.total_correlation) == pytest.approx(-math.log(1 - r**2) / 2, abs=0.06)


def test_discriminator_that_knows_the_ratio_gives_the_total_correlation() -> None:
    rho = 0.7
    joint = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, rho], [rho, 1.0]]))
    apart = MultivariateNormal(torch.zeros(2), torch.eye(2))
    torch.manual_seed(0)
    codes = joint.sample((20_000,))
    logits = torch.stack([joint.log_prob(codes), apart.log_prob(codes)], 1)
    assert float(divergences.density_ratio_tc(logits)) == pytest.approx(-math.log(1 - rho**2) / 2, abs=0.02)
    # It is also better at its own task than one that knows nothing.
    other = apart.sample((20_000,))
    told = torch.stack([joint.log_prob(other), apart.log_prob(other)], 1)
    assert float(divergences.discriminator_loss(logits, told)) < math.log(2)


def test_discriminator_loss_by_hand() -> None:
    nothing = torch.zeros(3, 2)
    assert float(divergences.discriminator_loss(nothing, nothing)) == pytest.approx(math.log(2))
    sure = torch.tensor([[50.0, 0.0]])
    assert float(divergences.discriminator_loss(sure, sure.flip(1))) == pytest.approx(0, abs=1e-12)
    assert float(divergences.discriminator_loss(sure.flip(1), sure)) == pytest.approx(50)


def test_shuffling_keeps_every_dimension_and_breaks_their_ties() -> None:
    z = drawn(0, 400)
    codes = torch.stack([z, 2 * z, -z], 1)
    shuffled = divergences.shuffled_dimensions(codes, torch.Generator().manual_seed(0))
    torch.testing.assert_close(shuffled.sort(0).values, codes.sort(0).values)
    assert float(torch.corrcoef(shuffled.T).fill_diagonal_(0).abs().max()) < 0.2
    again = divergences.shuffled_dimensions(codes, torch.Generator().manual_seed(0))
    assert torch.equal(again, shuffled)
