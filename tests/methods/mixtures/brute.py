"""The likelihoods of mixtures of experts once more, in torch and term by term, to differentiate and to compare with."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.mixtures import symmetric_linear, symmetric_logistic
from methods.mixtures.general import LinearExperts, LogisticExperts, SoftmaxExperts
from methods.mixtures.mixture import Parameters

Array = NDArray[np.float64]
Joint = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # w, beta, x, y -> log p(y, z | x) [N, K]


def normal_logp(y: Tensor, mean: Tensor) -> Tensor:
    return -((y - mean) ** 2) / 2 - math.log(2 * math.pi) / 2


def joint_symmetric_linear(w: Tensor, beta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    gate = torch.sigmoid(x @ w)
    return torch.stack([gate.log() + normal_logp(y, x @ beta), (1 - gate).log() + normal_logp(y, -(x @ beta))], 1)


def joint_symmetric_logistic(w: Tensor, beta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    gate, plus = torch.sigmoid(x @ w), torch.sigmoid(x @ beta)
    of_y = torch.where(y > 0, plus, 1 - plus)
    return torch.stack([gate.log() + of_y.log(), (1 - gate).log() + (1 - of_y).log()], 1)


def gates(w: Tensor, x: Tensor) -> Tensor:
    weights = torch.exp(torch.cat([x @ w.T, torch.zeros(len(x), 1, dtype=x.dtype)], 1))
    return weights / weights.sum(1, keepdim=True)


def joint_linear(w: Tensor, beta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return gates(w, x).log() + normal_logp(y[:, None], x @ beta.T)


def joint_logistic(w: Tensor, beta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(x @ beta.T)
    return gates(w, x).log() + torch.where(y[:, None] == 1, p, 1 - p).log()


def joint_softmax(w: Tensor, beta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    weights = torch.exp(torch.einsum("nd,kcd->nkc", x, beta))
    p = weights / weights.sum(2, keepdim=True)
    return gates(w, x).log() + p[torch.arange(len(x)), :, y.long()].log()


class Case:
    """A mixture with its brute-force likelihood, and points and parameters drawn for it."""

    def __init__(self, name: str, mixture: Any, joint: Joint, w: tuple[int, ...], beta: tuple[int, ...]) -> None:
        self.name, self.mixture, self.joint = name, mixture, joint
        self.shapes = (w, beta)
        random = np.random.default_rng(5)
        self.x = random.standard_normal((60, 3))
        self.y = mixture.draw(self._drawn(random), self.x, random)

    def parameters(self) -> Parameters:
        """Others than the true ones, and the same in every test, whichever tests ran before it."""
        return self._drawn(np.random.default_rng(6))

    def _drawn(self, random: np.random.Generator) -> Parameters:
        return Parameters(*(random.standard_normal(shape) for shape in self.shapes))

    def joint_logps(self, theta: Parameters) -> Array:
        return np.asarray(self.joint(*(torch.from_numpy(one) for one in (*theta, self.x, self.y))).numpy())

    def loss_and_gradient(self, theta: Parameters) -> tuple[float, Parameters]:
        """-mean log sum_z p(y, z | x), and its gradient by torch."""
        w, beta = (torch.tensor(part, requires_grad=True) for part in theta)
        loss = -torch.logsumexp(self.joint(w, beta, torch.from_numpy(self.x), torch.from_numpy(self.y)), 1).mean()
        loss.backward()
        assert w.grad is not None and beta.grad is not None
        return float(loss.detach()), Parameters(w.grad.numpy(), beta.grad.numpy())

    def q_and_gradient(self, theta: Parameters, theta_t: Parameters) -> tuple[float, Parameters]:
        """Q(theta | theta_t), the expectation written out, and its gradient by torch."""
        joint_t = np.exp(self.joint_logps(theta_t))
        posterior = torch.from_numpy(joint_t / joint_t.sum(1, keepdims=True))
        w, beta = (torch.tensor(part, requires_grad=True) for part in theta)
        q = -(posterior * self.joint(w, beta, torch.from_numpy(self.x), torch.from_numpy(self.y))).sum(1).mean()
        q.backward()
        assert w.grad is not None and beta.grad is not None
        return float(q.detach()), Parameters(w.grad.numpy(), beta.grad.numpy())

    def densities(self, theta: Parameters, x: Array, y: Array) -> Array:
        """p(y | x) at one x [D] of many y."""
        xs = np.repeat(x[None], len(y), axis=0)
        joint = self.joint(*(torch.from_numpy(one) for one in (*theta, xs, y)))
        return np.asarray(torch.logsumexp(joint, 1).exp().numpy())


def cases() -> list[Case]:
    return [
        Case("symmetric_linear", symmetric_linear, joint_symmetric_linear, (3,), (3,)),
        Case("symmetric_logistic", symmetric_logistic, joint_symmetric_logistic, (3,), (3,)),
        Case("two linear", LinearExperts(), joint_linear, (1, 3), (2, 3)),
        Case("three linear", LinearExperts(), joint_linear, (2, 3), (3, 3)),
        Case("three logistic", LogisticExperts(), joint_logistic, (2, 3), (3, 3)),
        Case("two softmax", SoftmaxExperts(), joint_softmax, (1, 3), (2, 4, 3)),
    ]


SYMMETRIC = cases()[:2]
ALL = cases()
