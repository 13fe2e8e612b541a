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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is first imported

import deepspeed
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_local_fp32_param,
)

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


def sum_over_processes(tensor: Tensor) -> None:
    """Sum a tensor on the CPU over all processes, in place."""
    moved = tensor.to(device())
    torch.distributed.all_reduce(moved)
    tensor.copy_(moved.cpu())


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
        self._last = False  # whether the micro-batch under way is the last of its step

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
        self._last = last
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

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: value for name, value in self.engine.module.named_parameters() if value.requires_grad}

    def own_weights(self) -> dict[str, Tensor]:
        """A copy of this process's share of every trained weight: a flat slice of each, fp32.

        Shares are those of ZeRO 3 at every stage, so that what is kept beside the weights (the starting point of a
        penalty) is sharded even where the weights are not.
        """
        return {name: self._own(value).detach().float().clone() for name, value in self.trainable.items()}

    def share_of(self, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's share of tensors that are shaped like the trained weights, as flat slices."""
        return {name: self._slice(full[name].flatten(), full[name].numel()) for name in self.trainable}

    def _own(self, parameter: Any) -> Tensor:
        if hasattr(parameter, "ds_tensor"):
            padded = parameter.ds_tensor
            begin = self.rank * padded.numel()
            return padded.data[: max(min(parameter.ds_numel - begin, padded.numel()), 0)]
        return self._slice(parameter.data.view(-1), parameter.numel())

    def _slice(self, flat: Tensor, size: int) -> Tensor:
        share = math.ceil(size / self.world)
        return flat[self.rank * share : (self.rank + 1) * share]

    def add_to_gradient(self, term: Callable[[str, Tensor], Tensor | None]) -> None:
        """Add a function of the weights to their gradient, once in every step.

        Args:
            term: from a parameter's name and this process's share of it (flat) to the gradient of what is added, in
                the same shape, or None for nothing. It is called in the backward pass of a step's last micro-batch.
        """

        def hook(name: str, parameter: nn.Parameter) -> Callable[[Tensor], Tensor | None]:
            def add(gradient: Tensor) -> Tensor | None:
                if not self._last:
                    return None
                found = term(name, self._own(parameter).detach().float())
                if found is None:
                    return None
                changed = gradient.clone(memory_format=torch.contiguous_format)
                # DeepSpeed averages over processes; each adds to its own slice alone, which makes the sum whole.
                own = self._slice(changed.view(-1), changed.numel())
                own += found.to(own) * self.world
                return changed

            return add

        for name, parameter in self.trainable.items():
            parameter.register_hook(hook(name, parameter))

    @torch.no_grad()
    def pull(self, towards: Mapping[str, Tensor], by: float) -> None:
        """Move every trained weight the part `by` of its way to a point, optimizer states untouched.

        Args:
            towards: this process's share of the point, as `own_weights` returns it.
            by: 0 stays, 1 is there.
        """
        stage = self.zero_stage
        parameter: Any  # ZeRO 3 adds attributes of its own
        for name, parameter in self.trainable.items():
            if stage == 3:
                padded = parameter.ds_tensor
                precise = safe_get_local_fp32_param(parameter).clone()
                target = torch.zeros_like(precise)
                target[: towards[name].numel()] = towards[name].to(target)
                precise = _part_way(precise, target, by)
                safe_set_local_fp32_param(parameter, precise)
                padded.data.copy_(precise.to(padded.dtype))
                continue
            target = self._gathered(towards[name], parameter)
            linked = getattr(parameter, "_hp_mapping", None) is not None or hasattr(parameter, "get_full_hp_param")
            if self._plain or not linked:
                parameter.data.copy_(_part_way(parameter.data.float(), target, by))
                continue
            precise = _part_way(safe_get_full_fp32_param(parameter), target, by)
            safe_set_full_fp32_param(parameter, precise)
            parameter.data.copy_(precise)
        if stage == 3:
            _gather_again(self.engine)

    def _gathered(self, own: Tensor, parameter: nn.Parameter) -> Tensor:
        """All processes' shares of a tensor shaped like `parameter`, put together."""
        own = own.to(parameter.device)
        if self.world == 1:
            return own.view_as(parameter)
        share = math.ceil(parameter.numel() / self.world)
        padded = torch.zeros(share, dtype=own.dtype, device=own.device)
        padded[: own.numel()] = own
        shares = [torch.empty_like(padded) for _ in range(self.world)]
        torch.distributed.all_gather(shares, padded)
        return torch.cat(shares)[: parameter.numel()].view_as(parameter)

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


def _part_way(start: Tensor, end: Tensor, by: float) -> Tensor:
    """Between two points; exactly the first at 0, exactly the second at 1."""
    return (1 - by) * start + by * end


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


@torch.no_grad()
def follow(model: nn.Module, leader: TrainingEngine, rate: float) -> None:
    """Move a frozen role's weights the part `rate` of the way to those of a trained one, each process its own share."""
    own = dict(getattr(model, "module", model).named_parameters())
    for name, led in leader.engine.module.named_parameters():
        followed = own[name]
        sides: list[Any] = [followed, led]
        mine, theirs = (getattr(value, "ds_tensor", value).data for value in sides)
        mine.lerp_(theirs.to(mine.dtype), rate)
    if isinstance(model, deepspeed.DeepSpeedEngine):
        _gather_again(model)


def _gather_again(engine: Any) -> None:
    """Bring the small parameters that ZeRO 3 keeps whole on every process up to date with their shares."""
    kept = engine.optimizer.persistent_parameters
    if kept:
        kept[0].partition(kept)
        kept[0].all_gather(kept)


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
        # In the precision that DeepSpeed gives a trained role: a model's divergence from itself is 0.
        if settings["precision"] == "bf16":
            model = model.to(torch.bfloat16)
        if settings["precision"] == "bf16_autocast":
            model.forward = torch.autocast(device().type, torch.bfloat16)(model.forward)
        return model.to(device())
    config = ds_config(settings, None)
    config["zero_optimization"].pop("offload_optimizer", None)
    engine, *_ = deepspeed.initialize(model=model.to(device()), config=config, dist_init_required=False)
    engine.eval()
    assert isinstance(engine, nn.Module)
    return engine
