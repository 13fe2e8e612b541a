"""What the autoencoders that AE-MMD is compared with add to their loss: divergences of codes, by sample or by batch.

    gaussian_kl          KL(N(mu, sigma^2) || N(0, I)) of every sample: VAE, and beta times it: beta-VAE
    batch_kl             KL(N(m, S) || N(0, I)), m and S mean and covariance of the batch's codes: AE-KLD
                         (arXiv 2510.11953, equation of its figure 1)
    decomposed_kl        the VAE's divergence in three, on a batch: I(x; z) + TC(z) + sum_j KL(q(z_j) || p(z_j));
                         beta-TCVAE weights the total correlation TC = KL(q(z) || prod_j q(z_j)) by beta
                         (Chen et al., 2018, arXiv 1802.04942, minibatch-weighted sampling)
    density_ratio_tc     TC from a discriminator of codes and codes whose dimensions were shuffled: FactorVAE
                         (Kim and Mnih, 2018, arXiv 1802.05983)

All in nats; means over the batch. Legend: B batch, D dimensions.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_kl(mean_BD: Tensor, logvar_BD: Tensor) -> Tensor:
    """0.5 sum_j (sigma_j^2 + mu_j^2 - 1 - log sigma_j^2), mean over the batch. Scalar."""
    return 0.5 * (logvar_BD.exp() + mean_BD**2 - 1 - logvar_BD).sum(1).mean()


def batch_kl(codes_BD: Tensor) -> Tensor:
    """0.5 (tr S + m.m - D - log det S) with mean m and covariance S of the codes; 0 where they are 0 and I. Scalar.

    S divides by B - 1. Where the codes lie in fewer than D dimensions the divergence is infinite.

    Raises:
        ValueError: no more codes than dimensions, whose covariance has no inverse.
    """
    size, width = codes_BD.shape
    if size <= width:
        raise ValueError(f"method.batch_size={size}: must be above the number of latents, {width}, for a batch's KL")
    mean_D = codes_BD.mean(0)
    centred_BD = codes_BD - mean_D
    covariance_DD = centred_BD.T @ centred_BD / (size - 1)
    sign, logdet = torch.linalg.slogdet(covariance_DD)
    logdet = torch.where(sign > 0, logdet, torch.full_like(logdet, -math.inf))
    return 0.5 * (covariance_DD.trace() + mean_D @ mean_D - width - logdet)


class Decomposition(NamedTuple):
    """KL(q(z|x) || p(z)) on samples: mutual information, total correlation, divergence of the marginals. Scalars."""

    information: Tensor
    total_correlation: Tensor
    marginals: Tensor


def decomposed_kl(codes_BD: Tensor, mean_BD: Tensor, logvar_BD: Tensor, dataset_size: int) -> Decomposition:
    """The three parts, which sum to the mean of log q(z|x) - log p(z).

    q(z) and q(z_j) are estimated from the batch: log q(z) = log sum_b q(z | x_b) - log(B dataset_size).

    Args:
        codes_BD: a sample of q(z | x_b) for each x_b of the batch.
        mean_BD, logvar_BD: of q(z | x_b).
        dataset_size: how many x there are; it shifts the parts and has no gradient.
    """
    size, width = codes_BD.shape
    # Every code under every x of the batch.
    pairs_BBD = _log_normal(codes_BD[:, None], mean_BD[None], logvar_BD[None])
    shift = math.log(size * dataset_size)
    conditional_B = _log_normal(codes_BD, mean_BD, logvar_BD).sum(1)
    aggregate_B = torch.logsumexp(pairs_BBD.sum(2), 1) - shift
    product_B = torch.logsumexp(pairs_BBD, 1).sum(1) - width * shift
    prior_B = _log_normal(codes_BD, torch.zeros_like(codes_BD), torch.zeros_like(codes_BD)).sum(1)
    return Decomposition(
        (conditional_B - aggregate_B).mean(), (aggregate_B - product_B).mean(), (product_B - prior_B).mean()
    )


def density_ratio_tc(logits_B2: Tensor) -> Tensor:
    """mean(log D - log(1 - D)) of codes, as a difference of logits: FactorVAE's total correlation. Scalar.

    Args:
        logits_B2: what the discriminator says of codes of the batch: for joint codes, for shuffled ones.
    """
    return (logits_B2[:, 0] - logits_B2[:, 1]).mean()


def discriminator_loss(joint_logits_B2: Tensor, shuffled_logits_B2: Tensor) -> Tensor:
    """Cross-entropy of telling joint codes (class 0) from shuffled ones (class 1), mean of both. Scalar."""
    told_B = F.log_softmax(joint_logits_B2, 1)[:, 0], F.log_softmax(shuffled_logits_B2, 1)[:, 1]
    return -(told_B[0].mean() + told_B[1].mean()) / 2


def shuffled_dimensions(codes_BD: Tensor, random: torch.Generator) -> Tensor:
    """Every dimension permuted over the batch by itself: samples of prod_j q(z_j). Returns [B, D]."""
    order_BD = torch.rand(codes_BD.shape, generator=random).argsort(0).to(codes_BD.device)
    return codes_BD.gather(0, order_BD)


def _log_normal(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + logvar + (x - mean) ** 2 * torch.exp(-logvar))
