"""Squared maximum mean discrepancy of two sets of codes, as AE-MMD has it in its loss.

Fruytier et al.: "Sculpting Latent Spaces With MMD: Disentanglement With Programmable Priors", 2025, arXiv 2510.11953,
equation 4 and appendix A.3. With codes z_1 ... z_M of a batch, as many samples z'_1 ... z'_M of the prior and the
kernel

    k(a, b) = sum over c in {0.5, 1, 2} of exp(-||a - b||^2 / (2 (c sigma)^2)),

sigma the median of all distances between two of the 2M points, anew in every step and without a gradient,

    biased      mean_ij k(z_i, z_j) + mean_ij k(z'_i, z'_j) - 2 mean_ij k(z_i, z'_j)         in training
    unbiased    the same, without the pairs of a point with itself; it can be negative       printed as equation 4

That the median leaves out the distance of a point to itself is a guess. The biased one is not 0 between samples of one
distribution: of two sets of 512 from a Gaussian its mean is 0.005. In many dimensions, with this kernel, it sees scale
and correlation and hardly the shape of the marginals.

Legend: M codes, N samples, D dimensions.
"""

import torch
from torch import Tensor

MULTIPLIERS = (0.5, 1.0, 2.0)  # of sigma, not of its square


def squared_distances(a_MD: Tensor, b_ND: Tensor) -> Tensor:
    """||a - b||^2 of all pairs. Returns [M, N]."""
    centre_D = torch.cat([a_MD, b_ND]).detach().mean(0)  # the smaller the numbers, the less cancels below
    a_MD, b_ND = a_MD - centre_D, b_ND - centre_D
    squares_MN = (a_MD**2).sum(1)[:, None] + (b_ND**2).sum(1) - 2 * a_MD @ b_ND.T
    return squares_MN.clamp_min(0)


def median_distance(a_MD: Tensor, b_ND: Tensor) -> Tensor:
    """The median of the distances between any two of all the points, without a gradient. Scalar.

    Raises:
        ValueError: fewer than two points, or more than half of the pairs are of equal points, so that the median is 0.
    """
    points = torch.cat([a_MD, b_ND]).detach()
    if len(points) < 2:
        raise ValueError(f"the median distance needs at least two points, got {len(points)}")
    distances = torch.pdist(points)
    # torch's own median is the lower one of the two in the middle.
    low, high = (len(distances) + 1) // 2, len(distances) // 2 + 1
    middle = distances.kthvalue(low).values
    if high != low:
        middle = (middle + distances.kthvalue(high).values) / 2
    if not middle > 0:
        raise ValueError(f"the median distance between codes and samples of the prior must be > 0, got {float(middle)}")
    return middle


def kernel(squared_MN: Tensor, sigma: Tensor | float, multipliers: tuple[float, ...] = MULTIPLIERS) -> Tensor:
    """k(a, b) from squared distances. Returns [M, N]."""
    scaled_MN = -squared_MN / (2 * sigma**2)
    return torch.stack([torch.exp(scaled_MN / c**2) for c in multipliers]).sum(0)


def squared_mmd(
    codes_MD: Tensor, samples_ND: Tensor, *, sigma: Tensor | float | None = None, biased: bool = True
) -> Tensor:
    """MMD^2 of codes and samples. Scalar, with a gradient for both.

    Args:
        sigma: of the kernel; None for the median distance.
        biased: the estimator of the training, never negative; else the unbiased one.

    Raises:
        ValueError: sets of different width, too few points for the estimator, or a median distance of 0.
    """
    m, n = len(codes_MD), len(samples_ND)
    if codes_MD.ndim != 2 or samples_ND.ndim != 2 or codes_MD.shape[1] != samples_ND.shape[1]:
        raise ValueError(f"codes and samples must be of one width, got {codes_MD.shape} and {samples_ND.shape}")
    if min(m, n) < (1 if biased else 2):
        raise ValueError(f"needs at least {1 if biased else 2} of each, got {m} codes and {n} samples")
    if sigma is None:
        sigma = median_distance(codes_MD, samples_ND)
    together = torch.cat([codes_MD, samples_ND])
    k = kernel(squared_distances(together, together), sigma)
    codes_MM, samples_NN, across = k[:m, :m], k[m:, m:], k[:m, m:].mean()
    if biased:
        return codes_MM.mean() + samples_NN.mean() - 2 * across
    return _without_diagonal(codes_MM) + _without_diagonal(samples_NN) - 2 * across


def _without_diagonal(kernel_MM: Tensor) -> Tensor:
    m = len(kernel_MM)
    return (kernel_MM.sum() - kernel_MM.diagonal().sum()) / (m * (m - 1))
