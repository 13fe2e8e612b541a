"""A tiny model, a tokenizer of bytes and tasks on local files, for tests of evaluation.

Run as a script it is one rank of an evaluation of several (see `main`).
"""

import dataclasses
import json
import os
import signal
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evals.harness import Evaluation, Stopped, TaskRequest, evaluate

CONTEXT = 256


def byte_tokenizer(add_bos: bool = False, add_eos: bool = False, eos: str | None = "<eos>") -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<bos>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if add_bos or add_eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> " * add_bos + "$A" + " <eos>" * add_eos, special_tokens=[("<bos>", 0), ("<eos>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token=eos)


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=1, attention_dropout=0.5,
        initializer_range=0.5,
    )  # fmt: skip


def write_json_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_task(folder: Path, name: str, rows: list[dict], yaml: str, train: list[dict] = ()) -> Path:
    """A task on local files with columns prompt and answer; `yaml` is the rest of its configuration."""
    files = {"test": str(write_json_lines(folder / f"{name}-test.jsonl", rows))}
    splits = "test_split: test\n"
    if train:
        files["train"] = str(write_json_lines(folder / f"{name}-train.jsonl", train))
        splits += "fewshot_split: train\n"
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {json.dumps({'data_files': files})}\n{splits}"
        f"doc_to_text: prompt\ndoc_to_target: answer\ntarget_delimiter: ''\n{yaml}"
    )
    return folder


SCORED = "output_type: loglikelihood\nmetric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
GENERATED = (
    "output_type: generate_until\ngeneration_kwargs: {until: ['.'], do_sample: false, max_gen_toks: 8}\n"
    "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
)


# An evaluation with every kind of request -------------------------------------------------------------------


def write_tasks(folder: Path) -> Path:
    """Tasks beside the mini world's: choices of one and of several tokens, texts as a whole, sampled answers."""
    folder.mkdir()
    rows = [{"prompt": "abcdefgh"[: 2 + number % 5] * (1 + number % 3), "answer": "yz"} for number in range(7)]
    write_task(folder, "letters", rows, "output_type: multiple_choice\ndoc_to_choice: ['y', 'yz', 'z', 'zzz']\n")
    texts = [{"prompt": "", "answer": "What a long text. " * (number % 4 + 1)} for number in range(5)]
    metrics = "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n"
    write_task(folder, "texts", texts, "output_type: loglikelihood_rolling\n" + metrics)
    # Answers end early, and some batches have the same prompts.
    sampled = GENERATED.replace("do_sample: false", "do_sample: true, temperature: 1.0")
    sampled = sampled.replace("['.']", json.dumps(list(string.ascii_letters)))
    write_task(folder, "sampled", [{"prompt": "abc", "answer": "d"}, *rows[:3]], sampled + "repeats: 6\n")
    return folder


REQUESTS = (
    TaskRequest("mini_world_general", metadata={"count": 4}),
    TaskRequest("letters"),
    TaskRequest("texts"),
    TaskRequest("sampled"),
    TaskRequest("mini_world_word_problems", limit=4),
)


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(config()).eval()


def note_forwards(model: torch.nn.Module) -> list[tuple[int, ...]]:
    """A list to which each forward pass of `model` adds the shape of its input."""
    shapes = []

    def note(module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        ids = keywords["input_ids"] if "input_ids" in keywords else arguments[0]
        shapes.append(tuple(ids.shape))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def evaluate_all(tasks: Path, model: LlamaForCausalLM, **arguments: Any) -> Evaluation:
    """With so few tokens that some prompts of each task are cut and texts have several windows."""
    settings = {"batch_size": 3, "seed": 5, "max_length": 40, "fingerprint": "tiny", "progress": False, **arguments}
    return evaluate(model, byte_tokenizer(), REQUESTS, include_path=tasks, **settings)


def after(count: int, act: Callable[[], Any]) -> Callable[[int, int], None]:
    """For `on_progress`: acts each time when at least `count` batches have been computed (not found)."""
    computed, last = 0, None

    def on_progress(done: int, total: int) -> None:
        nonlocal computed, last
        if last is not None:
            computed += done - last
        last = done if done < total else None  # the next list of requests starts with what is found of it
        if computed >= count:
            act()

    return on_progress


def _fail(fails: bool) -> None:
    if fails:
        raise ZeroDivisionError("on purpose")


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(rank: int, ranks: int, folder: Path) -> None:
    """Evaluates straight through and in lockstep, and wrongly: other requests on each rank, a failing last rank.

    Then with a journal: stopped by the last rank, and on until rank 0 kills itself. What happened is in `rank-N.json`.
    """
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    model, tasks, journal = tiny_llama(), folder / "tasks", folder / "journal.jsonl"
    forwards = note_forwards(model)
    straight = evaluate_all(tasks, model)
    dealt = len(forwards)
    lockstep = evaluate_all(tasks, model, lockstep=True)
    report = {
        "straight": dataclasses.asdict(straight),
        "lockstep": dataclasses.asdict(lockstep),
        "forwards": dealt,
        "lockstep_forwards": len(forwards) - dealt,
    }
    try:
        evaluate_all(tasks, model, limit=2 + rank)
    except RuntimeError as error:
        report["different"] = str(error)
    hook = model.register_forward_hook(lambda *_: _fail(rank == ranks - 1))
    try:
        evaluate_all(tasks, model)
    except (RuntimeError, ZeroDivisionError) as error:
        report["failed"] = repr(error)
    hook.remove()
    asked = []

    def should_stop() -> bool:
        asked.append(None)
        return rank == ranks - 1 and len(asked) == 4

    try:
        evaluate_all(tasks, model, journal=journal, should_stop=should_stop)
    except Stopped as stopped:
        report["stopped"] = str(stopped)
    (folder / f"rank-{rank}.json").write_text(json.dumps(report))
    evaluate_all(tasks, model, journal=journal, on_progress=after(8, kill_this_process))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
