"""DeepSpeed engines: one for each trained role, a (sharded) inference one for each frozen role.

The same code runs on two CPU cores (gloo, one process) and on a cluster (NCCL): `engine:` chooses ZeRO stage,
precision, offload and activation checkpointing.
"""

import argparse
import contextlib
import importlib
import io
import logging
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is first imported

import deepspeed

from runners.errors import UserError

deepspeed.utils.logger.setLevel(logging.WARNING)
# It calls functions of torch that have newer names; the user can change neither.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
# DeepSpeed would compile this CPU kernel at the first run of every machine; gloo does its work without a compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class NonFiniteError(UserError):
    """A loss or gradient was NaN or infinite; raised before the update that would have spread it."""


def join_deepspeed() -> None:
    """Let DeepSpeed use the process group that is there (`runners.processes.join`)."""
    if not deepspeed.comm.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def device() -> torch.device:
    """Where this process computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def ds_config(settings: Mapping[str, Any], clip_norm: float | None) -> dict[str, Any]:
    """DeepSpeed's configuration for `engine:` settings.

    Accumulation is ours: the loop says which micro-batch is the last of a step, and divides by its own count.
    """
    stage, offload = settings["zero_stage"], settings["offload"]
    zero: dict[str, Any] = {"stage": stage}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": clip_norm or 0.0,
        "bf16": {"enabled": settings["precision"] == "bf16"},
        "torch_autocast": {"enabled": settings["precision"] == "bf16_autocast", "dtype": "bfloat16"},
        "steps_per_print": 10**9,
    }


def make_optimizer(model: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Build `optimizer:` (a `_target_` and its arguments) over the model's trainable parameters.

    Raises:
        UserError: the optimizer refuses its arguments.
    """
    module, _, name = settings["_target_"].rpartition(".")
    class_ = getattr(importlib.import_module(module), name)
    arguments = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items() if key != "_target_"
    }
    try:
        built = class_([value for value in model.parameters() if value.requires_grad], **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer={settings['_target_']}: {error}") from error
    assert isinstance(built, torch.optim.Optimizer)
    return built


class TrainingEngine:
    """A trained role: a DeepSpeed engine, with exact accumulation and a check of every gradient.

    `step` divides by the unit count of the global batch, clips, and refuses a gradient that is not finite
    before the update, whether or not the step is logged.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Mapping[str, Any],
        settings: Mapping[str, Any],
        clip_norm: float | None,
        *,
        universal: bool = False,
    ) -> None:
        """`universal`: it will load a checkpoint that `to_universal` converted."""
        if settings["activation_checkpointing"]:
            model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        self._plain = settings["zero_stage"] == 0 and settings["precision"] != "bf16"
        self._clip_norm = clip_norm
        # Without ZeRO the whole gradient is here: one norm clips it, checks it and is worth logging.
        config = ds_config(settings, None if self._plain else clip_norm)
        if universal:
            config["checkpoint"] = {"load_universal": True}
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model.to(device()),
            optimizer=make_optimizer(model, optimizer),
            config=config,
            dist_init_required=False,
        )
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def world(self) -> int:
        """Processes that share each optimizer step."""
        return int(self.engine.dp_world_size)

    @property
    def rank(self) -> int:
        """This process's number among them."""
        return int(self.engine.global_rank)

    @property
    def zero_stage(self) -> int:
        """How much is sharded over the processes: 0 nothing, 1 optimizer, 2 gradients too, 3 weights too."""
        return int(self.engine.zero_optimization_stage())

    def backward(self, loss_sum: Tensor, count: int, *, last: bool) -> None:
        """Accumulate the gradient of one micro-batch.

        Args:
            loss_sum: scalar, summed over the micro-batch's units.
            count: units of the global batch, over all micro-batches and processes.
            last: whether this is the step's last micro-batch.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over processes; the mean over units wants their sum.
        self.engine.backward(loss_sum * (self.world / count), scale_wrt_gas=False)

    def step(self, rate: float, where: str) -> float | None:
        """Update the weights, with learning rates `rate` times their configured values.

        Returns the global gradient norm before clipping (None where DeepSpeed does not tell).

        Raises:
            NonFiniteError: a gradient is NaN or infinite; nothing was updated.
        """
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * rate
        norm: float | None = None
        sound = True
        if self._plain:
            parameters = [value for value in self.engine.module.parameters() if value.grad is not None]
            limit = float("inf") if self._clip_norm is None else self._clip_norm
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
            sound = math.isfinite(norm)
        if sound:
            self.engine.step()  # sharded, it computes the norm itself and skips the update if that is not finite
            sound = self.engine.was_step_applied()
        if not sound:
            raise NonFiniteError(f"gradient is not finite {where}; the weights were not updated")
        if norm is None and self.engine.get_global_grad_norm() is not None:
            norm = float(self.engine.get_global_grad_norm())
        return norm

    def weights_are_finite(self) -> bool:
        """Whether every weight is a number, on every process."""
        # Under ZeRO 3 a parameter is empty and `ds_tensor` holds this process's shard.
        own = [getattr(value, "ds_tensor", value) for value in self.engine.module.parameters()]
        found = torch.tensor(float(all(bool(torch.isfinite(value).all()) for value in own)), device=device())
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
        return bool(found)

    def save(self, folder: str, tag: str) -> None:
        """Write weights and optimizer below `folder/tag` (every process takes part)."""
        self.engine.save_checkpoint(folder, tag=tag, save_latest=False)

    def load(self, folder: str, tag: str) -> None:
        """Restore what `save` wrote."""
        path, _ = self.engine.load_checkpoint(folder, tag=tag)
        if path is None:
            raise UserError(f"checkpoint {folder}/{tag}: DeepSpeed cannot load it with this engine")

    def weights(self) -> dict[str, Tensor]:
        """The full weights on the CPU, gathered from all shards (every process takes part)."""
        if self.engine.zero_optimization_stage() == 3:
            gathered = self.engine._zero3_consolidated_16bit_state_dict()
            return gathered or {}
        return {name: value.detach().cpu() for name, value in self.engine.module.state_dict().items()}

    def close(self) -> None:
        """Free what the engine holds (hooks, buffers), so that the next job of a sweep starts clean."""
        _empty(self.engine)


def _empty(engine: Any) -> None:
    """End a DeepSpeed engine and free its memory.

    Hooks of ZeRO 3 on the autograd graph keep it alive in a cycle that Python's collector cannot see, so what it holds
    is taken out of it: without that, a sweep keeps the weights and optimizer states of every run it has done.
    """
    parameters, optimizer = list(engine.module.parameters()), engine.optimizer
    engine.destroy()
    if engine.zero_optimization_stage() == 3:
        for parameter in parameters:
            vars(parameter).clear()  # its shard, and DeepSpeed's methods that hold the engine
            parameter.data = torch.empty(0)
        for holder in (optimizer, getattr(optimizer, "optimizer", None), engine):
            if holder is not None:
                vars(holder).clear()


def close_frozen(model: nn.Module) -> None:
    """Free what `frozen_engine` made; a model that is not sharded needs nothing."""
    if isinstance(model, deepspeed.DeepSpeedEngine):
        _empty(model)


def to_universal(checkpoint: Path, folder: Path) -> None:
    """Convert a ZeRO checkpoint into DeepSpeed's universal form, which any number of processes loads.

    Args:
        checkpoint: as `TrainingEngine.save` wrote it.
        folder: where the converted one goes; it is made.
    """
    from deepspeed.checkpoint import ds_to_universal

    arguments = argparse.Namespace(
        input_folder=str(checkpoint),
        output_folder=str(folder),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints every file
        ds_to_universal.main(arguments)


def frozen_engine(model: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    """A frozen role, ready to be called: sharded over the processes under ZeRO 3, whole otherwise."""
    model.requires_grad_(False).eval()
    if settings["zero_stage"] != 3:
        return model.to(device())
    config = ds_config(settings, None)
    config["zero_optimization"].pop("offload_optimizer", None)
    engine, *_ = deepspeed.initialize(model=model.to(device()), config=config, dist_init_required=False)
    engine.eval()
    assert isinstance(engine, nn.Module)
    return engine
