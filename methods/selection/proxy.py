"""A small network on images, for two things: as the proxy by which points are chosen, and to be trained on the chosen.

An MLP on pixels with two hidden layers, trained by Adam for a number of steps, whatever the number of images. All of it
is ours: a miniature of the ResNets of GM Matching's experiments (arXiv 2406.17188, 2504.00564).

Legend: N images, P pixels, H hidden units, C classes, T passes over the images.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from methods.selection.points import Array

Embedding = Literal["penultimate", "pca", "logits"]


class Labelled(NamedTuple):
    """Images as rows of pixels, in units of their range, with their labels: pixels_NP, labels_N of `classes`."""

    pixels_NP: Tensor
    labels_N: Tensor
    classes: int

    def of(self, chosen_K: NDArray[np.int64]) -> "Labelled":
        """The chosen ones."""
        kept_K = torch.from_numpy(chosen_K)
        return self._replace(pixels_NP=self.pixels_NP[kept_K], labels_N=self.labels_N[kept_K])


def labelled(images_NCHW: NDArray[np.uint8], labels_N: NDArray[np.int64], classes: int) -> Labelled:
    """Images as the network takes them: grey levels from -1 to 1."""
    pixels_NP = torch.from_numpy(images_NCHW.reshape(len(images_NCHW), -1).astype(np.float32) / 127.5 - 1)
    return Labelled(pixels_NP, torch.from_numpy(labels_N), classes)


class Network(nn.Module):
    """An MLP from pixels to logits; `body` gives the penultimate features."""

    def __init__(self, pixels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, classes)

    def forward(self, pixels_NP: Tensor) -> Tensor:
        """Logits [N, C]."""
        logits_NC: Tensor = self.head(self.body(pixels_NP))
        return logits_NC


class Trained(NamedTuple):
    """A network and correct_TN, whether each image was classified as it is labelled when a pass came to it."""

    network: Network
    correct_TN: NDArray[np.bool_]


def train(images: Labelled, *, hidden: int, steps: int, batch_size: int, lr: float, seed: int) -> Trained:
    """Train a new network by Adam on the cross-entropy; a last pass that `steps` cuts short is not in correct_TN.

    Raises:
        ValueError: the loss is not finite.
    """
    torch.manual_seed(seed)
    network = Network(images.pixels_NP.shape[1], hidden, images.classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    random = torch.Generator().manual_seed(seed)
    count, done = len(images.labels_N), 0
    passes: list[Tensor] = []
    while done < steps:
        correct_N = torch.zeros(count, dtype=torch.bool)
        for batch in torch.randperm(count, generator=random).split(batch_size):
            if done == steps:
                return Trained(network, _stacked(passes, count))
            logits_BC = network(images.pixels_NP[batch])
            loss = F.cross_entropy(logits_BC, images.labels_N[batch])
            if not torch.isfinite(loss):
                raise ValueError(f"method.lr={lr}: the loss is {float(loss.detach())} at step {done}; lower it")
            correct_N[batch] = logits_BC.detach().argmax(1) == images.labels_N[batch]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
        passes.append(correct_N)
    return Trained(network, _stacked(passes, count))


def _stacked(passes: list[Tensor], count: int) -> NDArray[np.bool_]:
    return np.stack([each.numpy() for each in passes]) if passes else np.zeros((0, count), dtype=bool)


@torch.no_grad()
def logits(network: Network, images: Labelled) -> Tensor:
    """Logits of all images [N, C]."""
    found_NC: Tensor = network(images.pixels_NP)
    return found_NC


def accuracy(network: Network, images: Labelled) -> float:
    """Share of the images that are classified as they are labelled."""
    return float((logits(network, images).argmax(1) == images.labels_N).float().mean())


@torch.no_grad()
def embedded(network: Network, images: Labelled, how: Embedding, components: int) -> Array:
    """What the network makes of all images. Returns [N, D].

    penultimate: the features before its last layer, D = H. pca: their leading `components` principal components.
    logits: D = C.
    """
    if how == "logits":
        return logits(network, images).double().numpy()
    features_ND = network.body(images.pixels_NP).double().numpy()
    return features_ND if how == "penultimate" else principal_components(features_ND, components)


def principal_components(points_ND: Array, components: int) -> Array:
    """The points' coordinates along the directions in which they vary most; all, where D is fewer. Returns [N, K]."""
    centred_ND = points_ND - points_ND.mean(0)
    _, _, directions_DD = np.linalg.svd(centred_ND, full_matrices=False)
    return centred_ND @ directions_DD[:components].T


def gradient_norms(network: nn.Module, pixels_NP: Tensor, labels_N: Tensor, chunk: int = 256) -> Array:
    """Length of the gradient of each image's own cross-entropy in all weights of the network. Returns [N]."""
    weights = {name: weight.detach() for name, weight in network.named_parameters()}

    def own_loss(weights: dict[str, Tensor], pixels_P: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(network, weights, (pixels_P[None],)), label[None])

    gradients = torch.func.vmap(torch.func.grad(own_loss), in_dims=(None, 0, 0))
    norms = []
    for start in range(0, len(labels_N), chunk):
        own = gradients(weights, pixels_NP[start : start + chunk], labels_N[start : start + chunk])
        norms.append(sum(gradient.flatten(1).square().sum(1) for gradient in own.values()).sqrt())
    return torch.cat(norms).double().numpy()
