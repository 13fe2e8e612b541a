"""Estimates against real models and against numbers worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from runners import estimate
from runners.compose import run_spec
from runners.estimate import Disk, Memory, activation_bytes, disk, memory, parameters, parameters_in

ENGINE = {"zero_stage": 0, "precision": "fp32", "offload": "none", "activation_checkpointing": False}
ADAMW = "torch.optim.AdamW"
SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 1},
    "phi3": {"pad_token_id": 0, "num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 16},
    "olmo": {},
    "olmo2": {"num_key_value_heads": 2},
    "gpt2": {},
    "gpt_neox": {},
}


def built(architecture: dict[str, Any]) -> Any:
    """The real model, without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    arguments = {key: value for key, value in architecture.items() if key != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture["model_type"], **arguments))


def counted(model: Any) -> int:
    return sum(value.numel() for value in model.parameters())


def test_every_family_is_tried() -> None:
    assert set(SMALL) == set(estimate.FAMILIES)


@pytest.mark.parametrize("family", SMALL)
def test_parameters_are_those_of_the_real_model(family: str) -> None:
    if family == "gpt2":
        architecture = {
            "model_type": "gpt2",
            "vocab_size": 96,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 20,
        }
    else:
        architecture = {"model_type": family, **SIZES, **SMALL[family]}
    assert parameters(architecture) == counted(built(architecture))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "gpt_neox"])
def test_tied_embeddings_are_counted_once(family: str, tied: bool) -> None:
    architecture = {"model_type": family, **SIZES, **SMALL[family], "tie_word_embeddings": tied}
    assert parameters(architecture) == counted(built(architecture))


@pytest.mark.parametrize("biases", [{"attention_bias": True}, {"mlp_bias": True}])
def test_biases_count(biases: dict[str, bool]) -> None:
    architecture = {"model_type": "llama", **SIZES, **biases}
    assert parameters(architecture) == counted(built(architecture))


def test_the_mini_model(composer: Path) -> None:
    architecture = run_spec(["model=mini_random"]).config["model"]["architecture"]
    assert parameters(architecture) == counted(built(architecture)) > 10**6


def test_what_is_not_known_is_not_guessed() -> None:
    assert parameters({"model_type": "mixtral", **SIZES}) is None
    assert parameters({"model_type": "llama", "hidden_size": 32}) is None
    assert parameters({}) is None


def test_parameters_of_a_model_on_disk(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    assert parameters_in(tmp_path) is None
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "model.safetensors")
    assert parameters_in(tmp_path) == 17
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other", "dtype": "bfloat16"}))
    assert parameters_in(tmp_path) == 17
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 2000}}))
    assert parameters_in(tmp_path) == 1000
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    assert parameters_in(tmp_path) == parameters({"model_type": "llama", **SIZES})


@pytest.mark.parametrize(
    ("engine", "world", "expected"),
    [
        # 1000 parameters: fp32 weights and gradients 4 bytes each, Adam's moments 8.
        ({}, 1, Memory(4000, 4000, 8000, 0)),
        ({"precision": "bf16_autocast"}, 1, Memory(4000, 4000, 8000, 0)),
        ({"precision": "bf16"}, 1, Memory(2000, 2000, 12000, 0)),  # moments and the fp32 copy
        ({}, 4, Memory(4000, 4000, 8000, 0)),  # replicated
        ({"zero_stage": 1}, 4, Memory(4000, 4000, 2000, 0)),
        ({"zero_stage": 2}, 4, Memory(4000, 1000, 2000, 0)),
        ({"zero_stage": 3}, 4, Memory(1000, 1000, 2000, 0)),
        ({"zero_stage": 3, "offload": "optimizer"}, 4, Memory(1000, 1000, 0, 0, offloaded=2000)),
        ({"zero_stage": 3, "offload": "all"}, 4, Memory(0, 1000, 0, 0, offloaded=3000)),
        ({"zero_stage": 1}, 3, Memory(4000, 4000, 2667, 0)),  # rounded up
    ],
)
def test_memory(engine: dict[str, Any], world: int, expected: Memory) -> None:
    assert memory(1000, {**ENGINE, **engine}, world=world, optimizer=ADAMW) == expected


def test_every_role_has_weights_and_only_trained_ones_more() -> None:
    found = memory(1000, ENGINE, world=1, optimizer=ADAMW, trained=1, frozen=2, activations=7)
    assert found == Memory(12000, 4000, 8000, 7) and found.total == 24007
    assert memory(1000, ENGINE, world=1, optimizer=ADAMW, trained=0, frozen=1) == Memory(4000, 0, 0, 0)


def test_sgd_has_one_moment() -> None:
    assert memory(1000, ENGINE, world=1, optimizer="torch.optim.SGD").optimizer == 4000


def test_activations() -> None:
    architecture = {"hidden_size": 10, "num_hidden_layers": 3, "vocab_size": 7}
    # 2 rows of 5 tokens: 34 bytes x 10 x 3 layers, and 8 bytes x 7 for logits and their gradient
    assert activation_bytes(architecture, rows=2, tokens=5, half=True, checkpointing=False) == 10 * (34 * 30 + 56)
    assert activation_bytes(architecture, rows=2, tokens=5, half=False, checkpointing=False) == 10 * (68 * 30 + 56)
    assert activation_bytes(architecture, rows=2, tokens=5, half=True, checkpointing=True) == 10 * (2 * 30 + 56)
    chunked = {"rows": 2, "tokens": 5, "half": True, "checkpointing": True}
    assert activation_bytes(architecture, **chunked, logits_chunk=4) == 10 * 2 * 30 + 4 * 56
    assert activation_bytes(architecture, **chunked, logits_chunk=64) == 10 * (2 * 30 + 56), "no more than there are"
    assert activation_bytes({}, rows=2, tokens=5, half=True, checkpointing=True) is None


@pytest.mark.parametrize(
    ("keep", "checkpoints", "expected"),
    [
        # The model 4000 bytes, a checkpoint 12000.
        ("last", 0, Disk(4000, 4000)),
        ("last", 5, Disk(28000, 4000)),
        ("none", 5, Disk(28000, 0)),
        ("best", 5, Disk(40000, 16000)),
        ("all", 5, Disk(64000, 64000)),
    ],
)
def test_disk(keep: str, checkpoints: int, expected: Disk) -> None:
    assert disk(1000, ENGINE, optimizer=ADAMW, keep=keep, checkpoints=checkpoints) == expected


def test_sizes_are_shown_in_the_unit_that_suits_them() -> None:
    assert [estimate.gigabytes(size) for size in (4_200_000, 3_440_000_000)] == ["4 MB", "3.4 GB"]
