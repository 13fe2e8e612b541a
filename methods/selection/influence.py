"""Optimization-based selection: remove the points whose removal moves the trained parameters least.

Yang et al.: "Dataset Pruning: Reducing Training Data by Examining Generalization Influence", 2022, arXiv 2205.09329.
By influence functions, removing a set R moves the parameters by about (1/N) sum_{i in R} H^{-1} grad loss_i; so choose

    R to minimise || sum_{i in R} H^{-1} grad loss_i ||_2         among the sets of N - k points.

The parameters are those of the proxy's last layer, of which gradient and Hessian have a closed form, and R is found
greedily, which is herding to 0 by distance (`herding.py`); both are ours.

Legend: N points, H features, C classes, P = C (H + 1) parameters of the last layer.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from pydantic import PositiveFloat

from methods.selection import proxy
from methods.selection.base import ProxyConfig, Selector
from methods.selection.herding import herd
from methods.selection.points import Array, Indices, checked
from methods.selection.proxy import Labelled


def last_layer(features_NH: Array, probabilities_NC: Array, labels_N: Indices) -> tuple[Array, Array]:
    """Gradient of each point's cross-entropy in the last layer, weights and bias, and the Hessian of their mean.

    Returns:
        [N, P] and [P, P]; the parameters in the order of [C, H + 1], the bias behind the weights of its class.
    """
    inputs_NI = np.concatenate([features_NH, np.ones((len(features_NH), 1))], axis=1)
    away_NC = probabilities_NC.copy()
    away_NC[np.arange(len(labels_N)), labels_N] -= 1
    gradient_NP = np.einsum("nc,ni->nci", away_NC, inputs_NI).reshape(len(inputs_NI), -1)
    classes, size = probabilities_NC.shape[1], inputs_NI.shape[1]
    hessian_CICI = np.zeros((classes, size, classes, size))
    for one in range(classes):
        for other in range(classes):
            curvature_N = probabilities_NC[:, one] * ((one == other) - probabilities_NC[:, other])
            hessian_CICI[one, :, other] = (inputs_NI * curvature_N[:, None]).T @ inputs_NI / len(inputs_NI)
    return gradient_NP, hessian_CICI.reshape(classes * size, -1)


def select(influence_NP: Array, k: int) -> Indices:
    """Keep k points: the others are taken one by one, each so that the sum of the taken stays shortest. Returns [k].

    Raises:
        ValueError: `checked`'s.
    """
    influence_NP = checked(influence_NP, k)
    none_P = np.zeros(influence_NP.shape[1])
    length_N = np.einsum("np,np->n", influence_NP, influence_NP)
    # || sum + v ||^2 = || sum ||^2 - 2 (<-sum, v> - || v ||^2 / 2), and theta is -sum.
    removed = herd(influence_NP, none_P, len(influence_NP) - k, none_P, -length_N / 2)
    return np.setdiff1d(np.arange(len(influence_NP)), removed)


@dataclass(frozen=True, kw_only=True)
class InfluenceConfig(ProxyConfig):
    """damping: added to the diagonal of the Hessian, which is singular."""

    per_class: bool = False
    damping: PositiveFloat = 0.01


class Influence(Selector):
    """Optimization-based selection: what is removed moves the parameters least (arXiv 2205.09329)."""

    config: InfluenceConfig
    data: ClassVar[tuple[str, ...]] = ("images",)

    def see(self, images: Labelled, seed: int) -> Array:
        """H^{-1} grad loss of every image [N, P], in the last layer."""
        network = self.fitted(images, seed, self.config.proxy_passes).network
        features_NH = proxy.embedded(network, images, "penultimate", 0)
        probabilities_NC = F.softmax(proxy.logits(network, images), 1).double().numpy()
        gradient_NP, hessian_PP = last_layer(features_NH, probabilities_NC, images.labels_N.numpy())
        hessian_PP += self.config.damping * np.eye(len(hessian_PP))
        return np.ascontiguousarray(np.linalg.solve(hessian_PP, gradient_NP.T).T, dtype=np.float64)

    def select(self, seen_N: Array, k: int, random: np.random.Generator) -> Indices:
        """Keep k."""
        return select(seen_N, k)
