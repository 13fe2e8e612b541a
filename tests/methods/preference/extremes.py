"""What must hold of every loss on pairs: finite far from the reference in fp32, and each pair a loss of its own."""

import itertools

import torch

from methods.preference.base import Paired, Side
from tests.methods.preference.toy_pair import random_sides

# log pi and log ref of a response that has become likely, and of one that has become unlikely: log-ratios of +-1e4.
FAR = [(-1.0, -1.0e4 - 1), (-1.0e4 - 1, -1.0), (-1.0e-6, -1.0e4), (-50.0, -50.0)]


def far_losses(method: Paired) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [P] of all combinations of such responses, and the gradients of their sum by log pi [2, P], in fp32."""
    chosen, rejected = zip(*itertools.product(FAR, FAR), strict=True)
    logps, references = torch.tensor([chosen, rejected]).unbind(-1)
    logps.requires_grad_()
    tokens = torch.full((len(chosen),), 10.0)
    sides = [Side(logps[row], references[row], tokens) for row in range(2)]
    losses = method.losses(*sides)
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    return losses.detach(), gradient


def check_extremes(method: Paired) -> None:
    """Loss and gradient are finite, and so is the squared norm of the gradient, by which it is clipped."""
    losses, gradient = far_losses(method)
    assert torch.isfinite(losses).all() and torch.isfinite(losses.sum())
    assert torch.isfinite(gradient.square().sum())


def check_pairs_are_apart(method: Paired) -> None:
    """In any order, and alone, a pair has the same loss."""
    chosen, rejected = random_sides()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    losses = method.losses(chosen, rejected)

    def taken(index: torch.Tensor) -> list[Side]:
        return [Side(one.logps[index], one.reference[index], one.tokens[index]) for one in (chosen, rejected)]

    torch.testing.assert_close(method.losses(*taken(order)), losses[order])
    torch.testing.assert_close(method.losses(*taken(order[:1])), losses[order[:1]])
    assert losses.unique().numel() == len(losses)
