"""Divergences between distributions, from log-probabilities over the vocabulary; generators of f-divergences.

An f-divergence is D_f(p || q) = E_q f(p/q), f convex, f(1) = 0. With u = p/q:

    name               f(u)                                     f'(u), the score      D_f(p || q)
    reverse_kl         u log u                                  log u                 KL(p || q)
    forward_kl         -log u                                   -1/u                  KL(q || p)
    js                 u log u - (u + 1) log((u + 1)/2)         log(2u/(1 + u))       2 JSD(p, q)
    alpha              [(1-a) u + a - u^(1-a)] / (a (1-a))      (1 - u^-a)/a          between the KLs, 0 < a < 1
    pearson            (u - 1)^2                                2 (u - 1)             chi^2
    hellinger          (sqrt u - 1)^2                           1 - 1/sqrt u          sum (sqrt p - sqrt q)^2
    total_variation    |u - 1|/2                                sign(u - 1)/2         sum |p - q|/2

p is meant as the policy and q as its reference: so the two KLs got their names. A score is f' up to a constant, which
cancels wherever scores are subtracted. The alpha a of the table is that of f-DPO (arXiv 2309.16240): a -> 0 is the
reverse KL, a -> 1 the forward KL; TRL's is 1 - a.

Functions of u take log u, a difference of log-probabilities that may be of thousands where whole responses are
compared. Where a formula has an exponential of it, the exponent x is followed exactly up to 40, and from there by the
tangent e^40 (1 + x - 40) (ours). Values and gradients stay finite in fp32 for |log u| up to 10^4, those of scores even
squared and summed, as for the norm of a gradient; and unlike after a clamp, a gradient still points back to where the
formula holds.

Legend: ... any leading shape, V vocabulary.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha", "pearson", "hellinger", "total_variation"]

# The largest exponent that is followed: the squares of e^40 and of its multiples still are numbers in fp32.
EXPONENT_LIMIT = 40.0


def kl(p_logps: Tensor, q_logps: Tensor) -> Tensor:
    """KL(p || q) = sum_v p(v) (log p(v) - log q(v)), in nats.

    Args:
        p_logps, q_logps: log-probabilities [..., V]; where p is 0 (log-probability -inf) the term is 0.

    Returns:
        [...]; infinite where q is 0 and p is not.
    """
    p = p_logps.exp()
    # Not the product: where p is 0 its gradient would be 0 times infinity.
    differences = torch.where(p > 0, p_logps - q_logps, torch.zeros_like(p))
    return (p * differences).sum(-1)


def generalized_jsd(teacher_logps: Tensor, student_logps: Tensor, alpha: float) -> Tensor:
    """Generalised Jensen-Shannon divergence of a student to its teacher, as distillation uses it. Returns [...].

    alpha 0: KL(teacher || student); alpha 1: KL(student || teacher); between them, with the mixture
    M = (1 - alpha) student + alpha teacher:  (1 - alpha) KL(student || M) + alpha KL(teacher || M).

    Args:
        teacher_logps, student_logps: log-probabilities [..., V].
        alpha: in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    if alpha == 0:
        return kl(teacher_logps, student_logps)
    if alpha == 1:
        return kl(student_logps, teacher_logps)
    # Where both are 0, the gradient of logaddexp would be that of -inf + inf.
    teacher_floor = teacher_logps.clamp_min(torch.finfo(teacher_logps.dtype).min)
    mixture = torch.logaddexp(student_logps + math.log1p(-alpha), teacher_floor + math.log(alpha))
    return (1 - alpha) * kl(student_logps, mixture) + alpha * kl(teacher_logps, mixture)


def exp_then_linear(x: Tensor, limit: float = EXPONENT_LIMIT) -> Tensor:
    """e^x up to `limit`, and its tangent there beyond it. Same shape; finite, as is its gradient."""
    # relu, whose gradient at 0 is 0: at the limit itself that of the exponential is the only one.
    return x.clamp(max=limit).exp() * (1 + F.relu(x - limit))


def expm1_then_linear(x: Tensor, limit: float = EXPONENT_LIMIT) -> Tensor:
    """e^x - 1 without cancellation near 0, up to `limit`, and its tangent there beyond it. Same shape."""
    inside = x.clamp(max=limit)
    # The gradient of expm1 is its value plus 1, which loses all digits where x is far below 0.
    exact = torch.where(inside < -1, inside.exp() - 1, torch.expm1(inside))
    return exact + math.exp(limit) * F.relu(x - limit)


def f_value(divergence: Divergence, log_u: Tensor, alpha: float = 0.5) -> Tensor:
    """f(u), the generator of an f-divergence, from log u. Same shape; >= 0 for all but the two KLs.

    Args:
        divergence: as in the table above; f(u) of `pearson` is exact up to log u = 20, the others up to 40.
        log_u: log(p/q), any shape.
        alpha: of the alpha divergence, in (0, 1).
    """
    match divergence:
        case "reverse_kl":
            return log_u * exp_then_linear(log_u)
        case "forward_kl":
            return -log_u
        case "js":  # log u - log((u + 1)/2) = log 2 - softplus(-log u)
            return exp_then_linear(log_u) * (math.log(2) - F.softplus(-log_u)) + math.log(2) - F.softplus(log_u)
        case "alpha":
            _check_alpha(alpha)
            difference = expm1_then_linear((1 - alpha) * log_u) - (1 - alpha) * expm1_then_linear(log_u)
            return difference / (alpha * (alpha - 1))
        case "pearson":  # half the limit, for its square
            return expm1_then_linear(log_u, EXPONENT_LIMIT / 2).square()
        case "hellinger":
            return expm1_then_linear(log_u / 2, EXPONENT_LIMIT / 2).square()
        case "total_variation":
            return expm1_then_linear(log_u).abs() / 2
        case _:
            raise ValueError(_unknown(divergence))


def f_score(divergence: Divergence, log_u: Tensor, alpha: float = 0.5) -> Tensor:
    """f'(u) up to a constant, from log u. Same shape; increasing in log u.

    Args:
        divergence: as in the table above. The gradient of `total_variation` is 0.
        log_u: log(p/q), any shape.
        alpha: of the alpha divergence, in (0, 1).
    """
    match divergence:
        case "reverse_kl":
            return log_u
        case "forward_kl":
            return -exp_then_linear(-log_u)
        case "js":
            return math.log(2) + F.logsigmoid(log_u)
        case "alpha":
            _check_alpha(alpha)
            return -expm1_then_linear(-alpha * log_u) / alpha
        case "pearson":
            return 2 * expm1_then_linear(log_u)
        case "hellinger":
            return -expm1_then_linear(-log_u / 2)
        case "total_variation":
            return log_u.sign() / 2
        case _:
            raise ValueError(_unknown(divergence))


def f_divergence(divergence: Divergence, p_logps: Tensor, q_logps: Tensor, alpha: float = 0.5) -> Tensor:
    """D_f(p || q) = E_q f(p/q), over the last dimension.

    Args:
        divergence: as in the table above.
        p_logps, q_logps: log-probabilities [..., V]; a probability of 0 (-inf) is allowed in both.
        alpha: of the alpha divergence, in (0, 1).

    Returns:
        [...]; infinite where it is: q 0 and p not for `reverse_kl` and `pearson`, p 0 and q not for `forward_kl`.
    """
    match divergence:
        case "reverse_kl":
            return kl(p_logps, q_logps)
        case "forward_kl":
            return kl(q_logps, p_logps)
        case "js":
            return 2 * generalized_jsd(p_logps, q_logps, 0.5)
        case "alpha":
            _check_alpha(alpha)
            geometric = ((1 - alpha) * p_logps + alpha * q_logps).exp()
            arithmetic = (1 - alpha) * p_logps.exp() + alpha * q_logps.exp()
            return (arithmetic - geometric).sum(-1) / (alpha * (1 - alpha))
        case "pearson":
            return _pearson_terms(p_logps, q_logps).sum(-1)
        case "hellinger":
            return ((p_logps / 2).exp() - (q_logps / 2).exp()).square().sum(-1)
        case "total_variation":
            return (p_logps.exp() - q_logps.exp()).abs().sum(-1) / 2
        case _:
            raise ValueError(_unknown(divergence))


def _pearson_terms(p_logps: Tensor, q_logps: Tensor) -> Tensor:
    """(p - q)^2 / q, also where q is too small for a number of its own, and near p = q."""
    # Probabilities below e^-10000 are 0 for all purposes, and what is subtracted stays a number.
    p_logps, q_logps = p_logps.clamp_min(-1e4), q_logps.clamp_min(-1e4)
    p, q, log_u = p_logps.exp(), q_logps.exp(), p_logps - q_logps
    is_near = log_u.abs() < 1
    near = (p - q) * torch.expm1(torch.where(is_near, log_u, 0.0))
    far = torch.where(is_near, 0.0, 2 * p_logps - q_logps).exp() - 2 * p + q
    return torch.where(is_near, near, far)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, neither of them, got {alpha}")


def _unknown(divergence: str) -> str:
    return f"divergence must be one of {', '.join(Divergence.__args__)}, got {divergence}"  # type: ignore[attr-defined]
