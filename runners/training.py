"""The one training loop, for every objective, on one process or many."""

import contextlib
import json
import logging
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from methods.batch import Batch
from methods.forward import Forward
from methods.method import Method
from methods.mix.base import Mix
from methods.objective import Objective
from methods.penalty.base import Penalty
from runners import checkpoints, preemption, processes
from runners.batches import Batches
from runners.engine import NonFiniteError, TrainingEngine, device, to_universal
from runners.errors import UserError
from runners.progress import progress

log = logging.getLogger(__name__)


def rate(
    step: int,
    total: int,
    schedule: str,
    warmup_ratio: float,
    milestones: Sequence[float] = (),
    decay: float = 1.0,
) -> float:
    """Factor on the learning rate at `step` (from 0) of `total`: linear warm-up, then the schedule down to 0.

    milestones, decay: of the schedule `step`, which multiplies by `decay` at each of these shares of the steps.
    """
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return decay ** sum(step >= round(share * total) for share in milestones)
    share = (step - warmup) / max(total - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * share)) if schedule == "cosine" else 1 - share


def total_steps(settings: Mapping[str, Any], steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    if settings["steps"] is not None:
        return int(settings["steps"])
    return math.ceil(settings["epochs"] * steps_per_epoch)


@dataclass
class Progress:
    """How far a run's training is: what a checkpoint notes besides weights, optimizer and random states."""

    step: int = 0  # optimizer steps done
    units: int = 0
    target_tokens: int = 0
    seconds: float = 0.0  # spent in the loop, over all attempts
    loss: float = math.nan  # last logged
    metrics: dict[str, float] = field(default_factory=dict)  # last logged


@dataclass(frozen=True)
class Mixed:
    """What is trained on beside the data set, and its own global batch of every step."""

    mix: Mix
    batches: Batches


class Held:
    """A penalty at work on an engine: made before any checkpoint is loaded, since it keeps where training starts."""

    def __init__(self, penalty: Penalty, engine: TrainingEngine) -> None:
        self.penalty, self.engine = penalty, engine
        self._value: Tensor | None = None
        self._start: dict[str, Tensor] = {}
        if penalty.anchored:
            self._start = engine.own_weights()
            engine.add_to_gradient(self._on_weights)

    def _on_weights(self, name: str, weights: Tensor) -> Tensor | None:
        found = self.penalty.on_weights(name, weights, self._start[name])
        if found is None:
            return None
        value, gradient = found
        self._value = value if self._value is None else self._value + value
        return gradient

    def value(self) -> Tensor | None:
        """This process's share of the penalty on the weights in the step under way; asked for once a step."""
        value, self._value = self._value, None
        return value

    def after_step(self, step: int, total: int) -> None:
        """Pull the weights back after `step` (from 1), if the penalty is one that does."""
        by = self.penalty.pull(step, total, float(self.engine.optimizer.param_groups[0]["lr"]))
        if by:
            self.engine.pull(self._start, by)


def train(
    objective: Objective,
    engine: TrainingEngine,
    roles: Mapping[str, nn.Module],
    batches: Batches,
    settings: Mapping[str, Any],
    record: Callable[[Mapping[str, float], int], None],
    save: Callable[[Progress], None],
    done: Progress | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
    trace: Path | None = None,
    mixed: Mixed | None = None,
    held: Held | None = None,
) -> dict[str, float]:
    """Minimise an objective.

    Args:
        objective: says loss and units of a batch.
        engine: of the trained role.
        roles: every role the objective may call, the trained one's engine included.
        batches: the global batch of every step.
        settings: `training:`.
        record: called with (metrics, step) every `log_every` steps and at the last.
        save: called between two steps when a checkpoint is due.
        done: what was done before, from a checkpoint.
        tell: called with (steps done, total) after every step.
        trace: where to write a profile of a few steps.
        mixed: further data.
        held: the penalty.

    Returns:
        train/loss (mean of the last step logged), steps, units, tokens and seconds.

    Raises:
        NonFiniteError: loss or gradient not finite; names step and batch, before the weights are touched.
        Preempted: told to stop; a checkpoint has been saved.
    """
    total = total_steps(settings, batches.steps_per_epoch * objective.updates)
    done = done or Progress()
    first, every = done.step, settings["checkpoint_every"]
    spent = done.seconds
    began = logged_at = saved_at = time.perf_counter()
    saved_after = first
    tokens_logged = done.target_tokens
    engine.engine.train()
    with progress("training", total) as advance, profiled(trace) as profile_step:
        advance(first)
        updates = objective.updates
        rolled: Sequence[Sequence[Batch]] = []
        for step in range(first, total):
            turn, update = divmod(step, updates)
            if update == 0:
                rolled = objective.rollouts([batch.to(device()) for batch in batches.of_step(turn)], turn)
            own = list(rolled[update])
            further = [batch.to(device()) for batch in mixed.batches.of_step(step)] if mixed else []
            overdue = time.perf_counter() - saved_at > 60 * (settings["checkpoint_minutes"] or math.inf)
            counts = [
                sum(objective.count(batch) for batch in own),
                sum(batch.target_count for batch in own),
                sum(mixed.mix.count(batch) for batch in further) if mixed else 0,
                preemption.requested(),
                overdue,
            ]
            # All processes learn together what to divide by, and whether one of them has been told to stop.
            count, tokens, mix_count, stop, late = (int(value) for value in _sums_over_processes(counts, engine.world))
            # What several steps share is not in a checkpoint, but made anew from one taken before the first of them.
            due = stop or late or (every is not None and step // every > saved_after // every)
            if step > first and update == 0 and due:
                done.seconds = spent + time.perf_counter() - began
                save(done)
                saved_at, saved_after = time.perf_counter(), step
            if stop and update == 0:
                raise processes.stop(f"after step {step} of {total}")
            asked = (settings[key] for key in ("schedule", "warmup_ratio", "milestones", "decay"))
            factor = rate(step, total, *asked)
            terms = _Terms(objective, roles, held, mixed, max(count, 1), max(tokens, 1), max(mix_count, 1))
            sums, means = terms.accumulate(engine, own, further)
            where = f"at step {step + 1} of {total}, batch of examples {_listed(batches.global_batch(turn))}"
            # Over all processes, so that they stop together.
            minimised = sum(sums[name][0] for name in ("train/loss", "train/penalty", "mix/loss") if name in sums)
            watched = [part for name in objective.watched for part in means.get(name, (0.0, 0.0))]
            summed, *parts = _sums_over_processes([minimised, *watched], engine.world)
            if not math.isfinite(summed):
                raise NonFiniteError(f"loss is {summed} {where}; the weights were not updated")
            seen = zip(objective.watched, parts[::2], parts[1::2], strict=True)
            objective.check({name: total_of / number for name, total_of, number in seen if number}, where)
            norm = engine.step(factor, where)
            objective.after_step(step)
            if held is not None:
                held.after_step(step + 1, total)
            done.step, done.units, done.target_tokens = step + 1, done.units + count, done.target_tokens + tokens
            if done.step % settings["log_every"] == 0 or done.step == total:
                divisors = _of_any_process({name: divisor for name, (_, divisor) in sums.items()}, engine.world)
                own_values = [sums[name][0] if name in sums else 0.0 for name in divisors]
                values = _sums_over_processes(own_values, engine.world)
                metrics = {name: value / divisors[name] for name, value in zip(divisors, values, strict=True)}
                metrics |= _means_over_processes(means, engine.world)
                metrics |= {f"train/{name}": value for name, value in objective.report().items()}
                now = time.perf_counter()
                speed = (done.target_tokens - tokens_logged) / (now - logged_at)
                metrics |= {
                    "train/learning_rate": engine.optimizer.param_groups[0]["lr"],
                    "train/target_tokens_per_second": speed,
                    "train/epoch": done.step / (batches.steps_per_epoch * updates),
                }
                if norm is not None:
                    metrics["train/gradient_norm"] = norm
                logged_at, tokens_logged = now, done.target_tokens
                done.loss, done.metrics = metrics["train/loss"], metrics
                record(metrics, done.step)
                advance(0, f"loss {done.loss:.4f}  {speed:,.0f} tokens/s")
            advance(1)
            profile_step()
            tell(done.step, total)
    return {
        "train/loss": done.loss,
        "train/steps": total,
        "train/units": done.units,
        "train/target_tokens": done.target_tokens,
        "train/seconds": spent + time.perf_counter() - began,
    }


@dataclass(frozen=True)
class _Terms:
    """What is minimised in one step: the objective, what a penalty adds to it, and the mix."""

    objective: Objective
    roles: Mapping[str, nn.Module]
    held: Held | None
    mixed: Mixed | None
    count: int  # units of the objective in the global batch
    tokens: int  # target tokens in it
    mix_count: int  # units of the mix

    def accumulate(
        self, engine: TrainingEngine, own: list[Batch], further: list[Batch]
    ) -> tuple[dict[str, tuple[Tensor, int]], dict[str, tuple[Tensor, Tensor]]]:
        """Forward and backward over a step's micro-batches.

        Returns:
            Sums by the name of their metric, with what to divide them by; the objective's means, as sums and counts.
        """
        sums: dict[str, tuple[Tensor, int]] = {}
        means: dict[str, tuple[Tensor, Tensor]] = {}

        def note(name: str, value: Tensor, divisor: int) -> None:
            before = sums[name][0] if name in sums else torch.zeros((), device=value.device)
            sums[name] = (before + value.detach().float(), divisor)

        weight = self.mixed.mix.config.weight if self.mixed else 0.0
        # One mean over the data set and the mix, or one of each.
        divisor = self.count + self.mix_count if weight is None else self.count
        for place, batch in enumerate(own):
            forward = Forward(self.objective.kind, self.roles, batch)
            # The penalty first: what it needs of the distributions serves the objective too.
            added = self.held.penalty.loss(forward) if self.held else None
            computed = self.objective.loss(forward)
            loss = computed.sum
            for name, value in {"loss": computed.sum, **computed.metrics}.items():
                note(f"train/{name}", value, self.count)
            for name, parts in computed.means.items():
                added_to = means.get(name, (torch.zeros(()), torch.zeros(())))
                means[name] = tuple(old + new.detach().double().cpu() for old, new in zip(added_to, parts, strict=True))  # type: ignore[assignment]
            if added is not None:
                loss = loss + added.sum * (divisor / self.tokens)  # a mean over the data set's tokens, whatever the mix
                for name, value in {"penalty": added.sum, **added.metrics}.items():
                    note(f"train/{name}", value, self.tokens)
            last = place == len(own) + len(further) - 1
            engine.backward(loss, divisor, last=last)
        for number, batch in enumerate(further, start=len(own)):
            assert self.mixed is not None
            computed = self.mixed.mix.loss(Forward(self.objective.kind, self.roles, batch))
            note("mix/loss", computed.sum, self.mix_count)
            last = number == len(own) + len(further) - 1
            if weight is None:
                engine.backward(computed.sum, divisor, last=last)
            else:
                engine.backward(computed.sum * weight, self.mix_count, last=last)
        on_weights = self.held.value() if self.held else None
        if on_weights is not None:
            note("train/penalty", on_weights, 1)
        return sums, means


def _of_any_process(divisors: dict[str, int], world: int) -> dict[str, int]:
    """The metrics that any process has: one whose batches are there for company has fewer. The same order in all."""
    if world == 1:
        return divisors
    found: list[Any] = [None] * world
    torch.distributed.all_gather_object(found, divisors)
    together = {name: divisor for own in found for name, divisor in own.items()}
    return dict(sorted(together.items()))


def _means_over_processes(means: Mapping[str, tuple[Tensor, Tensor]], world: int) -> dict[str, float]:
    """The objective's means; one of which no process has seen anything is left out."""
    names = list(_of_any_process(dict.fromkeys(means, 1), world))
    parts = [part for name in names for part in means.get(name, (0.0, 0.0))]
    summed = _sums_over_processes(parts, world)
    found = zip(names, summed[::2], summed[1::2], strict=True)
    return {f"train/{name}": total / number for name, total, number in found if number}


def _sums_over_processes(values: list[Any], world: int) -> list[float]:
    """Each value summed over the processes: one exchange for all of them."""
    numbers = [float(value.item() if isinstance(value, Tensor) else value) for value in values]
    if world == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64, device=device())
    torch.distributed.all_reduce(total)
    return [float(value) for value in total.tolist()]


def _listed(indices: Any, most: int = 8) -> str:
    words = [str(int(index)) for index in indices[:most]]
    return f"[{', '.join(words)}{', ...' if len(indices) > most else ''}]"


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay while a run goes on, besides the last two: all, or the best by a logged metric."""

    all: bool = False
    best_metric: str | None = None
    is_lower: bool = True

    def spare(self, found: list[Path]) -> Path | None:
        """The one that rotation leaves alone."""
        return checkpoints.best(found, self.best_metric, self.is_lower) if self.best_metric else None


DEFAULT_KEEP = Keep()


def save(engine: TrainingEngine, objective: Method, folder: Path, done: Progress, keep: Keep = DEFAULT_KEEP) -> None:
    """Write a complete checkpoint (every process takes part) and delete those that are not needed any more.

    Raises:
        NonFiniteError: a weight is not a number; such a checkpoint would push the last good one out.
    """
    if not engine.weights_are_finite():
        raise NonFiniteError(f"weights are not finite after step {done.step}; the checkpoint was not written")
    rank, world = engine.rank, engine.world
    root = folder / "checkpoints"
    final = root / checkpoints.name_of(done.step)
    aside: Path | None = None
    if rank == 0 and checkpoints.damage(final) is not None:
        aside = checkpoints.written_aside(final)
    aside = processes.agree(aside)
    if aside is None:
        return  # written before the run was interrupted
    engine.save(str(root), aside.name)
    torch.save(_random_state(), aside / f"random-rank{rank:05d}.pt")
    if rank == 0:
        torch.save(objective.state_dict(), aside / "method.pt")
        noted = {**asdict(done), "world": world, "zero_stage": engine.zero_stage}
        (aside / "loop.json").write_text(json.dumps(noted))
    torch.distributed.barrier()
    # Files of many gigabytes are read by all processes, each its share.
    names = processes.agree(checkpoints.files_of(aside))
    shares: list[Any] = [None] * world
    torch.distributed.all_gather_object(shares, checkpoints.digests(aside, names[rank::world]))
    if rank == 0:
        checkpoints.seal(aside, final, {name: found for share in shares for name, found in share.items()})
        if keep.all:
            return
        checkpoints.rotate(root, keep.spare)


def save_prepared(objective: Method, folder: Path) -> None:
    """Keep what `prepare` computed, which a run that is stopped before its first checkpoint need not repeat."""
    state = objective.state_dict()
    final = folder / "checkpoints" / "prepared"
    if state and checkpoints.damage(final) is not None:
        aside = checkpoints.written_aside(final)
        torch.save(state, aside / "method.pt")
        checkpoints.seal(aside, final)


def save_method(method: Method, folder: Path, step: int) -> None:
    """Keep the state of a method that does not train, after a step, in place of what was kept before."""
    final = folder / "checkpoints" / "prepared"
    aside = checkpoints.written_aside(final)
    torch.save(method.state_dict(), aside / "method.pt")
    (aside / "loop.json").write_text(json.dumps({"step": step}))
    checkpoints.seal(aside, final)


def method_step(folder: Path) -> int:
    """The step after which a method that does not train was kept; 0 where it was not."""
    source = method_state_of(folder, None)
    return int(checkpoints.progress_of(source.parent)["step"]) if source else 0


@dataclass(frozen=True)
class Resume:
    """Where a run continues: a checkpoint, and the folder to load engines from (it, or what it was converted to)."""

    checkpoint: Path
    engines: Path

    @property
    def universal(self) -> bool:
        """Whether the engines are in DeepSpeed's universal form."""
        return self.engines != self.checkpoint


def find_resume(folder: Path, world: int, zero_stage: int) -> Resume | None:
    """The newest healthy checkpoint of a run, converted where another number of processes wrote it.

    One process calls it and tells the others.

    Raises:
        UserError: it was written by an engine that this one cannot continue.
    """
    root = folder / "checkpoints"
    checkpoints.clear_leftovers(root)
    found = checkpoints.latest(root)
    if found is None:
        return None
    noted = checkpoints.progress_of(found)
    log.info("continuing from %s", found)
    if (noted["world"], noted["zero_stage"]) == (world, zero_stage):
        return Resume(found, found)
    whole, sharded_optimizer, sharded_weights = range(3)
    layout = (whole, sharded_optimizer, sharded_optimizer, sharded_weights)
    if layout[noted["zero_stage"]] != layout[zero_stage]:
        raise UserError(
            f"engine.zero_stage={zero_stage}: {found} was written with engine.zero_stage={noted['zero_stage']}, which "
            f"this one cannot continue; use that stage, or delete {root} to start anew"
        )
    if zero_stage == 0:
        return Resume(found, found)  # whole on every process
    converted = root / f"universal-{found.name}"
    for path in root.glob("universal-*"):  # of earlier resumes: each is a copy of the whole optimizer
        if path != converted:
            shutil.rmtree(path, ignore_errors=True)
    if checkpoints.damage(converted) is not None:
        log.info("it was written by %d processes, this is %d: converting it", noted["world"], world)
        aside = checkpoints.written_aside(converted)
        to_universal(found, aside)
        checkpoints.seal(aside, converted)
    return Resume(found, converted)


def method_state_of(folder: Path, resume: Resume | None) -> Path | None:
    """Where a method's state lies: in its last checkpoint, or where it was put before training."""
    source = resume.checkpoint if resume else folder / "checkpoints" / "prepared"
    if resume is None and checkpoints.damage(source) is not None:
        return None
    return source / "method.pt"


def restore_method(objective: Method, source: Path | None) -> None:
    """Give a method back what it had computed; nothing without a source."""
    if source is not None:
        objective.load_state_dict(torch.load(source, weights_only=True, map_location="cpu"))


def restore(engine: TrainingEngine, resume: Resume | None, seed: int) -> Progress:
    """Continue from a checkpoint: weights, optimizer and random states. Returns what was done before."""
    if resume is None:
        return Progress()
    engine.load(str(resume.engines.parent), resume.engines.name)
    noted = checkpoints.progress_of(resume.checkpoint)
    path = resume.checkpoint / f"random-rank{engine.rank:05d}.pt"
    if path.is_file():
        _set_random_state(torch.load(path, weights_only=True))
    else:  # fewer processes wrote it: this one begins a stream of its own
        seed_everything(seed + noted["step"], engine.rank)
    return Progress(**{key: value for key, value in noted.items() if key in Progress.__dataclass_fields__})


@contextlib.contextmanager
def profiled(trace: Path | None) -> Iterator[Callable[[], None]]:
    """Yields what to call after every step; steps 3 to 5 are profiled, and `trace` holds them for a browser's viewer.

    The first step allocates and compiles, the second warms the profiler up; neither says what a step costs.
    """
    if trace is None:
        yield lambda: None
        return
    trace.parent.mkdir(parents=True, exist_ok=True)
    with torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1),
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(trace)),
        record_shapes=True,
        profile_memory=True,
    ) as profiler:
        yield profiler.step
    if trace.is_file():
        log.info("profile of steps 3 to 5: %s", trace)


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators (dropout; anything else has its own).

    Each rank has a stream of its own; rank 0 has that of a run of one process.
    """
    seed = seed if rank == 0 else int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _random_state() -> dict[str, Any]:
    """The global generators' states, in types that load without running code."""
    numpy_state: Any = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
