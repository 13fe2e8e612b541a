"""Image data: the digits, files, what is spoiled of a training set and how exactly, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from methods import corruptions, images
from methods.images import ImageData, Images, ImagesConfig


def load(seed: int = 1, **settings: Any) -> ImageData:
    return Images(ImagesConfig(**settings)).load(seed)


def test_digits() -> None:
    digits = load()
    assert digits.images.shape == (1297, 1, 8, 8) and digits.test_images.shape == (500, 1, 8, 8)
    assert digits.images.dtype == np.uint8 and digits.images.min() == 0 and digits.images.max() == 255
    assert digits.classes == 10 and set(digits.labels) == set(digits.test_labels) == set(range(10))
    assert (digits.labels == digits.clean_labels).all() and not digits.is_corrupted.any()


def test_every_digit_is_trained_or_tested_on_once() -> None:
    from sklearn.datasets import load_digits

    ours = load()
    found = sorted(image.tobytes() for image in (*ours.images, *ours.test_images))
    levels = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert found == sorted(image.tobytes() for image in levels)


def test_what_is_tested_on_never_changes() -> None:
    for other in (load(2), load(1, label_noise=0.5, corruption=0.5), load(1, limit=7)):
        assert (other.test_images == load(1).test_images).all() and (other.test_labels == load(1).test_labels).all()


def test_label_noise_hits_exactly_so_many_and_never_the_label_itself() -> None:
    noisy = load(label_noise=0.35)
    wrong = noisy.labels != noisy.clean_labels
    assert wrong.sum() == int(0.35 * 1297)
    assert (noisy.clean_labels == load().labels).all() and (noisy.images == load().images).all()


def test_noisy_labels_are_uniform_over_the_other_classes() -> None:
    labels = np.repeat(np.arange(4), 3000)
    noisy = images.with_label_noise(labels, 4, 0.6, np.random.default_rng(0))
    counted = np.zeros((4, 4))
    np.add.at(counted, (labels, noisy), 1)
    np.testing.assert_allclose(counted / 3000, 0.4 * np.eye(4) + 0.2 * (1 - np.eye(4)), atol=0.03)
    assert (labels == np.repeat(np.arange(4), 3000)).all()


def test_no_noise_and_one_class() -> None:
    labels = np.zeros(5, dtype=np.int64)
    assert (images.with_label_noise(labels, 1, 0.0, np.random.default_rng(0)) == labels).all()
    with pytest.raises(ValueError, match=r"^dataset.label_noise=0.2: there must be at least two classes, got 1$"):
        images.with_label_noise(labels, 1, 0.2, np.random.default_rng(0))


def test_corruption_spoils_exactly_those_it_says() -> None:
    spoilt, clean = load(corruption=0.2), load()
    assert spoilt.is_corrupted.sum() == int(0.2 * 1297)
    changed = (spoilt.images != clean.images).any((1, 2, 3))
    assert not changed[~spoilt.is_corrupted].any() and changed[spoilt.is_corrupted].mean() > 0.97
    assert (spoilt.labels == clean.labels).all()


def test_each_corruption_has_a_fifth(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    for name in ("gaussian_noise", "occlusion", "lower_resolution", "fog", "motion_blur"):
        kind = getattr(corruptions, name)
        monkeypatch.setattr(corruptions, name, lambda x, r, kind=kind: counted.append(len(x)) or kind(x, r))
    load(corruption=0.2)
    assert counted == [52, 52, 52, 52, 51]


def test_the_seed_decides_unless_the_data_set_has_its_own() -> None:
    noise = {"label_noise": 0.2, "corruption": 0.2}
    one, again, other = load(1, **noise), load(1, **noise), load(2, **noise)
    assert (one.labels == again.labels).all() and (one.images == again.images).all()
    assert (one.labels != other.labels).any() and (one.is_corrupted != other.is_corrupted).any()
    fixed = [Images(ImagesConfig(seed=5, **noise)).load(seed) for seed in (1, 2)]
    assert (fixed[0].labels == fixed[1].labels).all() and (fixed[0].images == fixed[1].images).all()


def test_limit_takes_the_first() -> None:
    assert (load(limit=20).images == load().images[:20]).all() and load(limit=20).classes == 10


def test_some_classes_are_numbered_in_their_order() -> None:
    whole, some = load(), load(classes=[8, 3])
    kept = np.isin(whole.labels, [3, 8])
    assert some.classes == 2 and (some.images == whole.images[kept]).all()
    assert (some.labels == np.where(whole.labels[kept] == 8, 0, 1)).all()
    assert set(some.test_labels) == {0, 1}


# Files -----------------------------------------------------------------------------------------------------------


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def from_files(folder: Path, train: list[Any], test: list[Any], **settings: Any) -> ImageData:
    """Images as nested lists, labelled 0, 1, 0, ... unless a row is given whole."""
    files = {}
    for name, part in (("train", train), ("test", test)):
        rows = [one if isinstance(one, dict) else {"image": one, "label": n % 2} for n, one in enumerate(part)]
        files[name] = written(folder / f"{name}.jsonl", rows)
    return load(source="file", path=files["train"], test_split=files["test"], **settings)


GREY = [[0, 50, 255], [1, 2, 3]]
COLOURED = [[[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[10, 11, 12], [13, 14, 15], [16, 17, 18]]]


def test_grey_levels_from_files(tmp_path: Path) -> None:
    found = from_files(tmp_path, [GREY, GREY, GREY], [GREY])
    assert found.images.shape == (3, 1, 2, 3) and found.images[0, 0].tolist() == GREY
    assert found.labels.tolist() == [0, 1, 0] and found.test_labels.tolist() == [0] and found.classes == 2


def test_channels_come_first(tmp_path: Path) -> None:
    found = from_files(tmp_path, [COLOURED], [COLOURED])
    assert found.images.shape == (1, 3, 2, 3) and found.images[0, 1].tolist() == [[2, 5, 8], [11, 14, 17]]


def test_the_middle_square_of_pictures_of_several_sizes(tmp_path: Path) -> None:
    wide = [[0, 0, 90, 90, 0, 0]] * 2  # height 2, width 6
    large = [[40] * 4] * 4
    with pytest.raises(ValueError, match="all images must have one size"):
        from_files(tmp_path, [wide, large], [large])
    found = from_files(tmp_path, [wide, large], [large], resize=2)
    assert found.images.shape == (2, 1, 2, 2) and found.test_images.shape == (1, 1, 2, 2)
    assert (found.images[0] == 90).all() and (found.images[1] == 40).all()
    small = from_files(tmp_path, [GREY[:1], GREY[:1]], [GREY[:1]], resize=1)
    assert small.images.tolist() == [[[[50]]]] * 2
    assert from_files(tmp_path, [large], [large], resize=8).images.shape == (1, 1, 4, 4)  # enlarged with its batch


def test_a_share_is_held_out(tmp_path: Path) -> None:
    pictures = [[[n, n], [n, n]] for n in range(20)]
    path = written(tmp_path / "all.jsonl", [{"image": one, "label": n % 3} for n, one in enumerate(pictures)])
    found, other = (load(seed, source="file", path=path, held_out=0.25) for seed in (1, 2))
    tested, trained = (sorted(images[:, 0, 0, 0].tolist()) for images in (found.test_images, found.images))
    assert len(tested) == 5 and sorted(tested + trained) == list(range(20))
    assert (found.test_images == other.test_images).all() and (found.images == other.images).all()
    assert (found.labels == found.images[:, 0, 0, 0] % 3).all()
    digits, part = load(), load(held_out=0.2)
    assert len(part.test_images) == 259 and len(part.images) + 259 == len(digits.images)
    assert not (part.test_images[:, None] == digits.test_images).all((2, 3, 4)).any(1).all()


def test_a_grey_picture_among_coloured_ones_gets_their_channels(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    grey, coloured = (np.array(one, dtype=np.uint8) for one in (GREY, COLOURED))
    import datasets

    for name, pictures in (("train", [coloured, grey]), ("test", [grey])):
        rows = {"image": [Image.fromarray(one) for one in pictures], "label": list(range(len(pictures)))}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{name}.parquet")
    found = load(source="file", path=str(folder / "train.parquet"), test_split=str(folder / "test.parquet"))
    assert found.images.shape == (2, 3, 2, 3) and found.test_images.shape == (1, 3, 2, 3)
    assert (found.images[0] == coloured.transpose(2, 0, 1)).all()
    assert (found.images[1] == grey).all() and (found.test_images[0] == grey).all()
    copy = load(source="hub", path="owner/images", data_root=str(tmp_path))
    assert (copy.images == found.images).all() and (copy.test_labels == found.test_labels).all()


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (
            [GREY, [[1, 2], [3, 4]]],
            [GREY],
            r"dataset.path=\S+: all images must have one size, got \(1, 2, 2\) and \(1, 2, 3\); with .*",
        ),
        (
            [GREY],
            [[[1, 2], [3, 4]]],
            r"dataset.path=\S+: all images must have one size, got \(1, 2, 2\) and \(1, 2, 3\); with .*",
        ),
        ([[[0, 256]]], [[[0, 1]]], "dataset.image=image: must hold whole numbers from 0 to 255, got 0 to 256"),
        ([[[0, 0.5]]], [[[0, 1]]], "dataset.image=image: must hold whole numbers from 0 to 255, got 0 to 0.5"),
        ([[0, 5]], [[0, 1]], r"dataset.image=image: must hold images of one or three channels, got shape \(2,\)"),
        ([{"image": GREY, "label": -1}], [GREY], "dataset.label=label: must hold whole numbers from 0, got -1"),
        ([{"image": GREY, "label": "cat"}], [GREY], "dataset.label=label: must hold whole numbers from 0, got cat"),
        (
            [{"image": GREY, "class": 1}],
            [GREY],
            r"dataset.image, dataset.label: no column 'label'; there are \['image', 'class'\]",
        ),
    ],
)
def test_files_that_hold_no_images_are_refused(tmp_path: Path, train: list[Any], test: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        from_files(tmp_path, train, test)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "train.jsonl", [{"image": GREY, "label": 0}])
    with pytest.raises(
        ValueError, match=r"^dataset.test_split=test: must be a file for source file, got none of that name$"
    ):
        load(source="file", path=path)
    with pytest.raises(ValueError, match=r"^dataset.path=nowhere.jsonl: must be a file for source file, got none"):
        load(source="file", path="nowhere.jsonl", test_split=path)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^dataset.path=None: must be given for source hub$"):
        ImagesConfig(source="hub")
    with pytest.raises(ValueError, match=r"^dataset.classes=\[3\]: must be at least two different classes$"):
        ImagesConfig(classes=[3])
    with pytest.raises(ValueError, match=r"^dataset.classes=\[11, 12\]: must leave images to train on and to test on$"):
        load(classes=[11, 12])
    for wrong in ({"label_noise": 1.0}, {"label_noise": -0.1}, {"corruption": 1.0}, {"seed": -1}, {"limit": 0}):
        with pytest.raises(ValidationError):
            TypeAdapter(ImagesConfig).validate_python(wrong)
