"""DPO's speed and memory against TRL's DPOTrainer: steps per second and peak memory, in one run.

    python scripts/bench_preference.py [--rounds 3] [--steps 12] [--chunks 256,1024,null] [--device cuda ...]

Both train the same Llama on the same pairs of random words, with DPO, a reference computed beforehand, AdamW and as
many pairs in a forward pass; no logging, no saving. Each measurement is a process of its own; the sides take turns, and
the first steps of each are not counted. Prompt and responses have fixed lengths, 1:1 and 4:1 of the whole, so that
neither side gains by padding less. TRL makes the logits of few positions at a time by itself; its activation
checkpointing (`--checkpointing`) is compared with ours.

Peak memory is that of the process on a CPU (what Python's libraries take included; "above" is what training adds to
what was resident before its first step), and that of PyTorch's allocator on a GPU.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SKIPPED = 3
RATIOS = {"1:1": 0.5, "4:1": 0.8}  # share of the prompt in the whole


def main() -> None:
    """Measure all sides in turns and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--chunks", default="1024", help="values of engine.logits_chunk, by comma; null: all at once")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=4, help="in a step, which is one forward pass")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing on both sides")
    parser.add_argument("--ratios", default=",".join(RATIOS))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(trl(options) if options.side == "trl" else ours(options, options.side.partition("=")[2])))
        return
    sides = ["trl", *(f"ours={chunk}" for chunk in options.chunks.split(","))]
    print(
        f"{options.rounds} rounds of {options.steps} steps ({SKIPPED} not counted), {options.pairs} pairs a step, "
        f"{options.length} tokens, vocabulary {options.vocabulary}, width {options.width}, {options.layers} layers, "
        f"{options.device}, {os.cpu_count()} cores, checkpointing {'on' if options.checkpointing else 'off'}"
    )
    for ratio in options.ratios.split(","):
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), options, RATIOS[ratio])
            measured: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for number in range(options.rounds):
                for side in sides if number % 2 == 0 else sides[::-1]:
                    measured[side].append(_run_side(side, folder))
            report(ratio, measured)


def report(ratio: str, measured: dict[str, list[dict[str, float]]]) -> None:
    """Print the medians of every side and the medians of its ratios to TRL, round by round."""
    print(f"\nprompt : response {ratio}")
    for side, runs in measured.items():
        speed = statistics.median(run["steps_per_second"] for run in runs)
        peak, above = (statistics.median(run[key] for run in runs) for key in ("peak_mb", "above_mb"))
        name = side.replace("ours=", "ours, chunk ")
        line = f"  {name:<18} {speed:7.3f} steps/s  peak {peak:7.0f} MB  above {above:7.0f} MB"
        if side != "trl":
            ratios = {
                key: statistics.median(a[key] / b[key] for a, b in zip(runs, measured["trl"], strict=True))
                for key in ("steps_per_second", "peak_mb", "above_mb")
            }
            line += f"  ratios {ratios['steps_per_second']:.2f} {ratios['peak_mb']:.2f} {ratios['above_mb']:.2f}"
        print(line, flush=True)


def _run_side(side: str, folder: str) -> dict[str, float]:
    command = [sys.executable, *sys.argv, "--side", side, "--work", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{side}: {done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def prepare(folder: Path, options: argparse.Namespace, prompt_share: float) -> None:
    """Write pairs of random words, a tokenizer of one token a word, and the initial model."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    generator = np.random.default_rng(0)
    prompt = round(options.length * prompt_share)

    def words(count: int) -> str:
        return " ".join(f"w{number}" for number in generator.integers(2, options.vocabulary, count))

    rows = [
        {"prompt": words(prompt), **{side: words(options.length - prompt - 1) for side in ("chosen", "rejected")}}
        for _ in range(options.pairs * 6)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    known = {"<pad>": 0, "<eos>": 1, **{f"w{number}": number for number in range(2, options.vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=options.width * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=max(options.width // 64, 1),
        max_position_embeddings=options.length,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")


def ours(options: argparse.Namespace, chunk: str) -> dict[str, float]:
    """Our loop on DeepSpeed."""
    import torch

    from methods.kinds.causal import Causal, frozen
    from methods.preference.dpo import Dpo, DpoConfig
    from runners import processes, training
    from runners.batches import make_batches
    from runners.data import load_rows, tokenize
    from runners.engine import TrainingEngine, device
    from runners.models import load_model, load_tokenizer
    from runners.schema import Dataset, Engine, Model, Training

    folder = Path(options.work)
    processes.join(folder / "run")
    model_settings = vars(Model(id=str(folder / "model")))
    tokenizer = load_tokenizer(model_settings, None)
    dataset = vars(Dataset(source="file", path=str(folder / "pairs.jsonl"), type="pair", chosen=" {chosen}",
                           rejected=" {rejected}"))  # fmt: skip
    examples = tokenize(load_rows(dataset), dataset, tokenizer, max_length=options.length, too_long="error")
    settings = vars(
        Training(steps=options.steps, batch_size=options.pairs, micro_batch_size=options.pairs, log_every=10**6)
    )
    batches = make_batches(examples, settings, pad_token=0, max_length=options.length, seed=0)
    method = Dpo(DpoConfig())
    method.kind = Causal(None if chunk == "null" else int(chunk))
    precision = "bf16_autocast" if options.device == "cuda" else "fp32"  # as TRL: fp32 weights
    engine = TrainingEngine(
        load_model(model_settings, None, len(tokenizer)),
        {"_target_": "torch.optim.AdamW", "lr": 1e-6, "fused": True},
        {**vars(Engine(activation_checkpointing=options.checkpointing)), "precision": precision},
        1.0,
    )

    def measure(_what: str, values: Any, per: str, role: str) -> Any:
        """What `Context.measure` does, in the smallest form."""
        found = torch.zeros(examples.target_tokens, dtype=torch.float64)
        ends = torch.from_numpy(examples.lengths - examples.targets).cumsum(0)
        with frozen(engine.engine):
            for batch in batches.once():
                places = [torch.arange(int(ends[n]) - int(c), int(ends[n])) for n, c in
                          zip(batch.example_S.tolist(), batch.target_mask_BT.sum(1), strict=True)]  # fmt: skip
                found[torch.cat(places)] = values(engine.engine, batch.to(device())).double().cpu()
        return found.numpy()

    method.prepare(SimpleNamespace(examples=examples, measure=measure))
    clock = _Clock(options.device)
    method.after_step = clock.tick  # type: ignore[method-assign]
    roles = {"policy": engine.engine}
    clock.start()
    training.train(method, engine, roles, batches, settings, lambda metrics, step: None, lambda progress: None)
    return clock.measured()


def trl(options: argparse.Namespace) -> dict[str, float]:
    """TRL's DPOTrainer."""
    import datasets
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    folder = Path(options.work)
    clock = _Clock(options.device)

    class Ticks(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick(0)

    config = DPOConfig(
        output_dir=str(folder / "trl"), max_steps=options.steps, per_device_train_batch_size=options.pairs,
        learning_rate=1e-6, max_length=options.length, precompute_ref_log_probs=True, optim="adamw_torch_fused",
        use_cpu=options.device == "cpu", bf16=options.device == "cuda",
        gradient_checkpointing=options.checkpointing, logging_strategy="no",
        save_strategy="no", report_to="none", disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        args=config,
        train_dataset=datasets.load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train"),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder / "model"),
        callbacks=[Ticks()],
    )
    trainer.train()
    return clock.measured()


class _Clock:
    """When each step ended, and how much memory there was."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._seen: list[float] = []
        self._before = 0.0

    def start(self) -> None:
        """Training begins."""
        if self._device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 2**20
        else:
            with open("/proc/self/statm", encoding="ascii") as file:
                self._before = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def tick(self, step: int) -> None:
        """A step has ended."""
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
        self._seen.append(time.perf_counter())

    def measured(self) -> dict[str, float]:
        """Speed over the counted steps, and peak memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if self._device == "cuda":
            import torch

            peak = torch.cuda.max_memory_allocated() / 2**20
        counted = len(self._seen) - SKIPPED
        seconds = self._seen[-1] - self._seen[SKIPPED - 1]
        return {"steps_per_second": counted / seconds, "peak_mb": peak, "above_mb": peak - self._before}


if __name__ == "__main__":
    main()
