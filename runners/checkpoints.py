"""Checkpoints of a run under way: written aside, sealed by checksums, renamed into place.

`<run>/checkpoints/step-000300/` is complete when its `COMPLETE.json` is there: the file is written last and
lists size and SHA-256 of every other file. Anything else is a half-written leftover. The same seal guards what a
method prepared (`prepared/`) and the final weights (`<run>/model/`).
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SEAL = "COMPLETE.json"
_WRITING = "writing-"
_KEEP = 2  # the last, and the one before in case the last turns out damaged

Digests = dict[str, tuple[int, str]]  # file -> size, SHA-256


def name_of(step: int) -> str:
    """Folder name of the checkpoint after `step` optimizer steps."""
    return f"step-{step:06d}"


def written_aside(final: Path) -> Path:
    """The folder in which the files of `final` are written before it is sealed; leftovers in it are deleted."""
    aside = final.with_name(f"{_WRITING}{final.name}")
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    return aside


def files_of(folder: Path) -> list[str]:
    """Every file below a folder but the seal, by its name relative to it."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    return [name for name in names if name != SEAL]


def digests(folder: Path, names: list[str]) -> Digests:
    """Flush files to disk, and tell size and SHA-256 of each."""
    found: Digests = {}
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
            found[name] = (os.fstat(file.fileno()).st_size, _digest(folder / name))
    return found


def seal(aside: Path, final: Path, found: Digests | None = None) -> None:
    """Turn a fully written folder into a complete checkpoint named `final`.

    Args:
        aside: from `written_aside`.
        final: its name from now on; what is there and incomplete is replaced.
        found: of all its files, when they are known already.
    """
    seal_path = aside / SEAL
    with seal_path.open("w") as file:
        json.dump(found if found is not None else digests(aside, files_of(aside)), file)
        file.flush()
        os.fsync(file.fileno())
    flush_names(aside)
    if final.exists():
        shutil.rmtree(final)
    os.replace(aside, final)
    flush_names(final.parent)


def latest(folder: Path) -> Path | None:
    """The newest healthy checkpoint below `folder`; a damaged one is named in a warning and passed over."""
    for path in reversed(_by_step(folder)):
        problem = damage(path)
        if problem is None:
            return path
        log.warning("checkpoint %s is not used: %s", path, problem)
    return None


def damage(path: Path, *, contents: bool = True) -> str | None:
    """Why a checkpoint cannot be trusted; None when it is as it was sealed. Without `contents` only sizes count."""
    try:
        expected = json.loads((path / SEAL).read_text())
    except (OSError, ValueError):
        return "it is incomplete"
    return _altered(path, expected, contents)


def _altered(folder: Path, expected: Mapping[str, Any], contents: bool) -> str | None:
    for name, (size, digest) in expected.items():
        file = folder / name
        try:
            if not file.is_file() or file.stat().st_size != size:
                return f"{name} is missing or truncated"
            if contents and _digest(file) != digest:
                return f"{name} was altered"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def sealed(folder: Path) -> list[Path]:
    """The complete checkpoints below `folder`, oldest first, by their seals alone."""
    return [path for path in _by_step(folder) if (path / SEAL).is_file()]


def _by_step(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def rotate(folder: Path, spare: Callable[[list[Path]], Path | None] = lambda _: None) -> None:
    """Delete what is not needed to continue: all but the last two, once the last is known to be healthy.

    The disk is read again: what was written in an earlier attempt counts, and a last checkpoint that cannot be read
    back lets nothing be deleted.

    Args:
        folder: `<run>/checkpoints`.
        spare: chooses one more that stays.
    """
    found = sealed(folder)
    if len(found) <= _KEEP:
        return
    problem = damage(found[-1])
    if problem is not None:
        log.warning("checkpoint %s is damaged (%s): no older one is deleted", found[-1], problem)
        return
    spared = spare(found)
    for path in _by_step(folder):
        if path not in found and _step(path) < _step(found[-_KEEP]):  # an earlier rotation had begun to delete it
            shutil.rmtree(path, ignore_errors=True)
    for path in found[:-_KEEP]:
        if path != spared:
            # The seal goes first: a folder of which half is deleted must not look complete.
            (path / SEAL).unlink()
            shutil.rmtree(path, ignore_errors=True)


def best(found: list[Path], metric: str, is_lower: bool) -> Path | None:
    """The checkpoint at which a logged metric was best; None where none has it."""
    scored = [(value, path) for path in found if (value := progress_of(path)["metrics"].get(metric)) is not None]
    if not scored:
        return None
    return (min if is_lower else max)(scored, key=lambda item: item[0])[1]


def progress_of(path: Path) -> dict[str, Any]:
    """What the loop noted in a checkpoint: step, world, zero_stage, counts and the metrics last logged."""
    progress = json.loads((path / "loop.json").read_text())
    assert isinstance(progress, dict)
    return progress


def clear_leftovers(folder: Path) -> None:
    """Delete what interrupted writes left behind."""
    for path in folder.glob(f"{_WRITING}*") if folder.is_dir() else []:
        shutil.rmtree(path, ignore_errors=True)


def flush_names(folder: Path) -> None:
    """Make new names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
