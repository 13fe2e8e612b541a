"""What all selectors share: a number of points to choose, and what the choice is worth.

On points of which it is known which are bad (`data.py`), the subset itself is measured: the share of bad points, how
far its mean is from that of the clean points (`error`), and how wide it is (`trace`, of its covariance, over that of
the clean points). On images, the selector chooses by what it sees of each (`see`): most train a proxy network on all of
them, wrong labels included, and take what it makes of each image; a new network is trained on the chosen, and its test
accuracy counts.

Legend: N points, D dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from methods.images import ImageData
from methods.method import Context
from methods.selection import class_wise, proxy
from methods.selection.data import Features
from methods.selection.geometric_median import error_bound, weiszfeld
from methods.selection.points import Array, Indices
from methods.selection.proxy import Labelled
from methods.simulation import Simulation

Share = Annotated[float, Gt(0.0), Le(1.0)]


@dataclass(frozen=True, kw_only=True)
class SelectorConfig:
    """keep: shares of the points that are kept, one after the other. k: numbers of points, in place of shares.

    What follows is for images. per_class: choose within each class, by the labels as they are. hidden: units of a layer
    of the network that is trained in the end, and of a proxy. steps, batch_size, lr: of Adam, on the chosen; the last
    two are those of a proxy too.
    """

    keep: list[Share] = field(default_factory=lambda: [0.2, 0.3, 0.4])
    k: list[PositiveInt] | None = None
    per_class: bool = True
    hidden: PositiveInt = 64
    steps: PositiveInt = 600
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1e-3

    def __post_init__(self) -> None:
        for key, values in (("keep", self.keep), ("k", self.k)):
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"method.{key}={values}: must list at least one size, each once")


@dataclass(frozen=True, kw_only=True)
class ProxyConfig(SelectorConfig):
    """proxy_passes: over all images, of the proxy that is trained on them."""

    proxy_passes: PositiveInt = 20


@dataclass(frozen=True, kw_only=True)
class EmbeddedConfig(ProxyConfig):
    """embedding: penultimate, pca (of it), logits or pixels (their principal components, without a proxy).

    components: of pca and pixels.
    """

    embedding: Literal["penultimate", "pca", "logits", "pixels"] = "penultimate"
    components: PositiveInt = 16


class Selector(Simulation):
    """Base of selectors. A subclass implements `select`, and `see`; one that chooses by an embedding is `Embedded`."""

    config: SelectorConfig
    data: ClassVar[tuple[str, ...]] = ("features", "images")
    blind: ClassVar[bool] = False  # it chooses without looking, so that nothing need be embedded

    def select(self, seen_N: Array, k: int, random: np.random.Generator) -> Indices:
        """Choose k of the points (of a class). Returns positions [k].

        Args:
            seen_N: what `see` returned for them: one number or one row for each.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement select")

    def see(self, images: Labelled, seed: int) -> Array:
        """What the images are chosen by, of all of them: one number [N] or one row [N, D] for each."""
        raise NotImplementedError(f"{type(self).__name__} must implement see")

    def fitted(self, images: Labelled, seed: int, passes: int) -> proxy.Trained:
        """A proxy: a network trained on all images, in so many passes over them."""
        steps = passes * -(-len(images.labels_N) // self.config.batch_size)
        return self._trained(images, seed, steps)

    def run(self, context: Context) -> Mapping[str, float]:
        """Choose so many points, for each number asked for, and measure the choice."""
        loaded = context.dataset
        return self._on_images(context, loaded) if isinstance(loaded, ImageData) else self._on_points(context, loaded)

    def _on_points(self, context: Context, points: Features) -> dict[str, float]:
        if not np.isfinite(points.points_ND).all():
            raise ValueError(f"dataset._target_={context.config['dataset']['_target_']}: all its points must be finite")
        sizes = self._sizes(len(points.points_ND), 1)
        measured = described(points)
        errors: dict[int, float] = {}
        for number in context.steps("choosing", len(sizes)):
            name, k = list(sizes.items())[number]
            chosen = self.select(points.points_ND, k, _random(context))
            subset = measure(points, chosen)
            context.log({f"subset/{key}": value for key, value in subset.items()}, k)
            measured |= {f"{key}/{name}": value for key, value in subset.items()}
            errors[k] = subset["error"]
        if len(errors) > 2 and min(errors.values()) > 0:
            measured["rate/slope"] = float(np.polyfit(np.log(list(errors)), np.log(list(errors.values())), 1)[0])
        return measured

    def _on_images(self, context: Context, loaded: ImageData) -> dict[str, float]:
        images = proxy.labelled(loaded.images, loaded.labels, loaded.classes)
        tested = proxy.labelled(loaded.test_images, loaded.test_labels, loaded.classes)
        labelled_N = np.bincount(loaded.labels, minlength=loaded.classes)
        sizes = self._sizes(len(loaded.labels), int((labelled_N > 0).sum()) if self.config.per_class else 1)
        seen_N = self.see(images, context.seed)
        if not np.isfinite(seen_N).all():
            raise ValueError(f"method.lr={self.config.lr}: what the proxy makes of the images is not finite; lower it")
        is_wrong_N = loaded.labels != loaded.clean_labels
        measured = {"data/wrong": float(is_wrong_N.mean()), "data/corrupted": float(loaded.is_corrupted.mean())}
        for number in context.steps("choosing and training", len(sizes)):
            name, k = list(sizes.items())[number]
            chosen = self._choose(seen_N, loaded.labels, k, _random(context))
            network = self._trained(images.of(chosen), context.seed, self.config.steps).network
            measured |= {
                f"accuracy/{name}": proxy.accuracy(network, tested),
                f"wrong/{name}": float(is_wrong_N[chosen].mean()),
                f"corrupted/{name}": float(loaded.is_corrupted[chosen].mean()),
            }
        return measured

    def _choose(self, seen_N: Array, labels_N: Indices, k: int, random: np.random.Generator) -> Indices:
        if not self.config.per_class:
            return self.select(seen_N, k, random)
        return class_wise.select(labels_N, k, lambda members, share: self.select(seen_N[members], share, random))

    def _trained(self, images: Labelled, seed: int, steps: int) -> proxy.Trained:
        config = self.config
        return proxy.train(
            images, hidden=config.hidden, steps=steps, batch_size=config.batch_size, lr=config.lr, seed=seed
        )

    def _sizes(self, count: int, classes: int) -> dict[str, int]:
        """How many points are chosen, by the name of that in the metrics: a number, or a share in percent."""
        sizes: dict[str, int] = {}
        for asked in self.config.keep if self.config.k is None else self.config.k:
            key, k = ("keep", round(asked * count)) if self.config.k is None else ("k", int(asked))
            if k > count:
                raise ValueError(f"method.k={k}: must be at most {count}, the number of points")
            if k < classes:
                least = f"one for each of the {classes} classes" if classes > 1 else "one"
                raise ValueError(f"method.{key}={asked}: must choose at least {least} of {count} points, got {k}")
            sizes[f"{100 * asked:g}" if self.config.k is None else str(k)] = k
        return sizes


class Embedded(Selector):
    """Base of selectors by an embedding: what a proxy makes of each image, or the pixels themselves."""

    config: EmbeddedConfig

    def see(self, images: Labelled, seed: int) -> Array:
        """The embedding of all images [N, D]."""
        config = self.config
        if config.embedding == "pixels":
            return proxy.principal_components(images.pixels_NP.double().numpy(), config.components)
        network = self.fitted(images, seed, config.proxy_passes).network
        return proxy.embedded(network, images, config.embedding, config.components)


def _random(context: Context) -> np.random.Generator:
    """The same for every size, so that what is drawn for a smaller one is part of what is drawn for a larger one."""
    return np.random.default_rng([context.seed, 11])


def described(points: Features) -> dict[str, float]:
    """The data themselves: share of bad points, how far mean and geometric median of all are from the clean mean.

    `data/bound` is what Theorem 1 of arXiv 2406.17188 leaves of the error (its root), where the bad are a minority.
    """
    clean_ND = points.points_ND[~points.is_bad_N]
    centre_D, bad = clean_ND.mean(0), int(points.is_bad_N.sum())
    found = {
        "data/bad": float(points.is_bad_N.mean()),
        "data/mean_error": float(np.linalg.norm(points.points_ND.mean(0) - centre_D)),
        "data/gm_error": float(np.linalg.norm(weiszfeld(points.points_ND) - centre_D)),
    }
    return found | ({"data/bound": error_bound(clean_ND, bad) ** 0.5} if bad < len(clean_ND) else {})


def measure(points: Features, chosen: NDArray[np.int64]) -> dict[str, float]:
    """bad: share of bad points among the chosen. error: of their mean. trace: of their covariance; as in the module."""
    clean_ND, chosen_KD = points.points_ND[~points.is_bad_N], points.points_ND[chosen]
    return {
        "bad": float(points.is_bad_N[chosen].mean()),
        "error": float(np.linalg.norm(chosen_KD.mean(0) - clean_ND.mean(0))),
        "trace": float(chosen_KD.var(0).sum() / max(clean_ND.var(0).sum(), np.finfo(float).tiny)),
    }
