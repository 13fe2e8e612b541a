"""Selection by a score of difficulty: forgetting events, EL2N or GraNd; the highest are kept.

forgetting  how often an image was classified as labelled at one pass of training and not at the next; infinite for one
            that never was: Toneva et al., ICLR 2019, arXiv 1812.05159
el2n        E || p(x) - onehot(y) ||_2                early in training, the mean over initialisations
grand       E || gradient of the loss of (x, y) ||_2  the same; both of Paul et al., NeurIPS 2021, arXiv 2107.07075

Under label noise the wrong labels are among the highest, which is what GM Matching's tables show (arXiv 2406.17188).

Legend: N points, C classes, T passes or initialisations.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import PositiveInt

from methods.selection import proxy
from methods.selection.base import ProxyConfig, Selector
from methods.selection.points import Array, Indices, check_count
from methods.selection.proxy import Labelled


def forgetting(correct_TN: NDArray[np.bool_]) -> Array:
    """Forgetting events in a record of T passes; inf for what was never right. Returns [N]."""
    events_N = (correct_TN[:-1] & ~correct_TN[1:]).sum(0).astype(np.float64)
    events_N[~correct_TN.any(0)] = np.inf
    return events_N


def el2n(probabilities_TNC: Array, labels_N: Indices) -> Array:
    """Mean distance of the predicted probabilities to the label's corner, over T networks. Returns [N]."""
    away_TNC = np.array(probabilities_TNC, dtype=np.float64)
    away_TNC[:, np.arange(len(labels_N)), labels_N] -= 1
    return np.linalg.norm(away_TNC, axis=2).mean(0)


def grand(gradient_norms_TN: Array) -> Array:
    """Mean length of a point's own gradient, over T networks. Returns [N]."""
    return np.asarray(gradient_norms_TN, dtype=np.float64).mean(0)


def select(scores_N: Array, k: int) -> Indices:
    """The k highest; of equal ones the first. Returns [k], from the highest on.

    Raises:
        ValueError: a score is not a number, or k is not from 1 to N.
    """
    check_count(len(scores_N), k)
    if np.isnan(scores_N).any():
        raise ValueError(f"scores: must be numbers, got nan at {int(np.flatnonzero(np.isnan(scores_N))[0])}")
    return np.argsort(-scores_N, kind="stable")[:k]


@dataclass(frozen=True, kw_only=True)
class ScoredConfig(ProxyConfig):
    """score: forgetting (over proxy_passes, at least two), el2n or grand. early_passes, inits: of el2n and grand."""

    per_class: bool = False
    score: Literal["forgetting", "el2n", "grand"] = "el2n"
    early_passes: PositiveInt = 10
    inits: PositiveInt = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score == "forgetting" and self.proxy_passes < 2:
            raise ValueError(
                f"method.proxy_passes={self.proxy_passes}: must be at least 2 for method.score=forgetting, which "
                "compares each pass with the next"
            )


class Scored(Selector):
    """Base of selectors by a score of difficulty, which labelled images have."""

    config: ScoredConfig
    data: ClassVar[tuple[str, ...]] = ("images",)

    def see(self, images: Labelled, seed: int) -> Array:
        """The scores of all images [N]."""
        config = self.config
        if config.score == "forgetting":
            return _finite(forgetting(self.fitted(images, seed, config.proxy_passes).correct_TN))
        labels_N = images.labels_N.numpy()
        # The first starts as the network that the other selectors see.
        early = [
            self.fitted(images, seed + 1000 * number, config.early_passes).network for number in range(config.inits)
        ]
        if config.score == "grand":
            return grand(np.stack([proxy.gradient_norms(each, images.pixels_NP, images.labels_N) for each in early]))
        return el2n(np.stack([F.softmax(proxy.logits(each, images), 1).double().numpy() for each in early]), labels_N)


def _finite(events_N: Array) -> Array:
    """Never learnt: one event more than any other."""
    return np.where(np.isinf(events_N), np.max(events_N, where=np.isfinite(events_N), initial=0) + 1, events_N)


class Scores(Scored):
    """The images of highest difficulty: forgetting events, EL2N or GraNd (arXiv 1812.05159, 2107.07075)."""

    def select(self, seen_N: Array, k: int, random: np.random.Generator) -> Indices:
        """The highest scores."""
        return select(seen_N, k)
