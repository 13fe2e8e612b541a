"""`job=diff`: what is said of two runs."""

from pathlib import Path

import pytest

from runners import record
from runners.compose import RunSpec, run_spec
from runners.record import Recorder
from tests.command import UNTRAINED, retable
from tests.runs import write_done


def diff(*folders: Path | str) -> list[str]:
    ended = retable("job=diff", f"runs=[{','.join(map(str, folders))}]")
    assert ended.code == 0, ended.err
    assert "\x1b" not in ended.out
    return [" ".join(line.split()) for line in ended.out.splitlines() if line.strip()]


@pytest.fixture
def pair(composer: Path) -> tuple[RunSpec, RunSpec]:
    one = run_spec([*UNTRAINED])
    other = run_spec([*UNTRAINED, "optimizer.lr=0.5", "training.batch_size=8", "seed=2"])
    return one, other


def test_what_differs_is_shown(pair: tuple[RunSpec, RunSpec]) -> None:
    one, other = pair
    folders = write_done(one, loss=2.0, metrics={"copy": {"acc,none": 0.5}}), write_done(other, loss=1.5)
    made = record._read(folders[1] / "environment.json")
    made |= {"packages": {"torch": "3.0"}, "hardware": {"cores": 4}, "git": {"commit": "b2"}, "source": "other"}
    record.write_json(folders[1] / "environment.json", made)
    lines = diff(*folders)
    assert lines[:2] == [f"A {folders[0]}", f"B {folders[1]}"]
    for line in ("optimizer.lr 0.001 0.5", "training.batch_size 64 8", "seed 1 2", "torch 2.0 3.0", "cores 2 4"):
        assert line in lines
    assert "commit a1 b2" in lines and f"fingerprint {one.source} other" in lines
    assert "train/loss 2 1.5 -0.5 -25.0%" in lines and "copy/acc,none 0.5" in lines
    assert not any(line.startswith(("python", "outputs", "training.schedule")) for line in lines)


def test_modules_that_changed_are_named(pair: tuple[RunSpec, RunSpec]) -> None:
    folders = [write_done(spec) for spec in pair]
    for folder, digest in zip(folders, ("1111111122", "3333333344"), strict=True):
        made = record._read(folder / "environment.json")
        sources = {"methods.finetune.flow": digest, "runners.data": "same"}
        record.write_json(folder / "environment.json", {**made, "source": digest, "sources": sources})
    lines = diff(*folders)
    assert "methods.finetune.flow 11111111 33333333" in lines and not any("runners.data" in line for line in lines)


def test_the_same_run_is_the_same(pair: tuple[RunSpec, RunSpec]) -> None:
    folder = write_done(pair[0])
    lines = diff(folder, folder)
    for title in ("Configuration", "Source", "Packages", "Hardware", "Git"):
        assert f"{title} the same" in lines
    assert "train/loss 1 1 +0 +0.0%" in lines


def test_runs_that_are_not_done_are_compared_too(pair: tuple[RunSpec, RunSpec]) -> None:
    Recorder(pair[0]).open({})
    lines = diff(pair[0].folder, write_done(pair[1]))
    assert "seed 1 2" in lines and "Metrics A: no result yet" in lines


def test_wrong_folders_are_one_line(pair: tuple[RunSpec, RunSpec], tmp_path: Path) -> None:
    folder = write_done(pair[0])
    (tmp_path / "empty").mkdir()
    for runs, error in {
        f"[{folder}]": f"runs=['{folder}']: job=diff compares exactly two folders of runs",
        "[]": "runs=[]: job=diff compares exactly two folders of runs",
        f"[{folder},nowhere]": "runs=nowhere: no such folder",
        f"[{folder},empty]": "runs=empty: holds no run (no config.yaml)",
    }.items():
        ended = retable("job=diff", f"runs={runs}")
        assert (ended.code, ended.err, ended.out) == (1, f"retable: {error}\n", ended.out)
    assert retable("job=diff").error == "runs=[]: job=diff compares exactly two folders of runs"
