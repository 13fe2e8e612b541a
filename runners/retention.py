"""What stays of a done run: `keep=none|last|best|all`, obeyed when a run ends and by `job=clean`."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from runners import checkpoints
from runners.compose import RunSpec


@dataclass
class Cleaned:
    """What was deleted of a run, in bytes, and what was left for which reason."""

    freed: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def tidy(spec: RunSpec, needed_by: str = "", *, former_too: bool = False) -> Cleaned:
    """Delete what `keep` says need not stay of a done run; its lock is held by the caller.

    Args:
        spec: the run; its result is written.
        needed_by: the run that needs its final weights, if any.
        former_too: with `keep=none`, also what was put aside of the run before.
    """
    cleaned = Cleaned()
    keep, folder = spec.config["keep"], spec.folder

    def delete(what: str, paths: Iterable[Path]) -> None:
        for path in paths:
            cleaned.freed[what] = cleaned.freed.get(what, 0) + size_of(path)
            _delete(path)

    saved = folder / "checkpoints"
    for place in (folder, saved):
        delete("half-written leftovers", [*place.glob("*.writing"), *place.glob("writing-*")])
    if keep in ("none", "last"):
        delete("checkpoints", [saved] if saved.is_dir() else [])
    elif keep == "best" and saved.is_dir():
        try:
            best = checkpoints.best(
                checkpoints.sealed(saved), spec.config["best_metric"], spec.config["best_is"] == "lower"
            )
        except (OSError, ValueError, KeyError):
            best = None
        if best is None:
            cleaned.left.append(f"checkpoints kept: none has the metric {spec.config['best_metric']}")
        else:
            delete("checkpoints", [path for path in sorted(saved.iterdir()) if path != best])
    if keep == "none":
        if needed_by:
            cleaned.left.append(f"final weights kept: {needed_by} starts from them")
        else:
            delete("final weights", [folder / "model"] if (folder / "model").is_dir() else [])
        if former_too:
            delete("former results", folder.parent.glob(f"{folder.name}.before-*"))
    return cleaned


def size_of(path: Path) -> int:
    """Bytes that a file, or all files below a folder, hold; links are not followed."""
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_symlink() or file.is_file())


def _delete(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    # The seal goes first: a folder of which half is deleted must not look complete.
    (path / checkpoints.SEAL).unlink(missing_ok=True)
    shutil.rmtree(path)
