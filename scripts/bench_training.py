"""Training speed against TRL's SFTTrainer: target tokens per second and peak memory, in one run.

    python scripts/bench_training.py [--rounds 5] [--steps 30] [--data FOLDER_WITH_gsm8k]

Both train the same Llama of 5.3 million parameters (4 layers, width 256, vocabulary 4,096) on the same GSM8K
examples, sequences of at most 256 tokens, fp32, AdamW, 16 sequences (packed: 16 rows of 256 tokens) per
optimizer step. Each measurement is a process of its own; the two sides take turns, and the first steps of each
are not counted. TRL runs with the options that make it fastest here: fused AdamW, grouping by length (packing
off), best-fit packing (packing on), no logging, no saving. Ours runs with micro-batches of 4 rows sorted by length
within the step, which needs less padding and changes neither loss nor gradient.

Without the data, examples of the mini world's word problems take its place.
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
from typing import Any

LENGTH, ROWS, VOCABULARY, SKIPPED = 256, 16, 4096, 5


def main() -> None:
    """Measure both sides in turns and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--data", default=os.environ.get("RETABLE_DATA"), help="folder that holds gsm8k/train.jsonl")
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--packing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = ours if options.side == "ours" else trl
        print(json.dumps(side(Path(options.work), options.packing, options.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = prepare(Path(folder), options.data)
        print(f"examples: {source}; {options.rounds} rounds of {options.steps} steps, {os.cpu_count()} cores")
        for packing in (False, True):
            measured: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
            for number in range(options.rounds):
                for name in ("ours", "trl") if number % 2 == 0 else ("trl", "ours"):
                    measured[name].append(_run_side(name, packing, folder, options.steps))
            report(packing, measured)


def report(packing: bool, measured: dict[str, list[dict[str, float]]]) -> None:
    """Print the medians of both sides and the median of the ratios, round by round."""
    print(f"\npacking {'on' if packing else 'off'}")
    for name, runs in measured.items():
        speeds = [run["tokens_per_second"] for run in runs]
        per_step = statistics.median(run["tokens_per_step"] for run in runs)
        memory = statistics.median(run["peak_mb"] for run in runs)
        print(
            f"  {name:<5} {statistics.median(speeds):8.0f} target tokens/s ({min(speeds):.0f} to {max(speeds):.0f})"
            f"  {per_step:6.0f} target tokens/step  peak {memory:6.0f} MB"
        )
    ratios = [
        a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(measured["ours"], measured["trl"], strict=True)
    ]
    print(f"  ratio ours/trl: median {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


def _run_side(name: str, packing: bool, folder: str, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", name, "--work", folder, "--steps", str(steps)]
    done = subprocess.run(command + (["--packing"] if packing else []), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def prepare(folder: Path, data: str | None) -> str:
    """Write examples, a byte-level BPE tokenizer of 4,096 tokens trained on them, and the initial model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = Path(data or "") / "gsm8k" / "train.jsonl"
    if data and path.is_file():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        examples = [
            {"prompt": f"Question: {row['question']}\nAnswer:", "completion": " " + row["answer"]} for row in rows
        ]
        source = f"{len(examples)} of GSM8K"
    else:
        from evals import mini_world

        items = mini_world.items("word_problems", "train", 4000, 0)
        examples = [{"prompt": item.prompt, "completion": item.answer} for item in items]
        source = f"{len(examples)} word problems of the mini world"
    (folder / "examples.jsonl").write_text("\n".join(json.dumps(example) for example in examples))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((example["prompt"] + example["completion"] for example in examples), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder / "model"
    )
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=683,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    return source


def ours(folder: Path, packing: bool, steps: int) -> dict[str, float]:
    """Our loop on DeepSpeed."""
    from methods.finetune.sft import Sft, SftConfig
    from methods.kinds.causal import Causal
    from runners import processes, training
    from runners.batches import make_batches
    from runners.data import load_rows, tokenize
    from runners.engine import TrainingEngine
    from runners.models import load_model, load_tokenizer
    from runners.schema import Dataset, Engine, Model, Training

    processes.join(folder / "run")
    model_settings = vars(Model(id=str(folder / "model")))
    tokenizer = load_tokenizer(model_settings, None)
    dataset = vars(Dataset(source="file", path=str(folder / "examples.jsonl"), completion="{completion}"))
    examples = tokenize(load_rows(dataset), dataset, tokenizer, max_length=LENGTH, too_long="truncate")
    per_step = round(ROWS * LENGTH / examples.lengths.mean()) if packing else ROWS
    settings = vars(Training(steps=steps, batch_size=per_step, micro_batch_size=4, packing=packing, log_every=1))
    batches = make_batches(examples, settings, pad_token=0, max_length=LENGTH, seed=0)
    method = Sft(SftConfig())
    method.kind = Causal()
    optimizer = {"_target_": "torch.optim.AdamW", "lr": 1e-3, "fused": True}
    engine = TrainingEngine(load_model(model_settings, None, len(tokenizer)), optimizer, vars(Engine()), 1.0)
    seen: list[tuple[float, int]] = []

    def after_step(step: int) -> None:
        seen.append((time.perf_counter(), sum(batch.target_count for batch in batches.of_step(step))))

    method.after_step = after_step  # type: ignore[method-assign]
    roles = {"policy": engine.engine}
    training.train(method, engine, roles, batches, settings, lambda metrics, step: None, lambda progress: None)
    return _measured(seen)


def trl(folder: Path, packing: bool, steps: int) -> dict[str, float]:
    """TRL's SFTTrainer with its fastest options on this machine."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    counts: list[int] = []
    seen: list[tuple[float, int]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen.append((time.perf_counter(), counts[-1]))

    config = SFTConfig(
        output_dir=str(folder / "trl"), max_steps=steps, per_device_train_batch_size=ROWS, learning_rate=1e-3,
        max_length=LENGTH, packing=packing, completion_only_loss=True, optim="adamw_torch_fused",
        use_cpu=True, bf16=False,
        gradient_checkpointing=False, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
        train_sampling_strategy="random" if packing else "group_by_length", seed=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    trainer = SFTTrainer(
        model,
        config,
        train_dataset=datasets.load_dataset("json", data_files=str(folder / "examples.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[Clock()],
    )
    collate = trainer.data_collator

    def counting(features: Any) -> Any:
        batch = collate(features)
        counts.append(int((batch["labels"][:, 1:] != -100).sum()))
        return batch

    trainer.data_collator = counting
    trainer.train()
    return _measured(seen)


def _measured(seen: list[tuple[float, int]]) -> dict[str, float]:
    counted = seen[SKIPPED:]
    seconds = counted[-1][0] - seen[SKIPPED - 1][0]
    tokens = sum(count for _, count in counted)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tokens_per_second": tokens / seconds, "tokens_per_step": tokens / len(counted), "peak_mb": peak}


if __name__ == "__main__":
    main()
