"""Image classifiers in whole runs: batches, accuracy with the original head, FLOW's live weights, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from methods.image_batch import ImageBatch, ImageExamples
from methods.images import Transform
from runners import processes
from runners.compose import run_spec
from runners.image_batches import ImageBatches, moved, prepared
from runners.run import execute, run
from tests.command import retable
from tests.runners.tiny_run import refusal

TINY = (
    "model=digits_cnn", "model.architecture.widths=[4]", "model.architecture.depths=[1]", "dataset=images/digits",
    "dataset.limit=200", "evaluation=images", "evaluation.limit=100", "training.steps=4", "training.batch_size=40",
    "training.micro_batch_size=40", "training.log_every=1", "tracker=none",
)  # fmt: skip
BASE = [*TINY, "model.architecture.num_labels=5", "dataset.classes=[0,1,2,3,4]"]
TUNED = (
    "model=digits_cnn", "model.architecture=null", "model.classes=5", "dataset=images/digits",
    "dataset.classes=[5,6,7,8,9]", "dataset.limit=200", "evaluation=images", "evaluation.limit=100",
    "evaluation.accuracy.source={classes:[0,1,2,3,4]}", "evaluation.accuracy.hardest=0.1", "training.steps=4",
    "training.batch_size=40", "training.micro_batch_size=40", "training.log_every=1", "tracker=none",
    f"model.from_run={json.dumps(BASE)}",
)  # fmt: skip


def batches(size: int = 12, micro: int = 12, rank: int = 0, world: int = 1, **changes: Any) -> ImageBatches:
    random = np.random.default_rng(0)
    examples = ImageExamples.of_images(random.integers(1, 256, (30, 1, 6, 6)).astype(np.uint8), np.arange(30) % 3)
    return ImageBatches(examples, size, micro, False, 1, 0, 7, rank, world, transform=Transform(**changes))


def of_step(found: ImageBatches, step: int) -> dict[int, torch.Tensor]:
    pixels = {}
    for batch in found.of_step(step):
        assert isinstance(batch, ImageBatch) and batch.pixels_BCHW is not None
        pixels |= {int(index): image for index, image in zip(batch.example_S, batch.pixels_BCHW, strict=True)}
    return pixels


def test_how_an_image_is_changed_does_not_depend_on_the_layout() -> None:
    changes = {"crop_padding": 2, "flip": True}
    whole = of_step(batches(**changes), 3)
    parts = of_step(batches(micro=5, **changes), 3)
    ranks = of_step(batches(rank=0, world=2, **changes), 3) | of_step(batches(rank=1, world=2, **changes), 3)
    for found in (parts, ranks):
        assert found.keys() == whole.keys() and all(torch.equal(found[index], whole[index]) for index in whole)
    plain = of_step(batches(), 3)
    assert plain.keys() == whole.keys() and sum(not torch.equal(plain[i], whole[i]) for i in plain) > 6
    again = of_step(batches(**changes), 8)  # an epoch has three steps: other images, and other changes of the same
    assert any(not torch.equal(again[i], whole[i]) for i in set(again) & set(whole))


def test_moving_and_mirroring() -> None:
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3)
    assert moved(image, 1, 0, False).tolist() == [[[0, 0, 0], [1, 2, 3], [4, 5, 6]]]
    assert moved(image, -1, 1, False).tolist() == [[[0, 4, 5], [0, 7, 8], [0, 0, 0]]]
    assert moved(image, 0, 0, True).tolist() == [[[3, 2, 1], [6, 5, 4], [9, 8, 7]]]


def test_pixels_are_scaled_resized_and_normalised() -> None:
    pixels = np.full((2, 3, 4, 4), 255, dtype=np.uint8)
    found = prepared(pixels, Transform(resize=8, mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 2.0)))
    assert found.shape == (2, 3, 8, 8)
    torch.testing.assert_close(found[0, :, 3, 3], torch.tensor([1.0, 1.5, 0.5]))


@pytest.mark.usefixtures("composer")
def test_an_untrained_body_gives_the_source_back_whole(tmp_path: Path) -> None:
    """With its original head and batch norms the linear probe is its base; trained all over it is not."""
    scores = {}
    for method in ("linear_probe", "sft"):
        spec = run_spec([*TUNED, f"method=finetune/{method}", f"outputs={tmp_path}"])
        scores[method] = run(spec)["metrics"]["accuracy"]
        assert set(scores[method]) == {"target,none", "hardest,none", "source,none", "mean,none"}
    (base,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json") if "result" in path.name
               and "from_run" not in path.read_text() and json.loads(path.read_text())["parent"] is None)  # fmt: skip
    assert scores["linear_probe"]["source,none"] == base["metrics"]["accuracy"]["target,none"]
    assert scores["linear_probe"]["mean,none"] == pytest.approx(
        (scores["linear_probe"]["source,none"] + scores["linear_probe"]["target,none"]) / 2
    )


@pytest.mark.usefixtures("composer")
def test_weights_of_flow_measured_once_and_live_are_the_same_without_augmentation(tmp_path: Path) -> None:
    found = {}
    for weights in ("once", "live"):
        words = ["method=finetune/flow", f"method.weights={weights}", f"outputs={tmp_path / weights}", "seed=3"]
        spec = run_spec([*TINY, *words])
        execute(spec)
        lines = (spec.folder / "metrics.jsonl").read_text().splitlines()
        found[weights] = [json.loads(line)["train/loss"] for line in lines]
    np.testing.assert_allclose(found["once"], found["live"], rtol=1e-5)


@pytest.mark.usefixtures("composer")
def test_two_processes_see_the_images_of_one(tmp_path: Path) -> None:
    spec = run_spec([*TINY, "processes=2", "training.micro_batch_size=20", f"outputs={tmp_path}"])
    result = processes.launch(2, 1, execute, spec)
    assert result["method_metrics"]["train/units"] == 4 * 40
    assert (spec.folder / "model" / "model.safetensors").is_file()


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dataset=gsm8k",), "model.kind=image needs a data set of images, got completion"),
        (("evaluation=mini_world",), "measures a language model (evaluation.tasks), got model.kind=image"),
        (("model.tokenizer=bytes",), "model.tokenizer=bytes: must be null with model.kind=image"),
        (("adapter=lora",), "adapter=lora: fits models of kind causal, got model.kind=image"),
        (("method=preference/dpo",), "fits models of kind causal, got model.kind=image"),
        (("evaluation.accuracy.source={colours:3}",), "evaluation.accuracy.source.colours=3: unknown key"),
        (("evaluation.accuracy.source={}",), "needs a model whose head was replaced"),
        (("dataset.classes=[3]",), "dataset.classes=[3]: must be at least two different classes"),
        (("method=finetune/flow", "method.weights=live", "method.normalize=true"), "method.normalize=true: needs all"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words: tuple[str, ...], said: str) -> None:
    base = tuple(word for word in TINY if not (words[0] == "dataset=gsm8k" and word.startswith("dataset.")))
    assert said in refusal(*words, base=base)


@pytest.mark.usefixtures("composer")
def test_language_models_refuse_images() -> None:
    words = ("model=mini_random", "dataset=images/digits", "evaluation=none")
    assert "dataset.type=images: needs model.kind=image" in refusal(*words, base=())
    assert "measures image classifiers" in refusal("model=mini_random", "evaluation=images", base=())


def test_more_classes_than_the_model_tells_apart_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = retable(*TINY, "model.architecture.num_labels=4")
    assert ended.code == 1 and "the model tells 4 classes apart, the data set has 10" in ended.error
