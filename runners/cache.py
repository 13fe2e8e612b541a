"""What several runs need and one of them makes: measurements and samples of a model, in `<outputs>/cache/`.

Each entry is a folder named by a hash of all that decides it: the model, the data, the settings, the source. It holds
that description too, so that no entry of another model or data set is ever taken. One process of one run makes an entry
while others wait; what is half made is continued.
"""

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from runners import checkpoints, fingerprint, lock, preemption, processes

log = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds between two looks at an entry that another process makes
_READY, _MAKE, _BUSY = "ready", "make", "busy"


def shared(
    root: Path, what: str, decides: Mapping[str, Any], make: Callable[[Path], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of an entry, made where there are none yet. All ranks of a run call it together.

    Args:
        root: folder of the cache.
        what: names it for people.
        decides: all that its content depends on, as plain data.
        make: returns the tensors, the same on every rank. It gets a folder for what it has finished so far.

    Raises:
        Preempted: told to stop while another process was making it.
    """
    described = {"what": what, **json.loads(json.dumps(decides, default=str))}
    name = f"{re.sub(r'[^A-Za-z0-9]+', '-', what).strip('-')}-{fingerprint.of_data(described)}"
    entry, parts = root / name, root / f"{name}.parts"
    with contextlib.ExitStack() as held:
        told: list[str] = []
        while (state := processes.first_decides(lambda: _look(entry, described, held, told))) == _BUSY:
            if processes.any_rank(preemption.requested()):
                raise processes.stop(f"while it waited for {name}")
        if state == _MAKE:
            made = make(parts)
            processes.first_decides(lambda: _write(entry, described, made))  # nobody reads before it is written
            processes.any_rank(False)  # nobody reads the parts any more
            processes.first_decides(lambda: shutil.rmtree(parts, ignore_errors=True))
        else:
            log.info("%s: taken from %s", what, entry)
        return load_file(entry / "tensors.safetensors")


def _write(entry: Path, described: Mapping[str, Any], made: Mapping[str, Tensor]) -> None:
    aside = checkpoints.written_aside(entry)
    save_file({key: value.contiguous() for key, value in made.items()}, aside / "tensors.safetensors")
    (aside / "decides.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    checkpoints.seal(aside, entry)


def _look(entry: Path, described: Mapping[str, Any], held: contextlib.ExitStack, told: list[str]) -> str:
    """Whether an entry is ready, or to be made by us (its lock is then ours), or made by somebody else."""
    if _is_sound(entry, described):
        return _READY
    try:
        held.enter_context(lock.held(entry, patience=_PATIENCE if told else 0))
    except lock.BusyError as error:
        if not told:
            told.append(str(error))
            log.info("waiting: %s", error)
        return _BUSY
    return _READY if _is_sound(entry, described) else _MAKE


def _is_sound(entry: Path, described: Mapping[str, Any]) -> bool:
    problem = checkpoints.damage(entry)
    if problem is None and json.loads((entry / "decides.json").read_text(encoding="utf-8")) != described:
        problem = "it was made of something else"
    if problem is not None and entry.exists():
        log.warning("%s is not used: %s", entry, problem)
    return problem is None
