"""lm-eval as a library: scores a causal LM that is in memory on lm-eval's tasks and the project's own.

What is measured is lm-eval's (L. Gao et al., "The Language Model Evaluation Harness"): its prompts, its
filters, its metric names. Added are what a table of runs needs: a number of few-shot examples, items and data
options per task, local copies of hub sets, a count of the prompts that had to be cut, and no trace left in
the model, the tokenizer or the global random generators.

Evaluation uses all ranks of torch.distributed's default process group if there is one, and can be interrupted:
what it measures does not depend on either (see `evals.resumable_lm`). It calls lm-eval's `evaluate`, not
`simple_evaluate`, which spends six more seconds per call on a description of the machine.

torch, transformers and lm-eval are imported when `evaluate` is called.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.journal import Journal, Stopped
from evals.local_data import local_copy, reader
from evals.task_index import IncludePath, TaskRequest, check_requests, task_folders

if TYPE_CHECKING:
    import transformers
    from lm_eval.api.task import Task
    from lm_eval.tasks.manager import TaskDict

__all__ = ["Evaluation", "Stopped", "TaskRequest", "evaluate"]

logger = logging.getLogger(__name__)

# Means have a standard error in closed form. The others that lm-eval can give one (perplexity, F1, BLEU, ...)
# are bootstrapped: a thousand draws know it to 2%, in a hundredth of the time of lm-eval's default.
BOOTSTRAP_DRAWS = 1000

# What lm-eval warns about at each call although it is meant so here, or is reported once per task instead.
_EXPECTED_WARNINGS = (
    "`pretrained` model kwarg is not of type `str`",
    "Passed an already-initialized model through `pretrained`",
    "Custom kwargs can be passed to `--metadata`",
    "Combined length of context",
    "Left truncation applied",
)


@dataclass
class Evaluation:
    """What was measured. All of it can be written as JSON.

    Attributes:
        metrics: of each task and each group that aggregates, lm-eval's names with filter, such as
            "exact_match,strict-match" and "exact_match_stderr,strict-match". A standard error that lm-eval
            does not have is left out.
        n_samples: of each task, items evaluated ("effective") and items there are ("original").
        cut_prompts: of each task, the items whose prompt lost its beginning because the model could not take
            all of it.
        groups: of each group, its direct members.
        num_fewshot: of each task, the examples in its prompts.
        task_versions: of each task and group, as its YAML says.
        higher_is_better: of each task and group, for each metric (without filter).
        lm_eval_version: the installed version.
        samples: of each task, lm-eval's record of each item: document, prompt, answers, filtered answers,
            metrics. Empty unless asked for.
    """

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    n_samples: dict[str, dict[str, int]] = field(default_factory=dict)
    cut_prompts: dict[str, int] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    num_fewshot: dict[str, int] = field(default_factory=dict)
    task_versions: dict[str, Any] = field(default_factory=dict)
    higher_is_better: dict[str, dict[str, bool | None]] = field(default_factory=dict)
    lm_eval_version: str = ""
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def evaluate(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    tasks: Sequence[TaskRequest],
    *,
    batch_size: int,
    seed: int,
    limit: int | None = None,
    max_length: int | None = None,
    data_root: str | Path | None = None,
    include_path: IncludePath = None,
    apply_chat_template: bool = False,
    confirm_run_unsafe_code: bool = False,
    progress: bool = True,
    log_samples: bool = True,
    journal: Path | None = None,
    fingerprint: str = "",
    lockstep: bool = False,
    should_stop: Callable[[], bool] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores `model` on `tasks`.

    Each request is evaluated on its own, so its result does not depend on what else is asked for. The model
    comes back in the mode (train or eval) of each of its modules, and the global random generators in the
    state, they had before.

    With a process group, every rank calls this with the same arguments and its own copy of the model (or, in
    `lockstep`, its share of one); the batches are dealt among them, and all get the same evaluation. Whatever
    the number of ranks, and whether or not it was interrupted, the result is the same bit for bit, given the
    same machine and number of threads.

    Args:
        model: a causal LM, on the device where it shall run.
        tokenizer: its tokenizer. A prompt gets the special tokens that the tokenizer adds by default, and
            never two BOS.
        tasks: what to evaluate; `check_requests` says beforehand what is wrong with them.
        batch_size: sequences per forward pass.
        seed: of everything random: choice and order of few-shot examples, and sampled answers.
        limit: only so many first items of each task; where the request sets a limit too, the smaller counts.
        max_length: tokens of prompt and answer together; default is what the model takes.
        data_root: folder with local copies of hub sets (see `evals.local_data`; named configurations other
            than "main" and "default" in a folder of that name below it). A set without a copy comes from the
            hub.
        include_path: further folders with task YAMLs; they win over the project's and lm-eval's.
        apply_chat_template: whether prompts are put into the tokenizer's chat template.
        confirm_run_unsafe_code: must be true for tasks that execute what the model writes.
        progress: whether to show progress bars, if standard error is a terminal.
        log_samples: whether to keep each item's record.
        journal: file that keeps finished batches; those that it has are not computed again. It may be deleted
            once the result is safe. Only rank 0 reads and writes it.
        fingerprint: of all that the answers depend on and this function cannot see: the model's weights and
            precision, the tokenizer. Needed with a journal; a journal of another fingerprint is replaced.
        lockstep: whether the ranks must make the same forward passes, because they hold one model in shares
            (ZeRO-3).
        should_stop: asked between batches; all ranks stop when it is true on one.
        on_progress: called on rank 0 with the number of batches that are done and that there are in the list
            of requests at hand: a task or group has one list per kind of request.

    Raises:
        ValueError: an argument breaks its rule, or the model cannot take a task's answers.
        Stopped: `should_stop` was true with batches left to do.
    """
    check_requests(tasks, include_path, confirm_run_unsafe_code=confirm_run_unsafe_code)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"evaluation.batch_size must be a whole number >= 1, got {batch_size!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"evaluation.limit must be >= 1, got {limit}")
    if data_root is not None and not Path(data_root).is_dir():
        raise ValueError(f"evaluation.data_root must be an existing folder, got {data_root}")
    if journal is not None and not fingerprint:
        raise ValueError("fingerprint must say whose answers the journal keeps, got none")
    _check_max_length(model, max_length)
    _check_tokenizer(tokenizer, apply_chat_template)

    import lm_eval
    from tqdm import tqdm

    from evals.ranks import Ranks
    from evals.resumable_lm import ResumableLM, seed_all

    ranks = Ranks()
    show_bars = progress and sys.stderr.isatty() and ranks.rank == 0
    result = Evaluation(lm_eval_version=lm_eval.__version__)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_leave_no_trace(model, tokenizer))
        stack.enter_context(_quiet())
        kept = None
        if journal is not None and ranks.rank == 0:
            kept = stack.enter_context(Journal(journal, _answers_fingerprint(fingerprint, max_length)))
        lm = ResumableLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            ranks=ranks,
            journal=kept,
            lockstep=lockstep,
            should_stop=should_stop,
            on_progress=on_progress,
            show_bars=show_bars,
        )
        # All data first: what is wrong with it shows before the first forward pass.
        loaded = [_load(request, seed, data_root, include_path) for request in tasks]
        bar = tqdm(tasks, desc="evaluate", unit="task", disable=not show_bars)
        for request, task_dict in zip(bar, loaded, strict=True):
            bar.set_postfix_str(request.name)
            seed_all(seed)
            results = lm_eval.evaluate(
                lm=lm,
                task_dict=task_dict,
                limit=min((bound for bound in (request.limit, limit) if bound is not None), default=None),
                bootstrap_iters=BOOTSTRAP_DRAWS,
                log_samples=log_samples,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=apply_chat_template,
                confirm_run_unsafe_code=confirm_run_unsafe_code,
            )
            _add_results(result, results)
            logger.info("evaluated %s", request.name)
        # Answers agree, but a metric may run code that the model wrote, which can end otherwise elsewhere.
        result = ranks.from_first(result)
    result.cut_prompts = {task: lm.cut_prompts(task) for task in result.n_samples}
    for task, count in result.cut_prompts.items():
        if count:
            logger.warning(
                "%s: %d of %d prompts were cut from the left to fit into %d tokens",
                task, count, result.n_samples[task]["effective"], lm.max_length,
            )  # fmt: skip
    return result


def _check_max_length(model: transformers.PreTrainedModel, max_length: int | None) -> None:
    config = getattr(model.config, "text_config", None) or model.config
    model_length = getattr(config, "max_position_embeddings", None)
    if max_length is not None and max_length < 2:
        raise ValueError(f"evaluation.max_length must be >= 2, got {max_length}")
    if max_length is not None and model_length is not None and max_length > model_length:
        raise ValueError(f"evaluation.max_length must be <= {model_length}, the model's own, got {max_length}")


def _check_tokenizer(tokenizer: transformers.PreTrainedTokenizerBase, apply_chat_template: bool) -> None:
    if tokenizer.eos_token_id is None:
        raise ValueError("model.tokenizer must have an EOS token, which ends generated answers, got none")
    if tokenizer.encode("a")[-1] == tokenizer.eos_token_id:
        raise ValueError("model.tokenizer must not put EOS after a prompt to be continued, got one that does")
    if apply_chat_template and not tokenizer.chat_template:
        raise ValueError("evaluation.apply_chat_template must be false for a tokenizer without one, got true")


def _answers_fingerprint(fingerprint: str, max_length: int | None) -> str:
    """What answers depend on, besides seed and contents of their batch, which the journal's keys carry."""
    versions = {package: version(package) for package in ("lm_eval", "torch", "transformers")}
    return json.dumps({"caller": fingerprint, "max_length": max_length, **versions})


# Tasks ------------------------------------------------------------------------------------------------------


def _load(request: TaskRequest, seed: int, data_root: str | Path | None, include_path: IncludePath) -> TaskDict:
    """The tasks of a request with their data. A `TaskManager` of its own keeps its metadata to it."""
    from lm_eval.tasks import TaskManager

    from evals.resumable_lm import seed_all

    seed_all(seed)
    manager = TaskManager(
        include_path=list(task_folders([request.name], include_path)),
        include_defaults=False,
        metadata=dict(request.metadata or {}),
    )
    if data_root is not None:
        # Overrides given with a group reach all its members alike, but each member has its own data. The one
        # place where lm-eval has a member's whole configuration in hand, before it reads the data, is this
        # method.
        factory = manager._factory
        load_config = factory._load_full_config

        def load_local_config(entry: Any, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
            return _with_local_data(load_config(entry, overrides), Path(data_root))

        factory._load_full_config = load_local_config
    loaded = manager.load([request.name])
    for name, task in loaded["tasks"].items():
        _set_fewshot(request, name, task, seed)
    return loaded


def _with_local_data(config: dict[str, Any], data_root: Path) -> dict[str, Any]:
    """A task's configuration, reading the copy of its hub set below `data_root` if there is one.

    The copy is used only when it has all splits that the task reads.
    """
    hub_id = config.get("dataset_path")
    # A group has a list of tasks here; a path without a slash names a reader of files, such as "json".
    if not isinstance(config.get("task"), str) or not isinstance(hub_id, str) or "/" not in hub_id:
        return config
    files = _local_files(hub_id, config.get("dataset_name"), data_root)
    splits = _splits_read(config)
    missing = sorted(splits - set(files))
    readers = {reader(path) for split, path in files.items() if split in splits}
    if missing or len(readers) != 1:
        why = "no copy" if not files else f"no {', '.join(missing)}" if missing else "mixed formats"
        logger.info("%s: reads %s from the hub (%s in %s)", config["task"], hub_id, why, data_root)
        return config
    data_files = {split: str(files[split]) for split in sorted(splits)}
    logger.info("%s: reads %s from %s", config["task"], hub_id, ", ".join(data_files.values()))
    return config | {
        "dataset_path": readers.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": data_files},
    }


def _local_files(hub_id: str, configuration: str | None, data_root: Path) -> dict[str, Path]:
    """The files of a hub set by split. A named configuration has its files in a folder of that name."""
    if configuration is not None:
        for base in (data_root / hub_id, data_root / hub_id.split("/")[-1]):
            if (base / configuration).is_dir():
                return local_copy(configuration, str(base))
    return local_copy(hub_id, str(data_root)) if configuration in (None, "main", "default") else {}


def _splits_read(config: Mapping[str, Any]) -> set[str]:
    """The splits that lm-eval reads: of the items, and of the few-shot examples (even if it shows none)."""
    train, validation, test = (config.get(f"{name}_split") for name in ("training", "validation", "test"))
    fewshot = config.get("fewshot_config") or {}
    examples = fewshot.get("split") or config.get("fewshot_split")
    if examples is None and "samples" not in fewshot:
        examples = train or validation
    return {split for split in (test or validation, examples) if split is not None}


def _set_fewshot(request: TaskRequest, name: str, task: Task, seed: int) -> None:
    """Sets number and seed of a task's few-shot examples, as lm-eval's `simple_evaluate` does."""
    own = task.get_config("num_fewshot")
    wanted = request.num_fewshot if request.num_fewshot is not None else own or 0
    if own == 0 and wanted:
        logger.warning("%s: num_fewshot stays 0, which the task fixes, instead of %d", name, wanted)
        wanted = 0
    sampler = getattr(task, "sampler", None)
    if wanted and sampler is not None and wanted > len(sampler.df):
        raise ValueError(
            f"evaluation.tasks.{request.name}.num_fewshot must be at most {len(sampler.df)}, "
            f"the examples that {name} has, got {wanted}"
        )
    task.set_config(key="num_fewshot", value=wanted)
    task.set_fewshot_seed(seed=seed)


# Results ----------------------------------------------------------------------------------------------------


def _add_results(result: Evaluation, results: Mapping[str, Any]) -> None:
    """Adds lm-eval's results of one request to `result`."""
    for name, measured in results["results"].items():
        # Besides the metrics, whose names have a comma, there are the task's name, its size and the like;
        # "N/A" stands for a standard error that lm-eval cannot give.
        metrics = {key: value for key, value in measured.items() if "," in key and not isinstance(value, str)}
        if metrics:
            result.metrics[name] = {key: float(value) for key, value in metrics.items()}
    for name, counts in results["n-samples"].items():
        result.n_samples[name] = {key: int(counts[key]) for key in ("effective", "original")}
        result.num_fewshot[name] = int(results["n-shot"][name])
    result.groups |= results["group_subtasks"]
    result.task_versions |= results["versions"]
    result.higher_is_better |= results["higher_is_better"]
    result.samples |= _as_json(results.get("samples", {}))


def _as_json(value: Any) -> Any:
    from lm_eval.utils import handle_non_serializable

    return json.loads(json.dumps(value, default=handle_non_serializable))


# What evaluation must not change ----------------------------------------------------------------------------


@contextlib.contextmanager
def _leave_no_trace(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> Iterator[None]:
    """Restores each module's mode, the tokenizer's padding and the global random generators."""
    import numpy as np
    import torch

    # All GPUs, because seeding reaches all; but none is woken up for this.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    modes = {module: module.training for module in model.modules()}
    padding = tokenizer.pad_token, tokenizer.padding_side
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        tokenizer.pad_token, tokenizer.padding_side = padding
        for module, training in modes.items():
            module.training = training


# Noise ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Only what is news to the user gets through.

    Off are lm-eval's messages below WARNING and its `_EXPECTED_WARNINGS`, transformers' messages below ERROR
    (about generation settings that a task replaces), the bars of every small step (those of model calls stay,
    if shown at all), and what the bootstrap prints. The bootstrap also gets no pool of processes, which is
    unsafe beside threads and GPUs.
    """
    import transformers
    from tqdm import tqdm

    lm_eval_logger = logging.getLogger("lm_eval")
    level, verbosity = lm_eval_logger.level, transformers.logging.get_verbosity()
    filtered = [logging.getLogger(f"lm_eval.{module}") for module in ("models.huggingface", "api.task")]
    no_pool = os.environ.get("DISABLE_MULTIPROC")
    bar_init = tqdm.__init__
    lm_eval_logger.setLevel(max(level, logging.WARNING))
    transformers.logging.set_verbosity_error()
    os.environ["DISABLE_MULTIPROC"] = "1"
    # Only a new default: bars that say themselves whether they are shown, as those of model calls do, are not
    # changed.
    tqdm.__init__ = functools.partialmethod(bar_init, disable=True)
    for module_logger in filtered:
        module_logger.addFilter(_is_news)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for module_logger in filtered:
            module_logger.removeFilter(_is_news)
        tqdm.__init__ = bar_init
        if no_pool is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = no_pool
        transformers.logging.set_verbosity(verbosity)
        lm_eval_logger.setLevel(level)
        if printed.getvalue():
            logger.debug("lm-eval printed: %s", printed.getvalue().strip())


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(expected in message for expected in _EXPECTED_WARNINGS)
