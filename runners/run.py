"""One run, from its checked configuration to its result: load, method, evaluate, record."""

import contextlib
import dataclasses
import gc
import importlib
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evals.harness import Evaluation, Stopped, TaskRequest, evaluate
from methods.batch import Batch
from methods.kinds import Causal, adapter
from methods.method import Method
from methods.objective import Objective
from runners import (
    checkpoints,
    failures,
    fingerprint,
    lock,
    preemption,
    processes,
    record,
    retention,
    signatures,
    sweep,
    training,
)
from runners.batches import Batches, make_batches
from runners.compose import RunSpec
from runners.data import Examples, load_rows, tokenize
from runners.engine import TrainingEngine, close_frozen, device, frozen_engine
from runners.errors import UserError
from runners.models import context_length, load_model, load_tokenizer
from runners.progress import progress
from runners.record import Recorder
from runners.tracker import NullTracker, Tracker, open_tracker

log = logging.getLogger(__name__)


_PATIENCE = 5.0  # seconds between two looks at a lock that another process holds
_BUSY = "busy"


def run(spec: RunSpec) -> dict[str, Any]:
    """Make a run's result exist: skip it when done, run its parent first, then itself. Returns the result.

    Every rank calls it where several were started; only the first decides and writes.

    Raises:
        UserError: the parent is stale; a mistake that only the data or the model could show; what the machine refuses.
        BusyError: another process is at work on it, and `busy=fail`.
        Preempted: told to stop; the same command continues.
    """
    if processes.given():
        processes.join(spec.folder)
    with contextlib.ExitStack() as held:
        held.enter_context(preemption.listening())
        try:
            return _run_locked(spec, held)
        except Exception as error:
            known = failures.explain(error, spec.config, spec.folder)
            if known is None:
                raise
            raise known from error


def _run_locked(spec: RunSpec, held: contextlib.ExitStack) -> dict[str, Any]:
    told: list[str] = []
    while (known := processes.first_decides(lambda: _take(spec, held, told))) == _BUSY:
        # All ranks meet here between two looks, so that none waits alone for long, and all can be told to stop.
        if processes.any_rank(preemption.requested()):
            raise processes.stop(f"while it waited for {spec.name}")
    if isinstance(known, dict):
        return known
    if spec.parent is not None:
        if signatures.read(spec.config["method"]["_target_"]).attributes.get("trained"):
            load_rows(spec.config["dataset"])  # a mistake in the data is told before the parent's minutes of training
        _ensure_parent(spec, spec.parent)
    processes.first_decides(lambda: _make_way(spec))
    workers, nodes = max(spec.config["gpus"], spec.config["processes"]), spec.config["nodes"]
    if processes.given() or workers * nodes == 1:
        return execute(spec)
    if nodes > 1:
        raise UserError(f"nodes={nodes}: needs hydra/launcher=slurm, or to be started by srun or torchrun on each node")
    try:
        result = processes.launch(workers, spec.config["engine"]["threads"], execute, spec)
    except processes.WorkerError as error:
        _note_failure(spec, error)
        if not error.expected:
            print(error.trace, file=sys.stderr)
        raise
    assert isinstance(result, dict)
    return result


def _take(spec: RunSpec, held: contextlib.ExitStack, told: list[str]) -> dict[str, Any] | str | None:
    """Take the run's lock, unless it need not run: then its result. `_BUSY` while somebody else has it."""
    result = sweep.result_to_keep(spec)
    if result is not None:
        return result
    wait = spec.config["busy"] == "wait"
    try:
        held.enter_context(lock.held(spec.folder, patience=_PATIENCE if told else 0))
    except lock.BusyError as error:
        if not wait:
            raise lock.BusyError(f"busy=fail: {error}") from None
        if not told:
            told.append(str(error))
            log.info("waiting: %s", error)
        return _BUSY
    return sweep.result_to_keep(spec)  # another process may just have done it


def _ensure_parent(spec: RunSpec, parent: RunSpec) -> None:
    known = processes.first_decides(lambda: record.status(parent))
    if known.state == "stale" and spec.config["rerun"] == "missing":
        raise UserError(
            f"model.from_run: the parent run {known.folder} is stale ({known.reason}); add rerun=stale to run it again"
        )
    if known.state != "done":
        log.info("%s needs %s, which runs first", spec.name, parent.name)
        # What another child has made of it meanwhile is not made again, whatever `rerun` says.
        run(dataclasses.replace(parent, config={**parent.config, "rerun": "stale"}))
    _, problem = processes.first_decides(lambda: record.weights(parent))
    if problem is not None:
        raise UserError(f"model.from_run: {problem}; run the parent again with rerun=all keep=last")


def _make_way(spec: RunSpec) -> None:
    """Put out of the way what this attempt must not continue: a result that is made again, work of another source."""
    if record.read_result(spec.folder) is not None:
        log.info("%s: its former result is kept in %s", spec.name, record.set_aside(spec.folder))
        return
    changed = record.begun_by(spec.folder) not in (None, spec.source)
    if changed and any((spec.folder / name).exists() for name in ("checkpoints", "method.json")):
        aside = record.set_aside(spec.folder)
        log.warning("%s: its source has changed meanwhile, it starts anew (its former work: %s)", spec.name, aside)


def _note_failure(spec: RunSpec, error: processes.WorkerError) -> None:
    """Leave the failing rank's traceback in the run's log, and why it failed."""
    with contextlib.suppress(OSError):
        Recorder(spec).failure(error)
        with (spec.folder / "run.log").open("a", encoding="utf-8") as file:
            file.write(f"{error}\n{error.trace}")


def execute(spec: RunSpec) -> dict[str, Any]:
    """Do a run that is known to be due, as one of its ranks; nobody else is at work on it. Returns its result."""
    config = spec.config
    if config["engine"]["threads"]:
        torch.set_num_threads(config["engine"]["threads"])
    rank, world = processes.join(spec.folder)
    with preemption.listening(), _logging_to(spec.folder) if rank == 0 else contextlib.nullcontext():
        recorder = Recorder(spec, writes=rank == 0)
        recorder.open(
            {
                **fingerprint.environment(),
                "processes": world,
                "threads": torch.get_num_threads(),
                "device": str(device()),
            }
        )
        tracker: Tracker = NullTracker()
        try:
            if rank == 0:
                log.info("run %s", spec.name)
                tracker = _open_tracker(spec)
            result = _measure(spec, recorder, tracker, rank, world)
        except BaseException as error:
            known = failures.explain(error, config, spec.folder)
            recorder.failure(known or error)
            if rank and isinstance(error, Exception):  # rank 0 only learns that the connection is gone
                with contextlib.suppress(OSError), (spec.folder / "run.log").open("a", encoding="utf-8") as file:
                    file.write(f"rank {rank}:\n{traceback.format_exc()}")
            tracker.finish(failed=True)
            if known is None:
                raise
            raise known from error
        tracker.summary(_flat(result))
        recorder.result(result)
        if rank == 0:
            for note in retention.tidy(spec).left:
                log.warning("%s: %s", spec.name, note)
        tracker.finish()
        log.info("done: %s in %.0f s", spec.name, result["seconds"])
        return result


def _measure(spec: RunSpec, recorder: Recorder, tracker: Tracker, rank: int, world: int) -> dict[str, Any]:
    """The method, then the evaluation; what an earlier attempt has ended is not done again."""
    began = time.perf_counter()
    training.seed_everything(spec.seed, rank)
    context = RunContext(spec, recorder, tracker, rank, world)
    ended = processes.agree(recorder.method_ended() if rank == 0 else None)
    try:
        if ended is None:
            if rank == 0:  # answers of weights that are made again
                (spec.folder / "evaluation.jsonl").unlink(missing_ok=True)
            ended = {"method_metrics": dict(context.method.run(context)), "seconds": time.perf_counter() - began}
            if context.method.trained:
                context.save_model()
            recorder.method_end(ended)
        else:
            log.info("%s: the method has ended in an earlier attempt, its result is evaluated", spec.name)
    finally:
        context.close()  # after a failure too: an exception keeps what its frames hold
    evaluating = time.perf_counter()
    evaluation = _evaluate(spec, context, world)
    for task, samples in evaluation.samples.items():
        recorder.samples(task, samples)
    return {
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
        "method_metrics": ended["method_metrics"],
        "seconds": ended["seconds"] + time.perf_counter() - evaluating,
    }


def _open_tracker(spec: RunSpec) -> Tracker:
    return open_tracker(
        spec.config["tracker"],
        folder=spec.folder,
        name=spec.name,
        group=spec.experiment,
        job_type=spec.choices["method"],
        config={**spec.config, "identity": spec.identity},
    )


def _evaluate(spec: RunSpec, context: "RunContext", world: int) -> Evaluation:
    """Measure what was saved, loaded again; an untrained model as it was loaded."""
    settings, engine = spec.config["evaluation"], spec.config["engine"]
    if not settings["tasks"]:
        return Evaluation()
    # Evaluation runs in the precision the model computes with.
    dtype = "bfloat16" if engine["precision"] != "fp32" else spec.config["model"]["dtype"]
    if context.method.trained:
        saved = spec.folder / "model"
        source = {**spec.config["model"], "id": str(saved), "from_run": None, "architecture": None}
        model = load_model(source, None, len(context.tokenizer), dtype)
    else:
        model = load_model(spec.config["model"], context.parent, len(context.tokenizer), dtype)
    sharded = engine["zero_stage"] == 3 and world > 1
    placed: Any = frozen_engine(model, engine) if sharded else model.to(device()).eval()
    try:
        return evaluate(
            placed.module if sharded else placed,
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
            journal=spec.folder / "evaluation.jsonl",
            fingerprint=f"{spec.identity}-{spec.source}",
            lockstep=sharded,
            should_stop=preemption.requested,
            on_progress=context.tell("evaluation"),
        )
    except Stopped:
        raise processes.stop("in its evaluation") from None
    except ValueError as error:
        raise UserError(f"evaluation: {error}") from error
    finally:
        close_frozen(placed)


class RunContext:
    """What a run offers its method (`methods.method.Context`); data and models are loaded when first asked for."""

    def __init__(self, spec: RunSpec, recorder: Recorder, tracker: Tracker, rank: int, world: int) -> None:
        self.spec, self.config, self.seed, self.folder = spec, spec.config, spec.seed, spec.folder
        self._recorder, self._tracker = recorder, tracker
        self._rank, self._world = rank, world
        self.kind: Causal = adapter(spec.config["model"]["kind"])
        self.parent = record.weights(spec.parent)[0] if spec.parent else None
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
                    universal=self._resume is not None and self._resume.universal,
                )
                self._engines[name], self._roles[name] = engine, engine.engine
            else:
                self._roles[name] = frozen_engine(model, self.config["engine"])
        return self._roles[name]

    def batches(self, description: str) -> Iterator[Batch]:
        """All training examples once, in the order of the data set, in micro-batches."""
        with progress(description, self.examples) as advance:
            tell, done = self.tell(description), 0
            for batch in self._data.in_order():
                if processes.any_rank(preemption.requested()):
                    raise processes.stop(f"before training, {description}")
                yield batch.to(device())
                advance(len(batch.example_S))
                done += len(batch.example_S)
                tell(done, self.examples)

    @cached_property
    def _resume(self) -> training.Resume | None:
        """Where training continues; found once, by the first rank, for all."""
        return processes.first_decides(
            lambda: training.find_resume(self.folder, self._world, self.config["engine"]["zero_stage"])
        )

    def restore(self, method: Method) -> None:
        """Give a method back what it had computed before the run was interrupted."""
        resume = self._resume
        source = processes.first_decides(lambda: training.method_state_of(self.folder, resume))
        training.restore_method(method, source)

    def prepared(self, method: Method) -> None:
        """Keep what a method has computed before its training."""
        if self._rank == 0 and self._resume is None:
            training.save_prepared(method, self.folder)

    def train(self, objective: Method) -> Mapping[str, float]:
        """Minimise the objective on its trained role."""
        if not isinstance(objective, Objective) or len(objective.trained) != 1:
            raise UserError(f"method={type(objective).__name__}: an objective trains one role, got {objective.trained}")
        roles = {name: self.role(name) for name in (*objective.trained, *objective.frozen)}
        engine = self._engines[objective.trained[0]]
        done = training.restore(engine, self._resume, self.seed)
        self._recorder.forget_after(done.step)
        by_metric = self.config["best_metric"] if self.config["keep"] == "best" else None
        keep = training.Keep(self.config["keep"] == "all", by_metric, self.config["best_is"] == "lower")
        # One process's trace shows them all: they do the same work at the same time.
        traced = self.config["training"]["profile"] and self._rank == 0
        return training.train(
            objective,
            engine,
            roles,
            self._data,
            self.config["training"],
            self._log,
            lambda progress: self._save(engine, objective, progress, keep),
            done,
            self.tell("training"),
            self.folder / "profile" / "trace.json" if traced else None,
        )

    def _save(self, engine: TrainingEngine, objective: Method, done: training.Progress, keep: training.Keep) -> None:
        self._recorder.flush()  # the record of the steps must not end before the checkpoint of them
        training.save(engine, objective, self.folder, done, keep)

    def tell(self, phase: str) -> Callable[[int, int], None]:
        """A function of (done, total) that notes how far a phase of the run is, for `job=status`."""
        return self._recorder.progress(phase)

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
        weights = engine.weights()  # gathered by all ranks
        if self._rank == 0:
            final = self.folder / "model"
            aside = checkpoints.written_aside(final)
            engine.engine.module.save_pretrained(aside, state_dict=weights, safe_serialization=True)
            self.tokenizer.save_pretrained(aside)
            checkpoints.seal(aside, final)
        torch.distributed.barrier()

    def close(self) -> None:
        """Free models and engines before the evaluation loads what was saved."""
        for name, role in self._roles.items():
            if name not in self._engines:
                close_frozen(role)
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
    except preemption.Preempted as stopped:
        log.info("%s", stopped)
        raise
    except BaseException:
        # The terminal gets one line; the log keeps the whole.
        with contextlib.suppress(OSError), (folder / "run.log").open("a", encoding="utf-8") as file:
            file.write(traceback.format_exc())
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
