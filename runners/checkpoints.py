"""Checkpoints of a run under way: written aside, sealed by checksums, renamed into place.

`<run>/checkpoints/step-000300/` is complete when its `COMPLETE.json` is there: the file is written last and
lists size and SHA-256 of every other file. Anything else is a half-written leftover.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

_SEAL = "COMPLETE.json"
_KEEP = 2  # the last, and the one before in case the last turns out damaged


def name_of(step: int) -> str:
    """Folder name of the checkpoint after `step` optimizer steps."""
    return f"step-{step:06d}"


def seal(written: Path, final: Path) -> None:
    """Turn a fully written folder into a complete checkpoint named `final`."""
    files = {
        path.relative_to(written).as_posix(): [path.stat().st_size, _digest(path)]
        for path in sorted(written.rglob("*"))
        if path.is_file()
    }
    seal_path = written / _SEAL
    with seal_path.open("w") as file:
        json.dump(files, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(written, final)
    _rotate(final.parent)


def latest(folder: Path) -> Path | None:
    """The newest healthy checkpoint below `folder`; a damaged one is named in a warning and passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []:
        problem = damage(path)
        if problem is None:
            return path
        log.warning("checkpoint %s is not used: %s", path, problem)
    return None


def damage(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted; None when it is as it was sealed."""
    try:
        files = json.loads((path / _SEAL).read_text())
    except (OSError, ValueError):
        return "it is incomplete"
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or truncated"
        if _digest(file) != digest:
            return f"{name} was altered"
    return None


def _rotate(folder: Path) -> None:
    sealed = [path for path in sorted(folder.glob("step-*")) if (path / _SEAL).is_file()]
    for path in sealed[:-_KEEP]:
        shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
