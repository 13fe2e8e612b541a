"""What presets do, and what is wrong with one."""

import json
from pathlib import Path
from typing import Any

import pytest

from runners.expand import choices
from tests.command import TINY, retable, write_plugin
from tests.experiments.every import (
    ROOTS,
    composed,
    is_language_model,
    ran,
)


@pytest.mark.parametrize("model", choices("model", ROOTS))
def test_random_builds_every_model_small(model: str) -> None:
    """Every architecture that a model's YAML names can be built so, and takes a training step in both layers."""
    import torch

    if not is_language_model(model):
        pytest.skip("no language model")
    from runners.models import load_model

    needed = ["model.model_type=llama"] if model == "hf" else []
    settings = composed(f"model={model}", *needed, "debug=random").config["model"]
    built: Any = load_model(settings, None, 259)
    tokens = torch.arange(24).reshape(2, 12)
    built(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    assert built.config.model_type == settings["model_type"]
    assert built.config._attn_implementation == settings["attention"]
    layers = built.base_model.layers
    assert len(layers) == 2
    assert sum(weight.numel() for weight in built.parameters()) < 1_000_000
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in layers.parameters())


def test_the_users_words_win_over_the_preset() -> None:
    _, result = ran(*TINY, "training.steps=3", "debug=fast")
    assert result["method_metrics"]["train/steps"] == 3


def test_overfit_learns_its_one_batch_by_heart() -> None:
    spec, result = ran("model=mini_random", "debug=overfit")
    lines = [json.loads(line) for line in (spec.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines]
    assert len(losses) == 50 and losses[0] > 4  # nats per byte of an untrained model: ln 259 = 5.6
    assert losses[-1] < losses[0] / 100
    assert len({line["train/learning_rate"] for line in lines}) == 1
    assert result["metrics"] == {}


def test_profile_leaves_a_trace_of_three_steps() -> None:
    spec, _ = ran("model=mini_random", "debug=profile")
    events = json.loads((spec.folder / "profile" / "trace.json").read_text())["traceEvents"]
    steps = {name for event in events if (name := event.get("name", "")).startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#2", "ProfilerStep#3", "ProfilerStep#4"}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["debug=fats"], "debug=fats: no such choice (nearest: fast)"),
        (["experiment=flow/language", "debug=overfti"], "debug=overfti: no such choice (nearest: overfit)"),
        (["debug=_base"], "debug=_base: no such choice"),
        (["debug=fast,overfit"], "debug=fast,overfit: several values make a sweep, which needs -m"),
        (
            ["debug=random", "model=hf"],
            "model.architecture must name its model_type (that of debug=random is model.model_type)",
        ),
    ],
)
def test_what_is_wrong_with_a_preset_is_one_line(typed: list[str], message: str) -> None:
    ended = retable(*typed)
    assert ended.code == 1 and ended.error.startswith(message)
    assert len(ended.err.strip().splitlines()) == 1


def test_the_table_of_a_debug_run_leaves_the_real_one_alone(tmp_path: Path) -> None:
    words = [f"plugins={write_plugin(tmp_path / 'plugin')}", "experiment=tried/table", "row=sft", "seed=1"]
    real = retable("-m", *words, "tracker=none")
    assert real.code == 0, real.err
    folder = Path("outputs/tried/table/")
    (runs,) = folder.glob("sft-*")
    (own,) = folder.glob("table-*")
    written = (own / "table.csv").read_text()
    debug = retable("-m", *words, "debug=fast")
    assert debug.code == 0 and "A table of three rows (debug=fast)" in debug.out
    assert len(list(folder.glob("sft-*"))) == len(list(folder.glob("table-*"))) == 2
    assert (own / "table.csv").read_text() == written and runs.is_dir()
    # Once both have run, a table is built again from its own runs.
    again = retable(*words, "debug=fast", "job=table")
    assert again.code == 0 and len(list(folder.glob("table-*"))) == 2


def test_presets_can_be_swept() -> None:
    ended = retable("-m", *TINY, "debug=fast,overfit")
    assert ended.code == 0, ended.err
    assert "debug=fast" in ended.out and "debug=overfit" in ended.out  # a row each
    results = [json.loads(path.read_text()) for path in Path("outputs/runs").glob("finetune_sft-*/result.json")]
    # TINY's two steps are the user's words, and win; what they do not say is the preset's.
    assert sorted(result["method_metrics"]["train/units"] for result in results) == [2 * 8 * 6, 2 * 64 * 6]
