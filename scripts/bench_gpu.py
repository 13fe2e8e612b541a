"""Tokens per second and MFU of fine-tuning a randomly initialised model on GPUs; kills and resumes it there.

    .venv/bin/python scripts/bench_gpu.py                         # one GPU: ZeRO 1 and 3
    .venv/bin/python scripts/bench_gpu.py --gpus 8 --engines zero3
    .venv/bin/python scripts/bench_gpu.py --tiny                  # on the CPU: does the script itself run?

The model has the shape of Qwen3 0.6B (28 layers, width 1024, vocabulary 151,936), random weights, bf16; sequences of
2,048 tokens, packed, all of them targets. Model FLOPs utilisation, after Chowdhery et al. (PaLM, arXiv 2204.02311,
appendix B), with N the parameters without the input embedding, L layers, H heads, Q head width and T tokens of a
sequence, recomputation not counted:

    MFU = tokens/s x (6 N + 12 L H Q T) / (GPUs x peak FLOP/s of one)

The peak is the dense bf16 one that NVIDIA states for the card, without sparsity.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
SHAPE = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
TINY = {**SHAPE, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}  # fmt: skip
COMMAND = [sys.executable, "-m", "runners.main"]
SKIPPED = 3  # windows of the log before speed counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--engines", nargs="+", default=["zero1", "zero3"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=8, help="rows of 2,048 tokens in a forward pass of one GPU")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    shape = TINY if options.tiny else SHAPE
    with tempfile.TemporaryDirectory() as folder:
        for engine in options.engines:
            words = words_for(shape, engine, options)
            speed = measure([*words, f"outputs={folder}/{engine}"])
            line = f"{engine}: {speed:,.0f} tokens/s (median of the log's windows but the first {SKIPPED})"
            print(line if options.tiny else f"{line}, {utilisation(speed, shape, options.gpus)}", flush=True)
            print(f"{engine}: {kill_and_resume(words, Path(folder), engine)}", flush=True)


def words_for(shape: dict[str, object], engine: str, options: argparse.Namespace) -> list[str]:
    architecture = ",".join(f"{key}:{value}" for key, value in shape.items())
    rows = 1 if options.tiny else options.rows
    return [
        "model=hf",
        f"model.architecture={{{architecture}}}",
        "model.tokenizer=bytes",
        "dataset=mini_pretraining",
        f"dataset.size={20_000 if options.tiny else 400_000}",
        "dataset.loss_on=all",
        "evaluation=none",
        "tracker=none",
        f"engine={engine}",
        "engine.precision=bf16_autocast",
        "training.packing=true",
        "training.max_length=2048",
        f"training.batch_size={110 * rows * options.gpus}",  # examples of about 18 tokens: so many fill the rows
        f"training.micro_batch_size={rows}",
        f"training.steps={options.steps}",
        "training.log_every=5",
        "training.checkpoint_every=20",
        *([] if options.tiny else [f"gpus={options.gpus}", "model.attention=sdpa"]),
    ]


def measure(words: list[str]) -> float:
    """Target tokens per second over all GPUs, once the first windows are past."""
    subprocess.run([*COMMAND, *words], check=True, stdout=subprocess.DEVNULL)
    folder = Path(words[-1].partition("=")[2])
    rows = [json.loads(line) for path in folder.glob("runs/*/metrics.jsonl") for line in path.open()]
    return statistics.median(row["train/target_tokens_per_second"] for row in rows[SKIPPED:])


def utilisation(speed: float, shape: dict[str, object], gpus: int) -> str:
    import torch

    card = torch.cuda.get_device_name()
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in card), None)
    number = {key: int(value) for key, value in shape.items() if isinstance(value, int)}
    heads = number["num_attention_heads"] * number["head_dim"]
    keys = number["num_key_value_heads"] * number["head_dim"]
    layer = number["hidden_size"] * (2 * heads + 2 * keys + 3 * number["intermediate_size"])
    parameters = number["num_hidden_layers"] * layer + number["hidden_size"] * number["vocab_size"]
    flops = 6 * parameters + 12 * number["num_hidden_layers"] * heads * 2048
    if peak is None:
        return f"{speed * flops / gpus / 1e12:.0f} TFLOP/s a GPU ({card}: its peak is not in the script)"
    return f"MFU {speed * flops / gpus / peak:.1%} of {peak / 1e12:.0f} TFLOP/s ({gpus} x {card})"


def kill_and_resume(words: list[str], folder: Path, engine: str) -> str:
    """kill -9 after the second checkpoint, then the same command; its losses beside those of the straight run."""
    outputs = folder / f"{engine}-killed"
    process = subprocess.Popen([*COMMAND, *words, f"outputs={outputs}"], stderr=subprocess.DEVNULL)
    while len(list(outputs.glob("runs/*/checkpoints/step-*/COMPLETE.json"))) < 2 and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*COMMAND, *words, f"outputs={outputs}"], check=True, stdout=subprocess.DEVNULL)
    losses = []
    for place in (folder / engine, outputs):
        rows = [json.loads(line) for path in place.glob("runs/*/metrics.jsonl") for line in path.open()]
        losses.append([row["train/loss"] for row in rows])
    largest = max(abs(a - b) for a, b in zip(*losses, strict=True))
    return f"killed and resumed, largest difference of a logged loss {largest:.2e}"


if __name__ == "__main__":
    main()
