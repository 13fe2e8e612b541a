"""Estimates of what a run needs: parameters, memory of a process, disk. Pure functions; no torch.

Parameters of a known decoder family are exact. Memory and disk are estimates: what a training step must hold, by the
bytes of each kind of number, without the framework's own buffers and fragmentation.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FP32, _BF16 = 4, 2  # bytes of a number


@dataclass(frozen=True)
class Family:
    """How the layers of a decoder family differ from Llama's."""

    norms: int = 2  # norms of a layer, one weight per channel each
    norm_parameters: int = 1  # numbers per channel of a norm: 0 none, 1 weight, 2 weight and bias
    qk_norm: str = ""  # head: one weight per channel of a head; all: one per channel of all heads
    qkv_bias: bool = False
    other_bias: bool = False  # of the attention's output and of the feed-forward
    projections: int = 3  # matrices of the feed-forward: 3 gated, 2 plain
    positions: bool = False  # learned position embeddings
    tied: bool = False  # default of `tie_word_embeddings`


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "phi3": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head"),
    "gemma": Family(tied=True),
    "gemma2": Family(norms=4, tied=True),
    "gemma3_text": Family(norms=4, qk_norm="head", tied=True),
    "olmo": Family(norm_parameters=0),
    "olmo2": Family(qk_norm="all"),
    "gpt2": Family(norm_parameters=2, qkv_bias=True, other_bias=True, projections=2, positions=True, tied=True),
    "gpt_neox": Family(norm_parameters=2, qkv_bias=True, other_bias=True, projections=2),
}

# What GPT-2's configuration calls the same things.
_OTHER_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}


def parameters(architecture: Mapping[str, Any]) -> int | None:
    """Number of weights of a decoder, by its transformers configuration; None for a family that is not known.

    Embeddings are counted once where input and output share them.
    """
    family = FAMILIES.get(str(architecture.get("model_type")))
    if family is None:
        return None

    def value(key: str) -> Any:
        found = architecture.get(key)
        return architecture.get(_OTHER_NAMES.get(key, key)) if found is None else found

    hidden, layers, heads, vocabulary = map(
        value, ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    )
    if None in (hidden, layers, heads, vocabulary):
        return None
    inner = value("intermediate_size") or (4 * hidden if family.positions else None)
    if inner is None:
        return None
    key_heads = value("num_key_value_heads") or heads
    width = value("head_dim") or hidden // heads
    q, kv = heads * width, key_heads * width
    attention = hidden * q + 2 * hidden * kv + q * hidden
    if family.qkv_bias or architecture.get("attention_bias"):
        attention += q + 2 * kv
    if family.other_bias or (architecture.get("attention_bias") and not family.qkv_bias):
        attention += hidden
    attention += {"": 0, "head": 2 * width, "all": q + kv}[family.qk_norm]
    feed_forward = family.projections * hidden * inner
    if family.other_bias or architecture.get("mlp_bias"):
        feed_forward += (family.projections - 1) * inner + hidden
    norm = family.norm_parameters * hidden
    tied = architecture.get("tie_word_embeddings")
    tied = family.tied if tied is None else tied
    total = vocabulary * hidden * (1 if tied else 2) + norm + layers * (attention + feed_forward + family.norms * norm)
    if family.positions:
        positions = value("max_position_embeddings")
        return None if positions is None else int(total + positions * hidden)
    return int(total)


def parameters_in(folder: Path) -> int | None:
    """Number of weights of a model on disk: by its configuration, else by what its safetensors files say they hold."""
    config = read_json(folder / "config.json")
    known = parameters(config) if config else None
    if known is not None:
        return known
    index = read_json(folder / "model.safetensors.index.json")
    if index:
        told = index.get("metadata") or {}
        if told.get("total_parameters"):
            return int(told["total_parameters"])
        dtype = str((config or {}).get("dtype") or (config or {}).get("torch_dtype") or "float32")
        size = told.get("total_size")
        return int(size) // (_FP32 if dtype == "float32" else _BF16) if size else None
    return _in_safetensors(folder / "model.safetensors")


def _in_safetensors(path: Path) -> int | None:
    """Numbers in a safetensors file, by its header: 8 bytes of length, then JSON with the shape of every tensor."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (OSError, ValueError, struct.error):
        return None
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for dimension in tensor["shape"]:
                size *= dimension
            total += size
    return total


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file that holds a mapping; None when there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds, on its device (the GPU, or the machine without one) and offloaded to the CPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    offloaded: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations


def memory(
    count: int,
    engine: Mapping[str, Any],
    *,
    world: int,
    optimizer: str,
    trained: int = 1,
    frozen: int = 0,
    activations: int = 0,
) -> Memory:
    """Memory of one process of a run.

    Args:
        count: parameters of the model of every role.
        engine: `engine:`; ZeRO 1 shards optimizer states, 2 gradients too, 3 weights too.
        world: processes of the run.
        optimizer: `_target_` of `optimizer:`.
        trained: roles that are trained.
        frozen: roles that are not; sharded under ZeRO 3.
        activations: bytes, from `activation_bytes`.
    """
    half = engine["precision"] == "bf16"
    stage, offload = engine["zero_stage"], engine["offload"]

    def share(size: int, from_stage: int) -> int:
        return -(-size // world) if stage >= from_stage else size

    number = _BF16 if half else _FP32
    weights = share((trained + frozen) * count * number, 3)
    gradients = share(trained * count * number, 2)
    states = share(trained * count * state_bytes(optimizer, half), 1)
    offloaded = 0
    if offload in ("optimizer", "all"):
        offloaded, states = offloaded + states, 0
    if offload == "all":
        offloaded, weights = offloaded + weights, 0
    return Memory(weights, gradients, states, activations, offloaded)


def state_bytes(optimizer: str, half: bool) -> int:
    """Bytes of optimizer state per parameter: Adam's two moments; of half-precision weights the fp32 copy as well."""
    name = optimizer.rpartition(".")[2]
    moments = {"SGD": 1, "RMSprop": 1, "Adagrad": 1, "Lion": 1, "Muon": 1}.get(name, 2)
    return moments * _FP32 + (_FP32 if half else 0)


def activation_bytes(
    architecture: Mapping[str, Any],
    *,
    rows: int,
    tokens: int,
    half: bool,
    checkpointing: bool,
    logits_chunk: int | None = None,
) -> int | None:
    """A rough size of what a forward pass keeps for the backward pass, with attention that stores no score matrix.

    34 bytes per token, channel and layer in half precision (Korthikanti et al., arXiv 2205.05198, equation 1, without
    the term of the scores), twice that in fp32; with checkpointing only each layer's input. The logits and their
    gradient come on top, in fp32, of `logits_chunk` tokens at a time (None: of all): with a large vocabulary they are
    the larger part. None for an unknown architecture.
    """
    sizes = [architecture.get(key) or architecture.get(_OTHER_NAMES.get(key, key))
             for key in ("hidden_size", "num_hidden_layers", "vocab_size")]  # fmt: skip
    if None in sizes:
        return None
    hidden, layers, vocabulary = map(int, sizes)  # type: ignore[arg-type]
    number = _BF16 if half else _FP32
    kept = number * layers if checkpointing else 17 * number * layers
    at_once = rows * tokens if logits_chunk is None else min(rows * tokens, logits_chunk)
    return rows * tokens * hidden * kept + at_once * 2 * _FP32 * vocabulary


@dataclass(frozen=True)
class Disk:
    """Bytes of a run's folder: while it runs, and when it is done."""

    running: int
    done: int


def disk(count: int, engine: Mapping[str, Any], *, optimizer: str, keep: str, checkpoints: int) -> Disk:
    """Disk of one run that trains one role.

    Args:
        count: parameters.
        engine: `engine:`.
        optimizer: `_target_` of `optimizer:`.
        keep: what stays when the run is done.
        checkpoints: that it writes on its way.
    """
    half = engine["precision"] == "bf16"
    model = count * (_BF16 if half else _FP32)
    checkpoint = model + count * state_bytes(optimizer, half)
    # The last two are kept while it runs; with keep=best the best so far as well, with keep=all every one.
    most = {"best": 3, "all": checkpoints}.get(keep, 2)
    stay = {"best": min(checkpoints, 1), "all": checkpoints}.get(keep, 0)
    return Disk(
        running=model + min(checkpoints, most) * checkpoint,
        done=(0 if keep == "none" else model) + stay * checkpoint,
    )


def gigabytes(size: int) -> str:
    """A size as it is shown: 12 MB, 3.4 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
