"""Influence of the last layer against automatic differentiation; the greedy set against all sets."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from methods.selection import influence


def test_gradients_and_hessian_of_the_last_layer() -> None:
    random = torch.Generator().manual_seed(0)
    features, labels = torch.randn(7, 3, generator=random, dtype=torch.float64), torch.tensor([0, 1, 3, 2, 1, 0, 3])
    weights = torch.randn(4, 4, generator=random, dtype=torch.float64)  # [C, H + 1]
    inputs = torch.cat([features, torch.ones(7, 1, dtype=torch.float64)], dim=1)
    gradient, hessian = influence.last_layer(features.numpy(), F.softmax(inputs @ weights.T, 1).numpy(), labels.numpy())

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(inputs @ flat.reshape(4, 4).T, labels)

    exact = torch.autograd.functional.hessian(loss, weights.flatten())
    np.testing.assert_allclose(hessian, exact.numpy(), atol=1e-12)
    for number in range(7):
        own = weights.clone().requires_grad_()
        F.cross_entropy(inputs[number : number + 1] @ own.T, labels[number : number + 1]).backward()
        assert own.grad is not None
        np.testing.assert_allclose(gradient[number], own.grad.flatten().numpy(), atol=1e-12)


def test_removed_one_by_one_so_that_their_sum_stays_shortest() -> None:
    vectors = np.random.default_rng(0).standard_normal((12, 3))
    removed: list[int] = []
    for _ in range(7):
        left = [index for index in range(12) if index not in removed]
        removed.append(min(left, key=lambda index: float(np.linalg.norm(vectors[[*removed, index]].sum(0)))))
    assert influence.select(vectors, 5).tolist() == sorted(set(range(12)) - set(removed))


def test_the_sum_is_nearly_the_shortest_there_is() -> None:
    """Of all sets of 6 of 12, the greedy ones are among the best tenth, in the mean over ten draws of the vectors."""
    ranks = []
    for seed in range(10):
        vectors = np.random.default_rng(seed).standard_normal((12, 2))
        lengths = [np.linalg.norm(vectors[list(one)].sum(0)) for one in itertools.combinations(range(12), 6)]
        found = np.linalg.norm(np.delete(vectors, influence.select(vectors, 6), axis=0).sum(0))
        ranks.append(np.mean(np.array(lengths) < found - 1e-12))
    assert np.mean(ranks) < 0.1


def test_all_kept() -> None:
    assert influence.select(np.ones((4, 2)), 4).tolist() == [0, 1, 2, 3]
