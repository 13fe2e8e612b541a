"""GRPO's speed against TRL's GRPOTrainer: steps per second in one run, and where the time goes.

    python scripts/bench_rl.py [--rounds 3] [--steps 12] [--group 8] [--prompts 16] [--new 32] [--beta 0.0]

Both train the same Llama from the same random weights on the same prompts of random words: as many prompts and
responses a step, sampled at temperature 1 to the same length, graded by the same function (the penalty on repeated
words), one optimizer step on each batch, AdamW, no logging or saving. Each measurement is a process of its own; the
sides take turns, and the first steps of each are not counted. What ends a response is hardly ever drawn, so that both
sides write equally many tokens.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SKIPPED = 3


def main() -> None:
    """Measure both sides in turns and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--group", type=int, default=8, help="responses to a prompt")
    parser.add_argument("--prompts", type=int, default=16, help="in a step")
    parser.add_argument("--new", type=int, default=32, help="tokens of a response")
    parser.add_argument("--length", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--beta", type=float, default=0.0, help="weight of the KL to a reference")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(trl(options) if options.side == "trl" else ours(options)))
        return
    print(
        f"{options.rounds} rounds of {options.steps} steps ({SKIPPED} not counted): {options.prompts} prompts of "
        f"{options.length} tokens, {options.group} responses of {options.new}, beta {options.beta}, vocabulary "
        f"{options.vocabulary}, width {options.width}, {options.layers} layers, {os.cpu_count()} cores"
    )
    measured: dict[str, list[dict[str, float]]] = {"trl": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options)
        for number in range(options.rounds):
            for side in list(measured) if number % 2 == 0 else list(measured)[::-1]:
                measured[side].append(_run_side(side, folder))
    report(measured)


def report(measured: dict[str, list[dict[str, float]]]) -> None:
    """Print the medians of both sides, the median of their ratios round by round, and our shares."""
    for side, runs in measured.items():
        speed = statistics.median(run["steps_per_second"] for run in runs)
        tokens = statistics.median(run["response_tokens"] for run in runs)
        print(f"  {side:<5} {speed:7.3f} steps/s   {tokens:.1f} tokens a response")
    pairs = zip(measured["ours"], measured["trl"], strict=True)
    print(f"  ratio {statistics.median(a['steps_per_second'] / b['steps_per_second'] for a, b in pairs):.2f}")
    shares = {
        name: statistics.median(run[name] for run in measured["ours"]) for name in ("generation", "reward", "update")
    }
    total = sum(shares.values())
    print("  ours  " + ", ".join(f"{name} {100 * value / total:.0f}%" for name, value in shares.items()))


def _run_side(side: str, folder: str) -> dict[str, float]:
    command = [sys.executable, *sys.argv, "--side", side, "--work", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{side}: {done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Write prompts of random words, a tokenizer of one token a word, and the initial model."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    generator = np.random.default_rng(0)
    rows = [
        {"prompt": " ".join(f"w{n}" for n in generator.integers(2, options.vocabulary, options.length)), "answer": "w2"}
        for _ in range(options.prompts * options.steps)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
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
        max_position_embeddings=options.length + options.new,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")


def ours(options: argparse.Namespace) -> dict[str, float]:
    """A run of `method=rl/grpo`, composed from YAML as a user's is."""
    from hydra import initialize_config_module

    from runners.compose import run_spec
    from runners.model_context import ModelContext
    from runners.run import execute

    folder = Path(options.work)
    ends: list[float] = []
    steps: list[dict[str, float]] = []
    log = ModelContext.log

    def timed(self: Any, metrics: Any, step: int | None = None) -> None:
        if step is not None:
            ends.append(time.perf_counter())
            steps.append(dict(metrics))
        log(self, metrics, step)

    ModelContext.log = timed  # type: ignore[method-assign]
    with initialize_config_module(config_module="conf", version_base="1.3"):
        spec = run_spec(
            [
                "model=hf", f"model.id={folder / 'model'}", "dataset=file", f"dataset.path={folder / 'prompts.jsonl'}",
                "dataset.type=problem", "method=rl/grpo", f"method.group_size={options.group}",
                "method.rewards=[{function: evals.rewards.repetition.repeated_ngrams, options: {n: 1}}]",
                f"method.max_new_tokens={options.new}", f"method.beta={options.beta}",
                f"training.steps={options.steps}",
                f"training.batch_size={options.prompts}",
                f"training.micro_batch_size={options.prompts * options.group}", "training.log_every=1",
                "training.checkpoint_minutes=null", "optimizer.lr=1e-6", "evaluation=none", "tracker=none",
                f"outputs={folder / f'ours-{os.getpid()}'}",
            ]
        )  # fmt: skip
        execute(spec)
    counted = steps[SKIPPED:]
    return {
        "steps_per_second": (len(ends) - SKIPPED) / (ends[-1] - ends[SKIPPED - 1]),
        "response_tokens": statistics.mean(step["train/response_tokens"] for step in counted),
        **{
            name: statistics.mean(step[f"train/{name}_seconds"] for step in counted)
            for name in ("generation", "reward", "update")
        },
    }


def trl(options: argparse.Namespace) -> dict[str, float]:
    """TRL's GRPOTrainer."""
    import datasets
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from evals.rewards.repetition import repeated_ngrams

    folder = Path(options.work)
    ends: list[float] = []
    lengths: list[int] = []

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def reward(completions: list[str], **more: Any) -> list[float]:
        lengths.extend(len(ids) for ids in more["completion_ids"])
        return repeated_ngrams([""] * len(completions), completions, n=1)

    responses = options.prompts * options.group
    config = GRPOConfig(
        output_dir=str(folder / "trl"), max_steps=options.steps, per_device_train_batch_size=responses,
        num_generations=options.group, max_completion_length=options.new, beta=options.beta, loss_type="grpo",
        temperature=1.0, learning_rate=1e-6, use_cpu=True, bf16=False, gradient_checkpointing=False,
        logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True, seed=0,
        optim="adamw_torch_fused",
    )  # fmt: skip
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        reward_funcs=reward,
        args=config,
        train_dataset=datasets.load_dataset("json", data_files=str(folder / "prompts.jsonl"), split="train"),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder / "model"),
        callbacks=[Ticks()],
    )
    trainer.train()
    return {
        "steps_per_second": (len(ends) - SKIPPED) / (ends[-1] - ends[SKIPPED - 1]),
        "response_tokens": statistics.mean(lengths),
    }


if __name__ == "__main__":
    main()
