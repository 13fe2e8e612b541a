"""The small network: what it learns, what it records, its gradients and embeddings."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from methods.selection import proxy


def two_classes(n: int = 60) -> proxy.Labelled:
    """Dark and bright images of 2 x 2."""
    random = np.random.default_rng(0)
    labels = np.arange(n) % 2
    images = (labels[:, None, None, None] * 155 + random.integers(0, 100, (n, 1, 2, 2))).astype(np.uint8)
    return proxy.labelled(images, labels, 2)


def trained(steps: int, seed: int = 0, lr: float = 0.01) -> proxy.Trained:
    return proxy.train(two_classes(), hidden=8, steps=steps, batch_size=20, lr=lr, seed=seed)


def test_pixels_are_in_units_of_their_range() -> None:
    images = proxy.labelled(np.array([[[[0, 255]]]], dtype=np.uint8), np.array([1]), 3)
    assert images.pixels_NP.tolist() == [[-1, 1]] and images.labels_N.tolist() == [1] and images.classes == 3
    assert two_classes().of(np.array([3, 0])).labels_N.tolist() == [1, 0]


def test_it_learns_and_says_when_each_image_was_right() -> None:
    found = trained(60)
    assert proxy.accuracy(found.network, two_classes()) == 1
    assert found.correct_TN.shape == (20, 60)  # 3 steps to a pass
    assert found.correct_TN[-1].all() and not found.correct_TN[0].all()
    assert trained(7).correct_TN.shape == (2, 60)  # the third pass was cut short
    assert trained(2).correct_TN.shape == (0, 60)


def test_the_seed_decides() -> None:
    one, same, other = (next(iter(trained(5, seed).network.parameters())) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_loss_that_is_not_finite_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^method.lr=1e\+30: the loss is (nan|inf) at step \d+; lower it$"):
        trained(20, lr=1e30)


def test_gradient_norms_are_those_of_single_images() -> None:
    images, network = two_classes(9), trained(5).network
    found = proxy.gradient_norms(network, images.pixels_NP, images.labels_N, chunk=4)
    for number in range(9):
        network.zero_grad()
        F.cross_entropy(network(images.pixels_NP[number : number + 1]), images.labels_N[number : number + 1]).backward()
        squares = [float(weight.grad.square().sum()) for weight in network.parameters() if weight.grad is not None]
        assert found[number] == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)


def test_embeddings() -> None:
    images, network = two_classes(), trained(10).network
    penultimate = proxy.embedded(network, images, "penultimate", 3)
    assert penultimate.shape == (60, 8)
    head = network.head.weight.detach().numpy(), network.head.bias.detach().numpy()
    np.testing.assert_allclose(
        penultimate @ head[0].T + head[1], proxy.embedded(network, images, "logits", 3), atol=1e-5
    )
    reduced = proxy.embedded(network, images, "pca", 3)
    covariance = np.cov(penultimate.T, ddof=0)
    np.testing.assert_allclose(reduced.var(0), np.sort(np.linalg.eigvalsh(covariance))[::-1][:3], atol=1e-9)
    np.testing.assert_allclose(np.cov(reduced.T, ddof=0), np.diag(reduced.var(0)), atol=1e-9)


def test_principal_components_keep_distances_where_all_are_kept() -> None:
    pixels = two_classes().pixels_NP.double().numpy()
    found = proxy.principal_components(pixels, 4)
    np.testing.assert_allclose(np.linalg.norm(found[0] - found[1]), np.linalg.norm(pixels[0] - pixels[1]), rtol=1e-9)
    assert proxy.principal_components(pixels, 99).shape == (60, 4)
