"""What is made once and shared: when it is taken, when it is made again, and that two processes make it once."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runners import cache, lock, preemption

DECIDES = {"model": {"id": "a/b", "seed": 0}, "data": "1f2e"}
MADE = {"values": torch.tensor([0.5, -2.0], dtype=torch.float64), "count": torch.tensor(3)}

# A process that wants the entry, and takes its time to make it: it writes one line each time it does.
WANTS = f"""
import sys, time
from pathlib import Path
import torch
from runners import cache
cache._PATIENCE = 0.2
def make(parts):
    with open(sys.argv[2], "a") as file:
        file.write("made\\n")
    time.sleep(1.5)
    return {{"values": torch.tensor([0.5, -2.0], dtype=torch.float64), "count": torch.tensor(3)}}
print("ready", flush=True)
sys.stdin.readline()
print(cache.shared(Path(sys.argv[1]), "base losses", {DECIDES!r}, make)["values"].tolist())
"""


class Making:
    """Makes the tensors, and counts how often it was asked."""

    def __init__(self, made: Mapping[str, Tensor] = MADE) -> None:
        self.made, self.calls = made, 0

    def __call__(self, parts: Path) -> Mapping[str, Tensor]:
        self.calls += 1
        return self.made


def taken(root: Path, make: Callable[[Path], Mapping[str, Tensor]], **changes: object) -> dict[str, Tensor]:
    return cache.shared(root, "base losses", {**DECIDES, **changes}, make)


def entry_of(root: Path) -> Path:
    (entry,) = (path for path in root.iterdir() if path.is_dir())
    return entry


def test_what_was_made_is_taken_as_it_was(tmp_path: Path) -> None:
    make = Making()
    for _ in range(3):
        found = taken(tmp_path, make)
        assert found.keys() == MADE.keys()
        assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in MADE.items())
    assert make.calls == 1
    entry = entry_of(tmp_path)
    assert entry.name.startswith("base-losses-") and json.loads((entry / "decides.json").read_text())["data"] == "1f2e"


def test_order_of_keys_does_not_matter_and_all_else_does(tmp_path: Path) -> None:
    make = Making()
    taken(tmp_path, make)
    cache.shared(tmp_path, "base losses", {"data": "1f2e", "model": {"seed": 0, "id": "a/b"}}, make)
    assert make.calls == 1
    taken(tmp_path, make, data="other")
    taken(tmp_path, make, model={"id": "a/b", "seed": 1})
    taken(tmp_path, make, further=None)
    cache.shared(tmp_path, "token losses", DECIDES, make)
    assert make.calls == 5


@pytest.mark.parametrize("harm", ["flipped", "cut", "lost", "unsealed"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str) -> None:
    taken(tmp_path, Making())
    entry = entry_of(tmp_path)
    file = entry / "tensors.safetensors"
    content = file.read_bytes()
    if harm == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "cut":
        file.write_bytes(content[:-1])
    else:
        (file if harm == "lost" else entry / "COMPLETE.json").unlink()
    again = Making({"values": torch.ones(2)})
    with caplog.at_level(logging.WARNING):
        assert torch.equal(taken(tmp_path, again)["values"], torch.ones(2))
    assert again.calls == 1 and f"{entry} is not used: " in caplog.text
    assert taken(tmp_path, again)["values"].tolist() == [1, 1] and again.calls == 1


def test_an_entry_of_something_else_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its name says that it is ours, what it holds does not: a hash that happens to be the same, a folder copied."""
    taken(tmp_path / "one", Making())
    taken(tmp_path / "other", Making({"values": torch.zeros(2)}), data="other")
    ours = entry_of(tmp_path / "one")
    for path in entry_of(tmp_path / "other").iterdir():
        (ours / path.name).write_bytes(path.read_bytes())
    again = Making()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(taken(tmp_path / "one", again)["values"], MADE["values"])
    assert again.calls == 1 and "is not used: it was made of something else" in caplog.text


def test_what_is_half_made_is_there_the_next_time_and_gone_when_all_is(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def make(parts: Path) -> Mapping[str, Tensor]:
        parts.mkdir(exist_ok=True)
        seen.append(sorted(path.name for path in parts.iterdir()))
        (parts / str(len(seen))).touch()
        if len(seen) < 3:
            raise RuntimeError("power cut")
        return MADE

    for _ in range(2):
        with pytest.raises(RuntimeError, match="power cut"):
            taken(tmp_path, make)
    taken(tmp_path, make)
    assert seen == [[], ["1"], ["1", "2"]]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [entry_of(tmp_path).name]


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WANTS, tmp_path / "cache", tmp_path / "made.txt"]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    printed = []
    for process in both:  # neither has to wait for the other to start
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        printed.append(process.communicate(timeout=120)[0])
    assert printed == ["[0.5, -2.0]\n"] * 2
    assert (tmp_path / "made.txt").read_text() == "made\n"


def test_who_waits_can_be_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_PATIENCE", 0.1)
    taken(tmp_path, Making())
    entry = entry_of(tmp_path)
    (entry / "COMPLETE.json").unlink()
    make = Making()
    with lock.held(entry, patience=0), preemption.listening():
        os.kill(os.getpid(), 15)
        time.sleep(0.05)
        with pytest.raises(preemption.Preempted, match=f"while it waited for {entry.name}"):
            taken(tmp_path, make)
    assert make.calls == 0
