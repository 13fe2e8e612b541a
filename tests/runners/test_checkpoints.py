"""Checkpoints: what is trusted, what is passed over, and what is never deleted."""

import json
import os
import random
from pathlib import Path

import pytest

from runners import checkpoints


def write(root: Path, step: int, *, loss: float = 1.0) -> Path:
    final = root / checkpoints.name_of(step)
    aside = checkpoints.written_aside(final)
    (aside / "weights").write_bytes(bytes([step]) * 1000)
    (aside / "loop.json").write_text(json.dumps({"step": step, "metrics": {"train/loss": loss}}))
    checkpoints.seal(aside, final)
    return final


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_damage_is_named_and_the_one_before_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    older, newest = write(tmp_path, 1), write(tmp_path, 2)
    assert checkpoints.latest(tmp_path) == newest
    (newest / "weights").write_bytes(bytes([2]) * 999)
    assert checkpoints.latest(tmp_path) == older
    assert "step-000002 is not used: weights is missing or truncated" in caplog.text
    (newest / "weights").write_bytes(bytes([7]) * 1000)
    assert checkpoints.damage(newest) == "weights was altered"
    assert checkpoints.damage(newest, contents=False) is None, "its size is right"
    (newest / "weights").unlink()
    (newest / "weights").mkdir()
    assert "missing" in str(checkpoints.damage(newest))
    (newest / "COMPLETE.json").write_text('{"weights": [1000')
    assert checkpoints.damage(newest) == "it is incomplete"
    (newest / "COMPLETE.json").unlink()
    assert checkpoints.damage(newest) == "it is incomplete"


def test_a_file_that_cannot_be_read_counts_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 1)

    def broken(_: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoints, "_digest", broken)
    assert checkpoints.damage(path) == "loop.json cannot be read: Input/output error"


@pytest.mark.parametrize("seed", range(20))
def test_a_write_cut_at_any_point_is_never_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Killed at a random call of the system while a checkpoint is written and rotated: the one before is there."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    generator = random.Random(seed)
    left = generator.randrange(1, 14)

    class Killed(BaseException):
        pass

    def dying(function):
        def call(*arguments, **keywords):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return function(*arguments, **keywords)

        return call

    for name in ("fsync", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
    try:
        write(tmp_path, 3)
        checkpoints.rotate(tmp_path)
    except Killed:
        pass
    monkeypatch.undo()
    found = checkpoints.latest(tmp_path)
    assert found is not None and found.name in ("step-000002", "step-000003")
    assert (found / "weights").read_bytes() == bytes([int(found.name[-1])]) * 1000
    checkpoints.clear_leftovers(tmp_path)
    assert write(tmp_path, 4) == checkpoints.latest(tmp_path), "the next one is written all the same"


def test_rotation_keeps_the_last_two(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    (tmp_path / "step-000005").mkdir()  # half written: counts for nothing
    checkpoints.rotate(tmp_path)
    assert names(tmp_path) == ["step-000003", "step-000004", "step-000005"]


def test_rotation_deletes_nothing_when_the_last_is_damaged(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    for step in (2, 3):
        (tmp_path / checkpoints.name_of(step) / "weights").write_bytes(b"")
    checkpoints.rotate(tmp_path)
    assert checkpoints.latest(tmp_path) == tmp_path / "step-000001"


def test_rotation_spares_the_best(tmp_path: Path) -> None:
    for step, loss in ((1, 0.9), (2, 0.1), (3, 0.5), (4, 0.4)):
        write(tmp_path, step, loss=loss)
    checkpoints.rotate(tmp_path, lambda found: checkpoints.best(found, "train/loss", True))
    assert names(tmp_path) == ["step-000002", "step-000003", "step-000004"]
    assert checkpoints.best(checkpoints.sealed(tmp_path), "train/loss", False) == tmp_path / "step-000003"
    assert checkpoints.best(checkpoints.sealed(tmp_path), "unknown", True) is None


def test_the_millionth_step_comes_after_the_one_before(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000):
        final = tmp_path / checkpoints.name_of(step)
        checkpoints.seal(checkpoints.written_aside(final), final)
    checkpoints.rotate(tmp_path)
    assert names(tmp_path) == ["step-1000000", "step-999999"]
    assert checkpoints.latest(tmp_path) == tmp_path / "step-1000000"


def test_what_a_rotation_had_begun_to_delete_goes_with_the_next(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / "step-000001" / "COMPLETE.json").unlink()
    write(tmp_path, 4)
    checkpoints.rotate(tmp_path)
    assert names(tmp_path) == ["step-000003", "step-000004"]
