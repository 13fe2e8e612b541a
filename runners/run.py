"""One run, from its checked configuration to its result: load, method, evaluate, record."""

import contextlib
import dataclasses
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from evals.harness import Evaluation
from methods.dataset import Dataset
from methods.method import Context
from runners import (
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
from runners.compose import RunSpec
from runners.context import RunContext, build
from runners.data import load_rows
from runners.engine import close_frozen, device, frozen_engine
from runners.errors import UserError
from runners.image_context import ImageContext
from runners.measuring.accuracy import with_accuracy
from runners.measuring.judge import check_key, with_judge
from runners.measuring.kl_to_base import with_kl_to_base
from runners.measuring.mauve import with_mauve
from runners.measuring.preference import HeldOut, held_out, with_preference
from runners.measuring.problems import Problems, problems, with_problems
from runners.measuring.sampling import Questions, questions
from runners.measuring.tasks import by_lm_eval
from runners.measuring.thoughts import Documents, documents, with_thoughts
from runners.model_context import ModelContext
from runners.record import Recorder
from runners.selecting import KEPT
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
    if spec.parents and signatures.read(spec.config["method"]["_target_"]).attributes.get("trained"):
        _read_data(spec)  # a mistake in the data is told before the parent's minutes of training
    for parent in spec.needed:
        _ensure_parent(spec, parent)
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


def _read_data(spec: RunSpec) -> None:
    if "_target_" in spec.config["dataset"]:
        build(Dataset, "dataset", spec.config).load(spec.seed)
    else:
        load_rows(spec.config["dataset"])


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
    if problem is not None and known.state == "done" and known.folder != parent.folder:
        log.info("%s: %s; it is run again", parent.name, problem)
        run(dataclasses.replace(parent, config={**parent.config, "rerun": "all", "keep": "last"}))
        _, problem = processes.first_decides(lambda: record.weights(parent))
    if problem is not None:
        raise UserError(f"model.from_run: {problem}; run the parent again with rerun=all keep=last")


def _make_way(spec: RunSpec) -> None:
    """Put out of the way what this attempt must not continue: a result that is made again, work of another source."""
    if record.read_result(spec.folder) is not None:
        log.info("%s: its former result is kept in %s", spec.name, record.set_aside(spec.folder))
        return
    changed = record.begun_by(spec.folder) not in (None, spec.source)
    if changed and any((spec.folder / name).exists() for name in ("checkpoints", "method.json", KEPT)):
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
    _check_world(spec, world)
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


def _check_world(spec: RunSpec, world: int) -> None:
    """A method that couples the examples of a process is another one on more processes: its identity must say so.

    Raises:
        UserError: started by torchrun or srun with other processes than the configuration says.
    """
    said = spec.what_decides().get("training", {}).get("processes")
    if said is not None and said != world:
        raise UserError(
            f"processes={spec.config['processes']}: method={spec.choices['method']} couples the examples of a process, "
            f"so it must be told how many there are; {world} were started, the configuration says {said}"
        )


def _measure(spec: RunSpec, recorder: Recorder, tracker: Tracker, rank: int, world: int) -> dict[str, Any]:
    """The method, then the evaluation; what an earlier attempt has ended is not done again."""
    began = time.perf_counter()
    training.seed_everything(spec.seed, rank)
    context = _context(spec, recorder, tracker, rank, world)
    ended = processes.agree(recorder.method_ended() if rank == 0 else None)
    # A mistake in what it is measured on is told before it is trained.
    measure = _evaluation(spec, context, world) if isinstance(context, ModelContext) else Evaluation
    try:
        if ended is None:
            if rank == 0:  # answers of weights that are made again
                (spec.folder / "evaluation.jsonl").unlink(missing_ok=True)
            reported = context.method.run(cast(Context, context))
            ended = {"method_metrics": dict(reported), "seconds": time.perf_counter() - began}
            if context.method.trained:
                context.save_model()
            recorder.method_end(ended)
        else:
            log.info("%s: the method has ended in an earlier attempt, its result is evaluated", spec.name)
    finally:
        context.close()  # after a failure too: an exception keeps what its frames hold
    evaluating = time.perf_counter()
    evaluation = measure()
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


def _context(spec: RunSpec, recorder: Recorder, tracker: Tracker, rank: int, world: int) -> RunContext:
    kinds = {"none": RunContext, "image": ImageContext}
    return kinds.get(spec.config["model"]["kind"], ModelContext)(spec, recorder, tracker, rank, world)


def _evaluation(spec: RunSpec, context: ModelContext, world: int) -> Callable[[], Evaluation]:
    """What measures the run when its method has ended; a mistake in what it is measured on is told here."""
    settings = spec.config["evaluation"]
    held = held_out(spec, context.tokenizer, context.parent) if settings["preference"] else None
    if settings["judge"]:
        check_key(spec)
    solving = problems(spec, context.tokenizer, context.parent)
    thinking = documents(spec, context.tokenizer, context.parent) if settings["thoughts"] else None
    asked = {
        name: questions(spec, name, context.tokenizer, context.parent) for name in ("judge", "mauve") if settings[name]
    }
    return lambda: _evaluate(spec, context, held, asked, solving, thinking, world)


def _evaluate(
    spec: RunSpec,
    context: ModelContext,
    held: HeldOut | None,
    asked: Mapping[str, Questions],
    solving: Sequence[Problems],
    thinking: Documents | None,
    world: int,
) -> Evaluation:
    """Measure what was saved, loaded again; an untrained model as it was loaded."""
    settings, engine = spec.config["evaluation"], spec.config["engine"]
    others = settings["kl_to_base"] or settings["accuracy"] is not None or thinking is not None
    if not settings["tasks"] and not others and held is None and not asked and not solving:
        return Evaluation()
    # Evaluation runs in the precision the model computes with.
    dtype = "bfloat16" if engine["precision"] != "fp32" else spec.config["model"]["dtype"]
    if context.method.trained or context.method.merges:
        saved = spec.folder / "model"
        source = {**spec.config["model"], "id": str(saved), "from_run": None, "from_runs": None, "architecture": None}
        model = context.load({**source, "classes": None}, None, dtype)
    else:
        model = context.load(spec.config["model"], context.parent, dtype)
    small = isinstance(context, ImageContext)
    sharded = engine["zero_stage"] == 3 and world > 1 and not small
    placed: Any = frozen_engine(model, engine) if sharded else model.to(device()).eval()
    try:
        if isinstance(context, ImageContext):
            return with_accuracy(Evaluation(), context, placed, dtype)
        measured = by_lm_eval(
            placed.module if sharded else placed,
            context.tokenizer,
            settings["tasks"],
            settings,
            spec.seed,
            journal=spec.folder / "evaluation.jsonl",
            fingerprint=f"{spec.identity}-{spec.source}",
            lockstep=sharded,
            on_progress=context.tell("evaluation"),
        )
        if settings["kl_to_base"]:
            measured = with_kl_to_base(measured, spec, context.tokenizer, placed, dtype, context.tell)
        if held is not None:
            measured = with_preference(measured, spec, held, context.tokenizer, placed, dtype, context.tell)
        if "judge" in asked:
            measured = with_judge(measured, spec, asked["judge"], context.tokenizer, placed, dtype, context.tell)
        if "mauve" in asked:
            measured = with_mauve(measured, spec, asked["mauve"], context.tokenizer, placed, context.tell)
        for problem_set in solving:
            measured = with_problems(measured, spec, problem_set, context.tokenizer, placed, context.tell)
        if thinking is not None:
            measured = with_thoughts(measured, spec, thinking, context.tokenizer, placed, context.tell)
        return measured
    finally:
        close_frozen(placed)


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
