"""Divergences between next-token distributions, from log-probabilities over the vocabulary.

Legend: ... any leading shape, V vocabulary.
"""

import math

import torch
from torch import Tensor


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
