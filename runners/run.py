"""One run, from its checked configuration to its result: load, method, evaluate, record."""

import contextlib
import gc
import importlib
import logging
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evals.harness import Evaluation, TaskRequest, evaluate
from methods.batch import Batch
from methods.kinds import Causal, adapter
from methods.method import Method
from methods.objective import Objective
from runners import fingerprint, record, signatures, training
from runners.batches import Batches, make_batches
from runners.compose import RunSpec
from runners.data import Examples, load_rows, tokenize
from runners.engine import TrainingEngine, device, frozen_engine, start_processes
from runners.errors import UserError
from runners.models import context_length, load_model, load_tokenizer
from runners.progress import progress
from runners.record import Recorder
from runners.tracker import Tracker, open_tracker

log = logging.getLogger(__name__)


def run(spec: RunSpec) -> dict[str, Any]:
    """Make a run's result exist: skip it when done, run its parent first, then itself. Returns the result.

    Raises:
        UserError: the parent is stale; a mistake that only the data or the model could show.
    """
    known = record.status(spec)
    again = spec.config["rerun"]
    if known.result is not None and (known.state == "done" or again == "missing") and again != "all":
        if known.state == "stale":
            log.warning("skipped: %s is stale (%s); rerun=stale runs it again", spec.name, known.reason)
        else:
            log.info("skipped: %s is done (%s)", spec.name, spec.folder / "result.json")
        return known.result
    if spec.parent is not None:
        if signatures.read(spec.config["method"]["_target_"]).attributes.get("trained"):
            load_rows(spec.config["dataset"])  # a mistake in the data is told before the parent's minutes of training
        _ensure_parent(spec)
    if known.result is not None:
        log.info("%s: its former result is kept in %s", spec.name, record.set_aside(spec.folder))
    with _logging_to(spec.folder):
        return _execute(spec)


def _ensure_parent(spec: RunSpec) -> None:
    parent = spec.parent
    assert parent is not None
    known = record.status(parent)
    if known.state == "stale" and spec.config["rerun"] == "missing":
        raise UserError(
            f"model.from_run: the parent run {parent.folder} is stale ({known.reason}); add rerun=stale to run it again"
        )
    if known.state != "done":
        log.info("%s needs %s, which runs first", spec.name, parent.name)
        run(parent)
    if not (parent.folder / "model").is_dir():
        raise UserError(f"model.from_run: {parent.folder} holds no final weights (keep=none); run it with keep=last")


def _execute(spec: RunSpec) -> dict[str, Any]:
    recorder = Recorder(spec)
    began = time.perf_counter()
    config = spec.config
    if config["engine"]["threads"]:
        torch.set_num_threads(config["engine"]["threads"])
    rank, world = start_processes()
    recorder.open(
        {
            **fingerprint.environment(),
            "processes": world,
            "threads": torch.get_num_threads(),
            "device": str(device()),
        }
    )
    group, job_type = spec.experiment, spec.choices["method"]
    log.info("run %s", spec.name)
    tracker = open_tracker(
        config["tracker"],
        folder=spec.folder,
        name=spec.name,
        group=group,
        job_type=job_type,
        config={**config, "identity": spec.identity},
    )
    try:
        training.seed_everything(spec.seed)
        context = RunContext(spec, recorder, tracker, rank, world)
        method_metrics = dict(context.method.run(context))
        trained = bool(context.method.trained)
        if trained:
            context.save_model()
        context.close()
        evaluation = _evaluate(spec, context)
        seconds = time.perf_counter() - began
        for task, samples in evaluation.samples.items():
            recorder.samples(task, samples)
        result = {
            "metrics": evaluation.metrics,
            "samples": evaluation.n_samples,
            "cut_prompts": evaluation.cut_prompts,
            "evaluation": {
                "lm_eval": evaluation.lm_eval_version,
                "tasks": evaluation.task_versions,
                "num_fewshot": evaluation.num_fewshot,
                "groups": evaluation.groups,
                "higher_is_better": evaluation.higher_is_better,
            },
            "method_metrics": method_metrics,
            "seconds": seconds,
        }
        tracker.summary(_flat(result))
    except BaseException as error:
        recorder.failure(error)
        tracker.finish(failed=True)
        raise
    shutil.rmtree(spec.folder / "checkpoints", ignore_errors=True)
    if config["keep"] == "none":
        shutil.rmtree(spec.folder / "model", ignore_errors=True)
    recorder.result(result)
    tracker.finish()
    log.info("done: %s in %.0f s", spec.name, seconds)
    return result


def _evaluate(spec: RunSpec, context: "RunContext") -> Evaluation:
    """Measure what was saved, loaded again; an untrained model as it was loaded."""
    settings = spec.config["evaluation"]
    if not settings["tasks"]:
        return Evaluation()
    saved = spec.folder / "model"
    # Evaluation runs in the precision the model computes with.
    dtype = "bfloat16" if spec.config["engine"]["precision"] != "fp32" else spec.config["model"]["dtype"]
    if context.method.trained:
        source = {**spec.config["model"], "id": str(saved), "from_run": None, "architecture": None}
        model = load_model(source, None, len(context.tokenizer), dtype)
    else:
        model = load_model(spec.config["model"], context.parent, len(context.tokenizer), dtype)
    try:
        return evaluate(
            model.to(device()).eval(),
            context.tokenizer,
            [TaskRequest(**task) for task in settings["tasks"]],
            batch_size=settings["batch_size"],
            limit=settings["limit"],
            max_length=settings["max_length"],
            data_root=settings["data_root"],
            include_path=settings["include_path"],
            seed=spec.seed,
            apply_chat_template=settings["apply_chat_template"],
            confirm_run_unsafe_code=settings["confirm_run_unsafe_code"],
        )
    except ValueError as error:
        raise UserError(f"evaluation: {error}") from error


class RunContext:
    """What a run offers its method (`methods.method.Context`); data and models are loaded when first asked for."""

    def __init__(self, spec: RunSpec, recorder: Recorder, tracker: Tracker, rank: int, world: int) -> None:
        self.spec, self.config, self.seed, self.folder = spec, spec.config, spec.seed, spec.folder
        self._recorder, self._tracker = recorder, tracker
        self._rank, self._world = rank, world
        self.kind: Causal = adapter(spec.config["model"]["kind"])
        self.parent = spec.parent.folder if spec.parent else None
        self.method = build_method(spec.config["method"])
        self._roles: dict[str, nn.Module] = {}
        self._engines: dict[str, TrainingEngine] = {}
        self.tokenizer = load_tokenizer(self.config["model"], self.parent)

    @cached_property
    def _data(self) -> Batches:
        training_settings = self.config["training"]
        rows = load_rows(self.config["dataset"])
        longest = training_settings["max_length"] or self._context_length
        if longest > self._context_length:
            raise UserError(f"training.max_length={longest}: the model takes at most {self._context_length} tokens")
        examples: Examples = tokenize(
            rows,
            self.config["dataset"],
            self.tokenizer,
            max_length=longest,
            too_long=training_settings["too_long"],
        )
        log.info(
            "%d training examples, %d tokens, longest %d",
            len(examples),
            len(examples.tokens),
            examples.lengths.max(),
        )
        assert isinstance(self.tokenizer.pad_token_id, int)
        return make_batches(
            examples,
            training_settings,
            pad_token=self.tokenizer.pad_token_id,
            max_length=longest,
            seed=self.seed,
            rank=self._rank,
            world=self._world,
        )

    @cached_property
    def _context_length(self) -> int:
        return context_length(self.config["model"], self.parent)

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return len(self._data.examples)

    def role(self, name: str) -> nn.Module:
        """The model of a role: an engine that can be called like the model."""
        if name not in self._roles:
            _ = self._data  # a mistake in the data is told before a model is loaded
            model = load_model(self.config["model"], self.parent, len(self.tokenizer))
            if name in self.method.trained:
                engine = TrainingEngine(
                    model,
                    self.config["optimizer"],
                    self.config["engine"],
                    self.config["training"]["clip_norm"],
                )
                self._engines[name], self._roles[name] = engine, engine.engine
            else:
                self._roles[name] = frozen_engine(model, self.config["engine"])
        return self._roles[name]

    def batches(self, description: str) -> Iterator[Batch]:
        """All training examples once, in the order of the data set, in micro-batches."""
        with progress(description, self.examples) as advance:
            for batch in self._data.in_order():
                yield batch.to(device())
                advance(len(batch.example_S))

    def train(self, objective: Method) -> Mapping[str, float]:
        """Minimise the objective on its trained role."""
        if not isinstance(objective, Objective) or len(objective.trained) != 1:
            raise UserError(f"method={type(objective).__name__}: an objective trains one role, got {objective.trained}")
        roles = {name: self.role(name) for name in (*objective.trained, *objective.frozen)}
        engine = self._engines[objective.trained[0]]
        start = training.restore(engine, objective, self.folder)
        self._recorder.forget_after(start)
        return training.train(
            objective, engine, roles, self._data, self.config["training"], self.folder, self._log, start
        )

    def log(self, metrics: Mapping[str, float]) -> None:
        """Record metrics that belong to no training step."""
        self._recorder.metrics(metrics, None)
        self._tracker.summary(dict(metrics))

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        self._recorder.metrics(metrics, step)
        self._tracker.log(dict(metrics), step)

    def save_model(self) -> None:
        """Write the trained policy and its tokenizer to `<run>/model`, as transformers loads them."""
        engine = self._engines[self.method.trained[0]]
        weights = engine.weights()
        beside = self.folder / "model.writing"
        engine.engine.module.save_pretrained(beside, state_dict=weights, safe_serialization=True)
        self.tokenizer.save_pretrained(beside)
        shutil.rmtree(self.folder / "model", ignore_errors=True)
        beside.rename(self.folder / "model")

    def close(self) -> None:
        """Free models and engines before the evaluation loads what was saved."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._roles.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def build_method(settings: Mapping[str, Any]) -> Method:
    """Build the method that `method:` names, with its hyper-parameters in its own dataclass."""
    module_name, _, class_name = settings["_target_"].rpartition(".")
    module = importlib.import_module(module_name)
    class_ = getattr(module, class_name)
    config_type = signatures.config_class(class_)
    built = class_(config_type(**{key: value for key, value in settings.items() if key != "_target_"}))
    if not isinstance(built, Method):
        raise UserError(f"method._target_={settings['_target_']}: must be a subclass of methods.method.Method")
    return built


@contextlib.contextmanager
def _logging_to(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    except BaseException:
        with (folder / "run.log").open("a", encoding="utf-8") as file:
            file.write(traceback.format_exc())  # the terminal gets one line; the log keeps the whole
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat |= _flat(value, name)
        elif isinstance(value, int | float | str):
            flat[name] = value
    return flat
