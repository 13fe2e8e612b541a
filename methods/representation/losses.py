"""What each autoencoder minimises, of a batch x, its codes z and its reconstructions x^.

    AE           mean (x - x^)^2
    AE-MMD       mean (x - x^)^2 + lambda MMD^2(z, samples of the prior)                    arXiv 2510.11953, equation 5
    AE-KLD       mean (x - x^)^2 + lambda KL(N(m, S) || N(0, I)), m and S of the batch      the same
    VAE          ||x - x^||^2 / (2 v) + KL(N(mu, sigma^2) || N(0, I)) of each x             arXiv 1312.6114
    beta-VAE     the same with beta KL
    beta-TCVAE   ||x - x^||^2 / (2 v) + I(x; z) + beta TC(z) + the KL of the marginals      arXiv 1802.04942
    FactorVAE    the VAE's + gamma TC(z), by a discriminator                                arXiv 1802.05983

The first three average over all pixels. The others sum over those of an image, since the first term is -log of a
Gaussian of variance v around the reconstruction, without its constant. The paper of AE-MMD says neither; both are
guesses.

All are scalars, means over the batch. Legend: B batch, D dimensions, ... any shape of an image.
"""

from torch import Tensor

from methods.representation.divergences import batch_kl, decomposed_kl, density_ratio_tc, gaussian_kl
from methods.representation.mmd import squared_mmd


def mean_squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean over images [B, ...] and their pixels."""
    return ((x - reconstruction) ** 2).mean()


def gaussian_nll(x: Tensor, reconstruction: Tensor, noise: float) -> Tensor:
    """||x - x^||^2 / (2 noise), mean over images [B, ...]; noise: the variance v."""
    return ((x - reconstruction) ** 2).flatten(1).sum(1).mean() / (2 * noise)


def ae_mmd(x: Tensor, reconstruction: Tensor, codes_BD: Tensor, samples_BD: Tensor, weight: float) -> Tensor:
    """samples_BD: fresh ones of the prior. weight: lambda."""
    return mean_squared_error(x, reconstruction) + weight * squared_mmd(codes_BD, samples_BD)


def ae_kld(x: Tensor, reconstruction: Tensor, codes_BD: Tensor, weight: float) -> Tensor:
    """weight: lambda."""
    return mean_squared_error(x, reconstruction) + weight * batch_kl(codes_BD)


def vae(
    x: Tensor, reconstruction: Tensor, mean_BD: Tensor, logvar_BD: Tensor, *, noise: float, beta: float = 1.0
) -> Tensor:
    """The VAE's, or with beta other than 1 beta-VAE's; the reconstruction is of a sample of N(mean, exp logvar)."""
    return gaussian_nll(x, reconstruction, noise) + beta * gaussian_kl(mean_BD, logvar_BD)


def beta_tcvae(
    x: Tensor,
    reconstruction: Tensor,
    codes_BD: Tensor,
    mean_BD: Tensor,
    logvar_BD: Tensor,
    *,
    dataset_size: int,
    noise: float,
    beta: float,
) -> Tensor:
    """codes_BD: the samples that were reconstructed. dataset_size: images there are to train on."""
    parts = decomposed_kl(codes_BD, mean_BD, logvar_BD, dataset_size)
    divergence = parts.information + beta * parts.total_correlation + parts.marginals
    return gaussian_nll(x, reconstruction, noise) + divergence


def factor_vae(
    x: Tensor,
    reconstruction: Tensor,
    mean_BD: Tensor,
    logvar_BD: Tensor,
    logits_B2: Tensor,
    *,
    noise: float,
    gamma: float,
) -> Tensor:
    """logits_B2: what the discriminator says of the samples that were reconstructed, joint and shuffled."""
    return vae(x, reconstruction, mean_BD, logvar_BD, noise=noise) + gamma * density_ratio_tc(logits_B2)
