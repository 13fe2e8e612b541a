"""The one training loop, for every objective, on one process or many."""

import logging
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from methods.objective import Objective
from runners import checkpoints
from runners.batches import Batches
from runners.engine import NonFiniteError, TrainingEngine, device
from runners.progress import progress

log = logging.getLogger(__name__)


def rate(step: int, total: int, schedule: str, warmup_ratio: float) -> float:
    """Factor on the learning rate at `step` (from 0) of `total`: linear warm-up, then the schedule down to 0."""
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    share = (step - warmup) / max(total - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * share)) if schedule == "cosine" else 1 - share


def total_steps(settings: Mapping[str, Any], steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    if settings["steps"] is not None:
        return int(settings["steps"])
    return math.ceil(settings["epochs"] * steps_per_epoch)


def train(
    objective: Objective,
    engine: TrainingEngine,
    roles: Mapping[str, nn.Module],
    batches: Batches,
    settings: Mapping[str, Any],
    folder: Path,
    record: Callable[[Mapping[str, float], int], None],
    start: int = 0,
) -> dict[str, float]:
    """Minimise an objective.

    Args:
        objective: says loss and units of a batch.
        engine: of the trained role.
        roles: every role the objective may call, the trained one's engine included.
        batches: the global batch of every step.
        settings: `training:`.
        folder: of the run, for checkpoints.
        record: called with (metrics, step) every `log_every` steps and at the last.
        start: optimizer steps already done (restored from a checkpoint).

    Returns:
        train/loss (mean of the last steps logged), steps, units, tokens and seconds.

    Raises:
        NonFiniteError: loss or gradient not finite; names step and batch, before the weights are touched.
    """
    total = total_steps(settings, batches.steps_per_epoch)
    began = logged_at = time.perf_counter()
    units = targets = targets_logged = 0
    loss = math.nan
    engine.engine.train()
    with progress("training", total) as advance:
        advance(start)
        for step in range(start, total):
            micro_batches = [batch.to(device()) for batch in batches.of_step(step)]
            count = _sum_over_processes(sum(objective.count(batch) for batch in micro_batches), engine.world)
            factor = rate(step, total, settings["schedule"], settings["warmup_ratio"])
            sums = _accumulate(objective, engine, roles, micro_batches, max(count, 1))
            where = f"at step {step + 1} of {total}, batch of examples {_listed(batches.global_batch(step))}"
            summed = _sum_over_processes(sums["loss"], engine.world)  # so that all processes stop together
            if not math.isfinite(summed):
                raise NonFiniteError(f"loss is {summed} {where}; the weights were not updated")
            norm = engine.step(factor, where)
            objective.after_step(step)
            units += count
            done = step + 1
            targets += sum(batch.target_count for batch in micro_batches)
            if done % settings["log_every"] == 0 or done == total:
                metrics = {
                    f"train/{name}": _sum_over_processes(value, engine.world) / max(count, 1)
                    for name, value in sums.items()
                }
                now = time.perf_counter()
                speed = (targets - targets_logged) * engine.world / (now - logged_at)
                metrics |= {
                    "train/learning_rate": engine.optimizer.param_groups[0]["lr"],
                    "train/target_tokens_per_second": speed,
                    "train/epoch": done / batches.steps_per_epoch,
                }
                if norm is not None:
                    metrics["train/gradient_norm"] = norm
                logged_at, targets_logged, loss = now, targets, metrics["train/loss"]
                record(metrics, done)
                advance(0, f"loss {loss:.4f}  {speed:,.0f} tokens/s")
            advance(1)
            every = settings["checkpoint_every"]
            if every is not None and done % every == 0 and done < total:
                save(engine, objective, folder, done)
    seconds = time.perf_counter() - began
    return {
        "train/loss": loss,
        "train/steps": total,
        "train/units": units,
        "train/target_tokens": targets * engine.world,
        "train/seconds": seconds,
    }


def _accumulate(
    objective: Objective,
    engine: TrainingEngine,
    roles: Mapping[str, nn.Module],
    micro_batches: list[Any],
    count: int,
) -> dict[str, Tensor]:
    """Forward and backward over a step's micro-batches; returns the sums of the loss and of its metrics."""
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(micro_batches):
        computed = objective.loss(roles, batch)
        engine.backward(computed.sum, count, last=number == len(micro_batches) - 1)
        for name, value in {"loss": computed.sum, **computed.metrics}.items():
            sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()
    return sums


def _sum_over_processes(value: float | Tensor, world: int) -> Any:
    number = value.item() if isinstance(value, Tensor) else value
    if world == 1:
        return number
    total = torch.tensor(float(number), dtype=torch.float64, device=device())
    torch.distributed.all_reduce(total)
    return type(number)(total.item())


def _listed(indices: Any, most: int = 8) -> str:
    words = [str(int(index)) for index in indices[:most]]
    return f"[{', '.join(words)}{', ...' if len(indices) > most else ''}]"


def save(engine: TrainingEngine, objective: Objective, folder: Path, done: int) -> None:
    """Write a complete checkpoint after `done` optimizer steps.

    Raises:
        NonFiniteError: a weight is not a number; such a checkpoint would push the last good one out.
    """
    if not engine.weights_are_finite():
        raise NonFiniteError(f"weights are not finite after step {done}; the checkpoint was not written")
    root = folder / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    final = root / checkpoints.name_of(done)
    if checkpoints.damage(final) is None:
        return  # written before the run was interrupted
    name = f"writing-{checkpoints.name_of(done)}"
    for leftover in (root / name, final):
        if engine.engine.global_rank == 0 and leftover.exists():
            shutil.rmtree(leftover)
    engine.save(str(root), name, {"step": done, "objective": objective.state_dict(), "random": _random_state()})
    if engine.engine.global_rank == 0:
        checkpoints.seal(root / name, final)


def restore(engine: TrainingEngine, objective: Objective, folder: Path) -> int:
    """Continue from the newest healthy checkpoint. Returns the optimizer steps already done, 0 without one."""
    found = checkpoints.latest(folder / "checkpoints")
    if found is None:
        return 0
    state = engine.load(str(found.parent), found.name)
    objective.load_state_dict(state["objective"])
    _set_random_state(state["random"])
    log.info("continuing from %s", found)
    return int(state["step"])


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators (dropout; anything else has its own)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _random_state() -> dict[str, Any]:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
