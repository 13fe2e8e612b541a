"""Images with class labels: scikit-learn's digits, which need no download, and image sets of the hub or in files.

What goes wrong with a training set can be asked for (`label_noise`, `corruption`); what is tested on stays clean.

Legend: N images, C channels, H rows, W columns.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from evals.local_data import local_copy, reader
from methods.corruptions import corrupted
from methods.dataset import Dataset

Pixels = NDArray[np.uint8]  # [N, C, H, W]
Labels = NDArray[np.int64]  # [N]
Share = Annotated[float, Ge(0.0), Lt(1.0)]
Kept = Annotated[float, Gt(0.0), Le(1.0)]

_DIGITS_TEST = 500  # of scikit-learn's 1,797 digits
_HELD_OUT = 7  # seed of which images are held out
_PIECE = 256  # pictures that are decoded together
_DIGITS_SPLIT = 0  # seed of the permutation before they are split, which never changes


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """source: digits (of scikit-learn, 8 x 8), hub or file. path: of the hub or, for a file, its training part.

    split, test_split: names on the hub; for source file, test_split is the file to test on. held_out: share of the
    training images that are tested on in place of the test images, drawn once for all seeds. data_root: a folder that
    may hold a local copy. image, label: columns. limit: the first so many training images.

    classes: only images of these, numbered in this order; null: all. resize, mean, std, crop_padding, flip: what is
    done to an image before a model sees it (`Transform`); mean and std are one number, or one per channel. Of a picture
    that is no square or larger, the middle square is kept, at `resize`.

    label_noise: share of the training images that get a label drawn from the other classes, exactly int(share x N).
    corruption: share of the training images that are spoiled, a fifth each by Gaussian noise, occlusion, resolution,
    fog and motion blur. seed: of both; null: the run's.

    select, keep, select_options, select_run: a selector keeps a part of the training images (`runners/selecting.py`).
    """

    source: Literal["digits", "hub", "file"] = "digits"
    path: str | None = None
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    test_split: str = "test"
    held_out: Share = 0.0
    data_root: str | None = None
    image: str = "image"
    label: str = "label"
    limit: PositiveInt | None = None
    classes: list[int] | None = None
    resize: PositiveInt | None = None
    mean: list[float] = field(default_factory=lambda: [0.0])
    std: list[PositiveFloat] = field(default_factory=lambda: [1.0])
    crop_padding: NonNegativeInt = 0
    flip: bool = False
    label_noise: Share = 0.0
    corruption: Share = 0.0
    seed: NonNegativeInt | None = None
    select: str | None = None
    keep: Kept = 0.5
    select_options: dict[str, Any] | None = None
    select_run: list[str] | None = None

    def __post_init__(self) -> None:
        if self.source != "digits" and self.path is None:
            raise ValueError(f"dataset.path={self.path}: must be given for source {self.source}")
        if self.classes is not None and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise ValueError(f"dataset.classes={self.classes}: must be at least two different classes")


@dataclass(frozen=True)
class Transform:
    """What is done to an image before a model sees it.

    resize: side in pixels. mean, std: of pixels in [0, 1]. In training also: crop_padding, by how many pixels it may be
    moved in each direction; flip, whether half of the images are mirrored.
    """

    resize: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    crop_padding: int = 0
    flip: bool = False


@dataclass(frozen=True)
class ImageData:
    """Training and test images; `clean_labels` of the training ones before noise, and which are `corrupted`."""

    images: Pixels
    labels: Labels
    test_images: Pixels
    test_labels: Labels
    classes: int
    clean_labels: Labels
    is_corrupted: NDArray[np.bool_] = field(repr=False)
    transform: Transform = Transform()


class Images(Dataset):
    """Images with class labels, with label noise and corruption on request."""

    config: ImagesConfig
    type = "images"

    def load(self, seed: int) -> ImageData:
        """Read the images, then spoil those to be trained on."""
        config = self.config
        images, labels, test_images, test_labels = _digits() if config.source == "digits" else _stored(config)
        if config.held_out:
            order = np.random.default_rng(_HELD_OUT).permutation(len(images))
            tested, trained = np.split(order, [max(round(config.held_out * len(order)), 1)])
            images, labels, test_images, test_labels = images[trained], labels[trained], images[tested], labels[tested]
        if config.classes is not None:
            images, labels = _of_classes(images, labels, config.classes)
            test_images, test_labels = _of_classes(test_images, test_labels, config.classes)
            if not len(images) or not len(test_images):
                raise ValueError(f"dataset.classes={config.classes}: must leave images to train on and to test on")
        if config.limit is not None:
            images, labels = images[: config.limit], labels[: config.limit]
        classes = int(max(labels.max(), test_labels.max())) + 1
        random = np.random.default_rng([config.seed if config.seed is not None else seed, 7])
        noisy = with_label_noise(labels, classes, config.label_noise, random)
        chosen = random.permutation(len(images))[: int(config.corruption * len(images))]
        spoilt = images.copy()
        spoilt[chosen] = corrupted(images[chosen], random)
        is_corrupted = np.zeros(len(images), dtype=bool)
        is_corrupted[chosen] = True
        transform = Transform(config.resize, tuple(config.mean), tuple(config.std), config.crop_padding, config.flip)
        return ImageData(spoilt, noisy, test_images, test_labels, classes, labels, is_corrupted, transform)


def with_label_noise(labels_N: Labels, classes: int, share: float, random: np.random.Generator) -> Labels:
    """Symmetric noise: exactly int(share x N) labels become one of the other classes, each as likely. Returns [N].

    Raises:
        ValueError: there is no other class.
    """
    if share and classes < 2:
        raise ValueError(f"dataset.label_noise={share}: there must be at least two classes, got {classes}")
    noisy_N = labels_N.copy()
    chosen = random.permutation(len(labels_N))[: int(share * len(labels_N))]
    noisy_N[chosen] = (labels_N[chosen] + random.integers(1, max(classes, 2), len(chosen))) % classes
    return noisy_N


def _of_classes(images: Pixels, labels: Labels, classes: list[int]) -> tuple[Pixels, Labels]:
    """The images of some classes, which are numbered in their order."""
    kept = np.isin(labels, classes)
    numbers = {label: number for number, label in enumerate(classes)}
    return images[kept], np.array([numbers[int(label)] for label in labels[kept]], dtype=np.int64)


def _digits() -> tuple[Pixels, Labels, Pixels, Labels]:
    """scikit-learn's digits, grey levels 0 to 16 spread over 0 to 255; which are tested on never changes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(_DIGITS_SPLIT).permutation(len(digits.target))
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[order, None]
    labels = digits.target.astype(np.int64)[order]
    return pixels[_DIGITS_TEST:], labels[_DIGITS_TEST:], pixels[:_DIGITS_TEST], labels[:_DIGITS_TEST]


def _stored(config: ImagesConfig) -> tuple[Pixels, Labels, Pixels, Labels]:
    """What the hub or files hold. Grey pictures among coloured ones (Tiny ImageNet has some) become coloured too."""
    images, labels = _part(config, "split")
    test_images, test_labels = ([], labels[:0]) if config.held_out else _part(config, "test_split")
    every = images + test_images
    if any(len(image) == 3 for image in every):
        every = [np.repeat(image, 3, axis=0) if len(image) == 1 else image for image in every]
    shapes = sorted({image.shape for image in every})
    if len(shapes) > 1:
        raise ValueError(
            f"dataset.path={config.path}: all images must have one size, got {shapes[0]} and {shapes[1]}; with "
            "dataset.resize they are brought to one"
        )
    stacked = np.stack(every)
    return stacked[: len(images)], labels, stacked[len(images) :], test_labels


def _part(config: ImagesConfig, key: str) -> tuple[list[NDArray[np.uint8]], Labels]:
    """The images of the training or the test part, each [C, H, W], and their labels."""
    import datasets

    assert config.path is not None
    split: str = getattr(config, key)
    if config.source == "file":
        key, path = ("path", Path(config.path)) if key == "split" else (key, Path(split))
        if not path.is_file():
            raise ValueError(f"dataset.{key}={path}: must be a file for source file, got none of that name")
        rows: Any = datasets.load_dataset(reader(path), data_files=str(path), split="train")
    else:
        copy = local_copy(config.path, config.data_root).get(split)
        rows = (
            datasets.load_dataset(reader(copy), data_files=str(copy), split="train")
            if copy
            else datasets.load_dataset(config.path, config.name, revision=config.revision, split=split)
        )
    for column in (config.image, config.label):
        if column not in rows.column_names:
            raise ValueError(f"dataset.image, dataset.label: no column {column!r}; there are {rows.column_names}")
    if not len(rows):
        raise ValueError(f"dataset.{key}={getattr(config, key)}: must hold images, got none")
    labels = np.asarray(rows[config.label])
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        wrong = labels.flat[0] if labels.dtype.kind not in "iu" else labels.min()
        raise ValueError(f"dataset.label={config.label}: must hold whole numbers from 0, got {wrong!s}")
    # Piece by piece: pictures as they are stored may be far larger than what is kept of them.
    pictures = (image for piece in rows.select_columns([config.image]).iter(_PIECE) for image in piece[config.image])
    return [_fitted(_channels(image, config.image), config.resize) for image in pictures], labels.astype(np.int64)


def _fitted(image_CHW: NDArray[np.uint8], side: int | None) -> NDArray[np.uint8]:
    """The middle square of a picture whose shorter side was brought to `side`; a smaller square stays as it is."""
    channels, height, width = image_CHW.shape
    if side is None or (height == width and height <= side):
        return image_CHW
    from PIL import Image

    scale = side / min(height, width)
    size = (max(round(width * scale), side), max(round(height * scale), side))
    picture = Image.fromarray(image_CHW[0] if channels == 1 else image_CHW.transpose(1, 2, 0))
    array = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    array = array[top : top + side, left : left + side]
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _channels(image: Any, column: str) -> NDArray[np.uint8]:
    """A picture, or nested lists of levels from 0 to 255, as [C, H, W]; grey pictures stay grey."""
    array = np.asarray(image if isinstance(image, list) else image.convert("L" if image.mode == "L" else "RGB"))
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise ValueError(f"dataset.image={column}: must hold images of one or three channels, got shape {array.shape}")
    if array.min() < 0 or array.max() > 255 or (array != np.round(array)).any():
        raise ValueError(
            f"dataset.image={column}: must hold whole numbers from 0 to 255, got {array.min():g} to {array.max():g}"
        )
    return (array[None] if array.ndim == 2 else array.transpose(2, 0, 1)).astype(np.uint8)
