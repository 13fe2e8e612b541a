"""Image classifiers: labels as the one target of a sequence, the small residual network, frozen batch norms."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForImageClassification

from methods.batch import mean_by_sequence, sum_by_sequence
from methods.finetune.linear_probe import LinearProbe, LinearProbeConfig, output_head
from methods.forward import Forward
from methods.image_batch import ImageBatch, ImageExamples
from methods.images import Transform
from methods.kinds import adapter
from methods.kinds.image import Image
from methods.kinds.small_resnet import SmallResnet, SmallResnetConfig
from runners.image_batches import ImageBatches

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (20, 1, 8, 8)).astype(np.uint8)
LABELS = RANDOM.integers(0, 5, 20)


def network(labels: int = 5) -> SmallResnet:
    torch.manual_seed(0)
    return SmallResnet(SmallResnetConfig(num_channels=1, widths=(8, 16), depths=(1, 1), num_labels=labels)).eval()


def batch() -> ImageBatch:
    examples = ImageExamples.of_images(PIXELS, LABELS)
    whole = ImageBatches(examples, 20, 20, False, 1, 0, 1, transform=Transform())
    (found,) = whole.of_step(0)
    assert isinstance(found, ImageBatch)
    return found


def test_an_image_is_a_sequence_of_one_target() -> None:
    found = batch()
    assert found.target_count == 20 == len(found.sequence_K) == found.group_count
    assert torch.equal(found.example_K, found.example_S)
    assert found.targets_K.tolist() == LABELS[found.example_S.numpy()].tolist()
    values = torch.arange(20.0)
    assert torch.equal(sum_by_sequence(values, found), values) and torch.equal(mean_by_sequence(values, found), values)
    assert found.to("cpu").pixels_BCHW is not None


def test_log_probabilities_are_those_of_the_labels() -> None:
    model, found = network(), batch()
    assert found.pixels_BCHW is not None
    logps = F.log_softmax(model(pixel_values=found.pixels_BCHW).logits, -1)
    by_hand = logps[torch.arange(20), found.targets_K]
    forward = Forward(adapter("image"), {"policy": model}, found)
    torch.testing.assert_close(forward.token_logps(), by_hand)
    torch.testing.assert_close(Forward(Image(), {"policy": model}, found).distribution_logps(), logps)


def test_what_has_no_target_gives_nothing() -> None:
    found = batch()
    import dataclasses

    none = dataclasses.replace(found, target_mask_BT=torch.zeros_like(found.target_mask_BT))
    assert none.target_count == 0 and len(Image().token_logps(network(), none)) == 0


def test_the_network_is_saved_and_loaded_by_transformers(tmp_path: Path) -> None:
    model = network()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(model(images).logits, again(images).logits)
    assert type(AutoConfig.from_pretrained(tmp_path)).__name__ == "SmallResnetConfig"
    assert again.config.widths == [8, 16] and again.config.num_labels == 5


def test_each_stage_halves_the_image() -> None:
    model = network()
    inner = model.blocks(model.stem(torch.randn(2, 1, 8, 8)))
    assert inner.shape == (2, 16, 4, 4) and model.features(torch.randn(2, 1, 8, 8)).shape == (2, 16)
    with pytest.raises(ValueError, match=r"depths=\[1\]: must have one entry for each of widths=\[8, 16\]"):
        SmallResnetConfig(widths=(8, 16), depths=(1,))


def test_a_linear_probe_trains_the_head_and_leaves_batch_norms_as_they_are() -> None:
    model = network().train()
    LinearProbe(LinearProbeConfig()).shape(model)
    assert [name for name, value in model.named_parameters() if value.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert output_head(model) is model.classifier
    before = {name: value.clone() for name, value in model.named_buffers()}
    trained = model(torch.randn(16, 1, 8, 8)).logits
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    trained.sum().backward()
    assert model.classifier.weight.grad is not None

    free = network().train()  # without it the statistics move
    free(torch.randn(16, 1, 8, 8))
    assert any(not torch.equal(value, before[name]) for name, value in free.named_buffers())


def test_examples_of_other_pixels_have_another_digest() -> None:
    other = PIXELS.copy()
    other[0, 0, 0, 0] ^= 1
    digests = {ImageExamples.of_images(pixels, LABELS).digest() for pixels in (PIXELS, other)}
    assert len(digests) == 2
