"""`dataset.select`: what is embedded, which examples are kept, on text, pairs and images; what is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from methods.examples import Examples
from methods.image_batch import ImageExamples
from methods.kinds.causal import Causal
from methods.kinds.image import Image
from methods.selection import gm_matching
from runners import selecting
from runners.compose import run_spec
from runners.errors import UserError
from runners.run import execute, run
from tests.command import TINY, retable
from tests.models import batches_of, random_examples, tiny_llama
from tests.runners.test_images import BASE, TUNED, batches

SETTINGS: dict[str, Any] = {"select": "gm_matching", "keep": 0.25, "select_options": None}


# What is embedded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True])
def test_text_is_embedded_as_the_mean_of_its_last_hidden_states(packing: bool) -> None:
    model, examples = tiny_llama().eval(), random_examples()
    for batch in batches_of(examples, micro=3, packing=packing).of_step(0):
        with torch.no_grad():
            found_SD = Causal().embed(model, batch)
        for example, found_D in zip(batch.example_S.tolist(), found_SD, strict=True):
            ids = torch.from_numpy(examples.sequence(example)).long()
            with torch.no_grad():
                hidden_TD = model(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0]
            torch.testing.assert_close(found_D, hidden_TD.mean(0), rtol=1e-4, atol=1e-5)


def test_an_image_is_embedded_as_what_the_head_sees() -> None:
    from methods.kinds.small_resnet import SmallResnet, SmallResnetConfig

    model = SmallResnet(SmallResnetConfig(num_channels=1, widths=(4, 6), depths=(1, 1), num_labels=3)).eval()
    (batch,) = batches().of_step(0)
    with torch.no_grad():
        found_BD = Image().embed(model, batch)
        torch.testing.assert_close(found_BD, model.features(batch.pixels_BCHW))  # type: ignore[attr-defined]
    assert found_BD.shape == (12, 6)


def test_groups_are_kept_whole() -> None:
    examples = Examples.of([[1, 2], [3], [4, 5, 6], [7, 8]], [1, 1, 1, 1], [1, 2, 1], [0.0, 1.0, 2.0, 3.0])
    found = examples.of_groups(np.array([1, 2]))
    assert [found.sequence(index).tolist() for index in range(3)] == [[3], [4, 5, 6], [7, 8]]
    assert found.groups.tolist() == [0, 2, 3] and found.labels is not None and found.labels.tolist() == [1, 2, 3]
    assert found.targets.tolist() == [1, 1, 1]
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)
    images = ImageExamples.of_images(pixels, np.array([5, 6, 7])).of_groups(np.array([0, 2]))
    assert images.tokens.tolist() == [5, 7] and (images.pixels == pixels[[0, 2]]).all()


# Which are kept -------------------------------------------------------------------------------------------------


def test_a_selector_chooses_by_the_embedding() -> None:
    points_ND = np.random.default_rng(0).standard_normal((40, 3)) + 2
    found = selecting.chosen(SETTINGS, points_ND, None, 1)
    assert found.tolist() == sorted(gm_matching.select(points_ND, 10))
    labels_N = np.arange(40) % 4
    classes = labels_N[selecting.chosen(SETTINGS, points_ND, labels_N, 1)]
    assert sorted(np.bincount(classes)) == [2, 2, 3, 3]
    once = {**SETTINGS, "select_options": {"per_class": False}}
    assert (selecting.chosen(once, points_ND, labels_N, 1) == found).all()


def test_what_is_random_follows_the_seed() -> None:
    points_ND = np.random.default_rng(0).standard_normal((40, 3))
    settings = {**SETTINGS, "select": "uniform"}
    first, again, other = (selecting.chosen(settings, points_ND, None, seed).tolist() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("changed", "spoiled", "line"),
    [
        ({}, np.nan, "dataset.select=gm_matching: the model's embeddings of the examples must be finite"),
        ({"keep": 0.01}, None, "dataset.keep=0.01: must keep at least 4 of 40 examples, one for each of 4 classes"),
        ({"select_options": {"batches": 9}}, None, "batches=9: must be at most the 3 points picked"),
    ],
)
def test_what_the_data_show_to_be_wrong(changed: dict[str, Any], spoiled: float | None, line: str) -> None:
    points_ND = np.random.default_rng(0).standard_normal((40, 3))
    if spoiled is not None:
        points_ND[3, 1] = spoiled
    with pytest.raises(UserError) as raised:
        selecting.chosen({**SETTINGS, **changed}, points_ND, np.arange(40) % 4, 1)
    assert line in str(raised.value)


# Whole runs -----------------------------------------------------------------------------------------------------


def result_of(words: list[str], folder: Path) -> tuple[dict[str, Any], Path]:
    spec = run_spec([*words, f"outputs={folder}/outputs"])
    return run(spec), spec.folder


@pytest.mark.usefixtures("composer")
def test_a_run_trains_on_what_is_kept_and_remembers_it(tmp_path: Path) -> None:
    words = [*TINY, "dataset.select=gm_matching", "dataset.keep=0.25", "training.batch_size=8", "training.steps=2"]
    found, folder = result_of(words, tmp_path)
    assert found["method_metrics"]["data/kept"] == 16
    kept = json.loads((folder / "selected.json").read_text())["kept"]
    assert len(set(kept)) == 16 and kept == sorted(kept) and max(kept) < 64
    # Told to go on, a run keeps to its choice, whatever the embeddings are now.
    spec = run_spec([*words, f"outputs={tmp_path}/outputs", "seed=2"])
    spec.folder.mkdir(parents=True)
    selecting.remember(spec.folder, np.array([1, 2, 5]))
    assert execute(spec)["method_metrics"]["data/kept"] == 3


@pytest.mark.usefixtures("composer")
def test_nothing_is_embedded_for_a_selector_that_does_not_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("embedded")

    monkeypatch.setattr(Causal, "embed", refuse)
    words = [*TINY, "dataset.keep=0.25", "training.batch_size=8"]
    assert result_of([*words, "dataset.select=uniform"], tmp_path)[0]["method_metrics"]["data/kept"] == 16
    with pytest.raises(AssertionError, match="embedded"):
        result_of([*words, "dataset.select=herding"], tmp_path)


@pytest.mark.usefixtures("composer")
def test_texts_are_those_of_the_kept(tmp_path: Path) -> None:
    """A method that reads the texts again, as SDFT does, gets those that belong to the kept sequences."""
    from runners.model_context import ModelContext
    from runners.record import Recorder
    from runners.tracker import NullTracker

    spec = run_spec([*TINY, "dataset.select=uniform", "dataset.keep=0.25", f"outputs={tmp_path}/outputs"])
    spec.folder.mkdir(parents=True)
    selecting.remember(spec.folder, np.array([3, 40, 63]))
    from runners import processes

    processes.join(spec.folder)
    context = ModelContext(spec, Recorder(spec, writes=False), NullTracker(), 0, 1)
    sequences = [
        context.tokenizer.decode(context.examples.prompt(index), skip_special_tokens=True) for index in range(3)
    ]
    assert [prompt for prompt, _ in context.texts] == sequences


@pytest.mark.usefixtures("composer")
def test_pairs_are_kept_as_pairs(tmp_path: Path) -> None:
    words = [*TINY, "dataset=preference_pairs", "dataset.size=40", "method=preference/dpo", "dataset.select=herding"]
    found, _ = result_of([*words, "dataset.keep=0.5", "training.batch_size=4"], tmp_path)
    assert found["method_metrics"]["data/kept"] == 20


@pytest.mark.usefixtures("composer")
def test_images_are_chosen_by_the_final_model_of_another_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noisy = [*BASE, "dataset.label_noise=0.2", "training.steps=60", "optimizer.lr=1e-2"]
    words = [*BASE, "dataset.label_noise=0.2", "dataset.select=distance", "dataset.keep=0.5"]
    words += ["dataset.select_options={which: easy}", f"dataset.select_run={json.dumps(noisy)}"]
    with caplog.at_level(logging.INFO):
        found, _ = result_of(words, tmp_path)
    assert "which runs first" in caplog.text
    # The easy ones of each class, by a network that has seen the digits, are seldom the wrong ones.
    assert found["method_metrics"]["data/wrong_labels_kept"] < 0.1
    by_itself, _ = result_of([*words, "dataset.select_run=null"], tmp_path)
    assert by_itself["method_metrics"]["data/wrong_labels_kept"] > 0.1


@pytest.mark.usefixtures("composer")
def test_identity(tmp_path: Path) -> None:
    plain = run_spec([*TINY]).identity
    assert run_spec([*TINY, "dataset.keep=0.1"]).identity == plain  # nothing is selected
    kept = {run_spec([*TINY, "dataset.select=herding", f"dataset.keep={keep}"]).identity for keep in (0.1, 0.2)}
    by_run = run_spec(
        [*TINY, "dataset.select=herding", "dataset.keep=0.1", f"dataset.select_run={json.dumps([*TINY])}"]
    )
    assert len({plain, *kept, by_run.identity}) == 4
    assert by_run.selecting is not None and by_run.selecting.identity == plain
    assert by_run.source != run_spec([*TINY, "dataset.select=herding", "dataset.keep=0.1"]).source


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dataset.select=gm_macthing"], "dataset.select=gm_macthing: no such selector (nearest: gm_matching)"),
        (["dataset.select=scores"], "dataset.select=scores: must choose by embeddings alone"),
        (["dataset.select=herding", "dataset.keep=0"], "dataset.keep=0: should be greater than 0"),
        (["dataset.select=herding", "dataset.keep=1.5"], "dataset.keep=1.5: should be less than or equal to 1"),
        (["dataset.select_options={init: mean}"], "dataset.select_options={'init': 'mean'}: needs dataset.select"),
        (
            ["dataset.select=herding", "dataset.select_options={init: median}"],
            "dataset.select_options.init=median: should be 'target', 'mean' or 'random'",
        ),
        (
            ["dataset.select=herding", "dataset.select_options={per_class: true}"],
            "dataset.select_options.per_class: is of no use here",
        ),
        (
            ["dataset.select=herding", "dataset.select_options={proxy_passes: 3}"],
            "dataset.select_options.proxy_passes: is of no use here",
        ),
        (["dataset.select=herding", "method=untrained"], "dataset.select=herding: method=untrained trains no model"),
        (
            ["mix=replay", "+mix.dataset.select=herding"],
            "mix.dataset.select=herding: only training examples",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(words: list[str], line: str, composer: Path) -> None:
    told = retable(*TINY, *words)
    assert told.code == 1 and line in told.error


def test_tuned_and_selected_go_together(composer: Path, tmp_path: Path) -> None:
    """The run that it starts from, and the one that selects, are two."""
    words = [*TUNED, "dataset.select=herding", f"dataset.select_run={json.dumps([*BASE, 'training.steps=3'])}"]
    spec = run_spec([*words, f"outputs={tmp_path}/outputs"])
    assert len(spec.named) == 2 and len({one.identity for one in spec.named}) == 2
