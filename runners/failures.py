"""What the machine ran out of, or a method could not use, said in one line with what to change.

A full disk or too little memory reaches us in many forms: as an error of the system, of PyTorch's file writer, of
safetensors, of CUDA. Nothing finished is lost by any of them; the same command continues when there is room.
"""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runners import signatures
from runners.errors import UserError

# A method says what is wrong with its data or settings as `key...: rule`; anything else is a mistake of ours.
_OF_A_SETTING = re.compile(r"(method|adapter|penalty|mix|model|dataset|training|optimizer|evaluation)[.=][\w.]+")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(error: BaseException, config: Mapping[str, Any], folder: Path) -> UserError | None:
    """One line for what the machine or a method refused; None for any other error.

    Args:
        error: what was raised.
        config: the run's.
        folder: the run's.
    """
    text = str(error)
    if type(error) is ValueError and _OF_A_SETTING.match(text):
        return UserError(text)
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return UserError(f"the GPU is out of memory; {_less_memory(config)}")
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in text:
        return UserError(f"the machine is out of memory; {_less_memory(config)}")
    # PyTorch's writer (inline_container.cc) does not say what the system told it.
    wrote = "inline_container.cc" in text or type(error).__name__ == "SafetensorError"
    if isinstance(error, OSError) and error.errno in _FULL:
        elsewhere = error.filename is not None and not _is_below(error.filename, config["outputs"])
        return UserError(f"{error.filename or folder}: {error.strerror}{'' if elsewhere else f'; {_ROOM}'}")
    if wrote and ("os error 28" in text or "unexpected pos" in text or "file write failed" in text):
        return UserError(f"{folder}: writing failed, most likely for want of space; {_ROOM}")
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        elsewhere = error.filename is not None and not _is_below(error.filename, config["outputs"])
        way_out = "" if elsewhere else "; choose another folder with outputs="
        return UserError(f"{error.filename or folder}: {error.strerror}{way_out}")
    return None


def _is_below(path: str | bytes | int, outputs: str) -> bool:
    return (
        Path(os.fsdecode(path) if not isinstance(path, int) else "")
        .absolute()
        .is_relative_to(Path(outputs).expanduser().absolute())
    )


_ROOM = "make room or choose another outputs=, then type the command again: it continues from its last checkpoint"


def _less_memory(config: Mapping[str, Any]) -> str:
    """What to change, the cheapest first, from where the run stands now."""
    if config["model"]["kind"] == "none":
        return "make the data set, or what the method does at a time, smaller"
    training, engine = config["training"], config["engine"]
    ways = []
    if training["micro_batch_size"] > 1:
        couples = signatures.read(config["method"]["_target_"]).attributes.get("couples")
        told = "part of what this method computes: it makes another run" if couples else "which changes no result"
        ways.append(f"lower training.micro_batch_size ({training['micro_batch_size']}), {told}")
    ways.append(f"lower evaluation.batch_size ({config['evaluation']['batch_size']}) if it was evaluating")
    if not engine["activation_checkpointing"]:
        ways.append("engine.activation_checkpointing=true")
    if engine["zero_stage"] < 3:
        ways.append("engine=zero3 over more gpus (starts anew: delete the run's checkpoints/)")
    if engine["offload"] == "none":
        ways.append("engine.offload=optimizer with engine=zero1, zero2 or zero3")
    return "; ".join(ways)
