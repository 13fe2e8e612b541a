"""Problems for mixtures of experts: points drawn from a mixture, and images of which some are inverted.

Drawn points: x ~ N(0, I), theta* on a sphere. Its radius, ||beta*|| and ||w*||, is the signal-to-noise ratio, as the
noise of the experts is 1; the definition of arXiv 2411.06056 is not in our sources. The start is theta* plus Gaussian
noise.

Inverted images: those of a data set, each turned to its negative with probability 1/2, where they are trained on and
where they are tested on: "Random Invert FMNIST" of the authors' slides. Two softmax experts with a logistic gate are to
find the two kinds.

Legend: N points, D features, K experts, J = K - 1, C classes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le, Lt
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from methods.dataset import Dataset
from methods.images import Images, ImagesConfig
from methods.mixtures import symmetric_linear, symmetric_logistic
from methods.mixtures.general import LinearExperts, LogisticExperts, SoftmaxExperts
from methods.mixtures.mixture import Mixture, MixtureData, Parameters

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SyntheticMixtureConfig:
    """model: which mixture; the symmetric ones have two experts, beta and -beta. classes: of softmax experts.

    n: points. d: features. snr: ||beta*||, of every expert (of softmax experts: of every class). gate_snr: ||w*||;
    null: snr. orientation: of w* to beta* in a symmetric mixture. error: size of the start's noise, relative to theta*.
    instances: problems, whose measures are averaged.
    """

    model: Literal["symmetric_linear", "symmetric_logistic", "linear", "logistic", "softmax"] = "symmetric_linear"
    experts: Annotated[int, Ge(2)] = 2
    classes: Annotated[int, Ge(2)] = 3
    n: PositiveInt = 1000
    d: PositiveInt = 10
    snr: NonNegativeFloat = 2.0
    gate_snr: NonNegativeFloat | None = None
    orientation: Literal["random", "orthogonal", "parallel"] = "random"
    error: NonNegativeFloat = 0.8
    instances: PositiveInt = 1

    def __post_init__(self) -> None:
        symmetric = self.model.startswith("symmetric")
        if symmetric and self.experts != 2:
            raise ValueError(f"dataset.experts={self.experts}: must be 2 for model {self.model}")
        if not symmetric and self.orientation != "random":
            raise ValueError(f"dataset.orientation={self.orientation}: must be random for model {self.model}")
        if self.orientation == "orthogonal" and self.d < 2:
            raise ValueError(f"dataset.d={self.d}: must be at least 2 for orientation orthogonal")
        if self.n < self.d:
            raise ValueError(
                f"dataset.n={self.n}: must be at least dataset.d={self.d}, or no regression has a solution"
            )
        classes = {"symmetric_logistic": 2, "logistic": 2, "softmax": self.classes}.get(self.model, 0)
        if self.n < classes:
            raise ValueError(f"dataset.n={self.n}: must be at least the number of classes, {classes}")


class SyntheticMixture(Dataset):
    """Points of a mixture of experts whose parameters are known."""

    config: SyntheticMixtureConfig
    type = "mixture"

    def load(self, seed: int) -> list[MixtureData]:
        """Draw the problems; each has a generator of its own."""
        return [self._draw(np.random.default_rng([seed, instance])) for instance in range(self.config.instances)]

    def _draw(self, random: np.random.Generator) -> MixtureData:
        config = self.config
        mixture, classes = _mixture(config)
        truth = _truth(config, random)
        x_ND = random.standard_normal((config.n, config.d))
        y_N = mixture.draw(truth, x_ND, random)
        start = Parameters(*(nearby(true, config.error, random) for true in truth))
        return MixtureData(mixture, x_ND, y_N, start, truth, classes=classes)


def on_sphere(shape: tuple[int, ...], radius: float, random: np.random.Generator) -> Array:
    """Vectors of the last axis, uniform on a sphere. Of the shape that is asked for."""
    drawn = random.standard_normal(shape)
    return np.asarray(radius * drawn / np.linalg.norm(drawn, axis=-1, keepdims=True))


def nearby(true: Array, error: float, random: np.random.Generator) -> Array:
    """`true` plus Gaussian noise whose squared norm is expected to be (error ||true||)^2."""
    scale = error * np.linalg.norm(true) / np.sqrt(true.size)
    return np.asarray(true + scale * random.standard_normal(true.shape))


def _mixture(config: SyntheticMixtureConfig) -> tuple[Mixture, int]:
    """The mixture and the classes of its y, 0 for a number."""
    if config.model == "symmetric_linear":
        return symmetric_linear, 0
    if config.model == "symmetric_logistic":
        return symmetric_logistic, 2
    if config.model == "linear":
        return LinearExperts(), 0
    return (LogisticExperts(), 2) if config.model == "logistic" else (SoftmaxExperts(), config.classes)


def _truth(config: SyntheticMixtureConfig, random: np.random.Generator) -> Parameters:
    gate_snr = config.snr if config.gate_snr is None else config.gate_snr
    d, experts = config.d, config.experts
    if not config.model.startswith("symmetric"):
        shape = (experts, config.classes, d) if config.model == "softmax" else (experts, d)
        return Parameters(on_sphere((experts - 1, d), gate_snr, random), on_sphere(shape, config.snr, random))
    beta_D, w_D = on_sphere((d,), 1.0, random), on_sphere((d,), 1.0, random)
    if config.orientation == "parallel":
        w_D = beta_D
    elif config.orientation == "orthogonal":
        w_D = w_D - (w_D @ beta_D) * beta_D
        w_D /= np.linalg.norm(w_D)
    return Parameters(gate_snr * w_D, config.snr * beta_D)


@dataclass(frozen=True, kw_only=True)
class InvertedImagesConfig(ImagesConfig):
    """Of the images: see `methods.images.ImagesConfig`; which are inverted is drawn from the run's seed.

    inversion: probability. experts: K. start: standard deviation of the first parameters. validation: share of the
    training images that is tested on in place of the test images, to choose by.
    """

    inversion: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    experts: Annotated[int, Ge(2)] = 2
    start: PositiveFloat = 0.1
    validation: Annotated[float, Ge(0.0), Lt(1.0)] = 0.0


class InvertedImages(Dataset):
    """Images with class labels, some of them inverted, for a mixture of softmax experts."""

    config: InvertedImagesConfig
    type = "mixture"

    def load(self, seed: int) -> list[MixtureData]:
        """Read, invert, draw the start: one problem. Features are the pixels, from 0 to 1, and a 1."""
        config = self.config
        images = Images(config).load(seed)
        random = np.random.default_rng([seed, 11])
        train, test = (images.images, images.labels), (images.test_images, images.test_labels)
        if config.validation:
            order = random.permutation(len(images.images))
            held, kept = np.split(order, [max(int(config.validation * len(order)), 1)])
            train, test = (train[0][kept], train[1][kept]), (train[0][held], train[1][held])
        if len(train[0]) < images.classes:
            cause = "validation" if config.validation else "limit"
            raise ValueError(
                f"dataset.{cause}={getattr(config, cause)}: must leave at least one point for each of {images.classes} "
                f"classes to be trained on, got {len(train[0])}"
            )
        (x_ND, y_N), (test_x_MD, test_y_M) = (
            (features(pixels, random.random(len(pixels)) < config.inversion), labels.astype(np.float64))
            for pixels, labels in (train, test)
        )
        d = x_ND.shape[1]
        start = Parameters(
            config.start * random.standard_normal((config.experts - 1, d)),
            config.start * random.standard_normal((config.experts, images.classes, d)),
        )
        return [
            MixtureData(
                SoftmaxExperts(), x_ND, y_N, start, test_x_MD=test_x_MD, test_y_M=test_y_M, classes=images.classes
            )
        ]


def features(pixels_NCHW: NDArray[np.uint8], inverted_N: NDArray[np.bool_]) -> Array:
    """Pixels from 0 to 1, v -> 1 - v where an image is inverted, and a 1 for the bias. Returns [N, C H W + 1]."""
    x_ND = np.ones((len(pixels_NCHW), pixels_NCHW[0].size + 1))
    x_ND[:, :-1] = pixels_NCHW.reshape(len(pixels_NCHW), -1) / 255
    x_ND[inverted_N, :-1] = 1 - x_ND[inverted_N, :-1]
    return x_ND
