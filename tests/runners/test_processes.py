"""Runs of several processes: the numbers of one, resumed by another number, and how they end."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from runners import processes
from runners.errors import UserError
from runners.schema import Engine
from tests.command import METHOD, TINY, retable, write_plugin
from tests.curves import Curve, StopHere, stopping_after


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# The same numbers --------------------------------------------------------------------------------------------

ENGINES = {
    "stage 0": Engine(),
    "stage 1": Engine(zero_stage=1),
    "stage 2": Engine(zero_stage=2),
    "stage 3": Engine(zero_stage=3),
    "offloaded optimizer": Engine(zero_stage=2, offload="optimizer"),
    "offloaded weights": Engine(zero_stage=3, offload="all"),
}
METHODS = ("sft", "flow")
HALF = ("bf16", "bf16_autocast")
LAYOUT = {"batch_size": 7, "micro": 2}  # seven examples: the processes get unequal shares


def curves(folder: Path) -> dict[tuple[str, str], tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Losses and final weights of every method on every engine, on as many processes as have joined."""
    processes.join(folder / "run")
    found = {}
    for method in METHODS:
        for name, engine in ENGINES.items():
            curve = Curve(folder / f"{method} {name}", method=method, engine=engine, steps=6, **LAYOUT)
            found[method, name] = curve.losses, curve.weights
    packed = Curve(folder / "packed", steps=6, packing=True, **LAYOUT)
    found["sft", "packed"] = packed.losses, packed.weights
    for precision in HALF:
        curve = Curve(folder / precision, steps=6, engine=Engine(precision=precision, zero_stage=1), **LAYOUT)
        found[precision, ""] = curve.losses, curve.weights
    return found


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    """At every ZeRO stage, with offload and packed; in half precision nearly. Weights come out whole on rank 0."""
    processes.join(tmp_path / "run")
    whole = {method: Curve(tmp_path / method, method=method, steps=6, **LAYOUT) for method in METHODS}
    several = processes.launch(2, 1, curves, tmp_path / "two")
    for precision in HALF:
        losses, _ = several.pop((precision, ""))
        np.testing.assert_allclose(losses, whole["sft"].losses, rtol=0.05, err_msg=precision)
        assert not np.array_equal(losses, whole["sft"].losses)
    assert len(several) == len(METHODS) * len(ENGINES) + 1
    for (method, name), (losses, weights) in several.items():
        np.testing.assert_allclose(losses, whole[method].losses, atol=1e-5, rtol=0, err_msg=f"{method} {name}")
        assert weights.keys() == whole[method].weights.keys()
        for key, value in whole[method].weights.items():
            torch.testing.assert_close(weights[key].float(), value, atol=1e-4, rtol=1e-3)


def interrupted(folder: Path, steps: int) -> None:
    """Train every engine until it is cut off after its checkpoint of step 4."""
    processes.join(folder / "run")
    for name, engine in ENGINES.items():
        with pytest.raises(StopHere):
            cut = {"poison": stopping_after(6), "training_changes": {"checkpoint_every": 4}}
            Curve(folder / name, engine=engine, steps=steps, **LAYOUT, **cut)


def resumed(folder: Path, steps: int) -> dict[str, tuple[list[int], np.ndarray, dict[str, torch.Tensor]]]:
    """Continue every engine; the steps done, their losses, the final weights."""
    processes.join(folder / "run")
    found = {}
    for name, engine in ENGINES.items():
        curve = Curve(folder / name, engine=engine, steps=steps, **LAYOUT)
        found[name] = [step for step, _ in curve.records], curve.losses, curve.weights
    return found


def assert_continues(found: dict, whole: Curve) -> None:
    for name, (steps, losses, weights) in found.items():
        assert steps == [5, 6, 7, 8], name
        np.testing.assert_allclose(losses, whole.losses[4:], atol=1e-5, rtol=0, err_msg=name)
        for key, value in whole.weights.items():
            torch.testing.assert_close(weights[key].float(), value, atol=1e-4, rtol=1e-3)


def test_a_checkpoint_of_two_processes_resumes_on_two_and_on_one(tmp_path: Path) -> None:
    processes.join(tmp_path / "run")
    whole = Curve(tmp_path / "whole", steps=8, **LAYOUT)
    processes.launch(2, 1, interrupted, tmp_path / "cut", 8)
    shutil.copytree(tmp_path / "cut", tmp_path / "again")
    assert_continues(resumed(tmp_path / "cut", 8), whole)
    assert (tmp_path / "cut" / "stage 3" / "checkpoints" / "universal-step-000004").is_dir()
    on_two = processes.launch(2, 1, resumed, tmp_path / "again", 8)
    assert_continues(on_two, whole)
    straight = processes.launch(2, 1, resumed, tmp_path / "straight", 8)
    for name, (_, losses, weights) in on_two.items():
        assert np.array_equal(losses, straight[name][1][4:]), f"{name}: to the last bit on as many processes"
        assert all(torch.equal(value, straight[name][2][key]) for key, value in weights.items()), name


@pytest.mark.slow  # the other way round, and as many again, are above
def test_a_checkpoint_of_one_process_resumes_on_two(tmp_path: Path) -> None:
    processes.join(tmp_path / "run")
    whole = Curve(tmp_path / "whole", steps=8, **LAYOUT)
    interrupted(tmp_path / "cut", 8)
    assert_continues(processes.launch(2, 1, resumed, tmp_path / "cut", 8), whole)


@pytest.mark.parametrize(("written", "now"), [(0, 1), (1, 0), (2, 3), (3, 1)])
def test_what_another_zero_stage_cannot_continue_is_one_line(tmp_path: Path, written: int, now: int) -> None:
    processes.join(tmp_path / "run")
    with pytest.raises(StopHere):
        cut = {"poison": stopping_after(6), "training_changes": {"checkpoint_every": 4}}
        Curve(tmp_path, engine=Engine(zero_stage=written), **cut)
    with pytest.raises(UserError, match=rf"engine.zero_stage={now}: .* was written with engine.zero_stage={written}"):
        Curve(tmp_path, engine=Engine(zero_stage=now))


def test_zero_1_and_2_continue_one_another(tmp_path: Path) -> None:
    processes.join(tmp_path / "run")
    whole = Curve(tmp_path / "whole")
    with pytest.raises(StopHere):
        cut = {"poison": stopping_after(6), "training_changes": {"checkpoint_every": 4}}
        Curve(tmp_path / "cut", engine=Engine(zero_stage=1), **cut)
    resumed = Curve(tmp_path / "cut", engine=Engine(zero_stage=2))
    np.testing.assert_allclose(resumed.losses, whole.losses[4:], atol=1e-5, rtol=0)


# Whole runs ----------------------------------------------------------------------------------------------------


def only_run(outputs: str) -> Path:
    (folder,) = (path.parent for path in Path(outputs).glob("runs/*/config.yaml"))
    return folder


def test_a_run_on_two_processes_has_one_folder_and_the_numbers_of_one(own_folder: Path) -> None:
    words = [word for word in TINY if word != "evaluation=none"]
    words += ["evaluation.limit=5", "evaluation.batch_size=4", "method=finetune/flow"]
    assert retable(*words, "outputs=one").code == 0
    ended = retable(*words, "outputs=two", "processes=2", "engine=zero3")
    assert ended.code == 0, ended.err
    one, two = only_run("one"), only_run("two")
    assert one.name == two.name, "how many processes is no part of the identity"
    assert (two / "samples" / "mini_world_sort.jsonl").is_file()
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    for task, metrics in results[0]["metrics"].items():
        for name, value in metrics.items():
            assert results[1]["metrics"][task][name] == pytest.approx(value, abs=1e-3), (task, name)
    model = AutoModelForCausalLM.from_pretrained(two / "model", use_safetensors=True)
    reference = AutoModelForCausalLM.from_pretrained(one / "model", use_safetensors=True).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, reference[name], atol=1e-4, rtol=1e-3)


FAILING = METHOD.replace(
    '"""The scaled loss."""',
    'import os\n        if os.environ["RANK"] == "1":\n            ACTION',
)


def failing(folder: Path, module: str, action: str) -> list[str]:
    plugin = write_plugin(folder / "plugin", module, FAILING.replace("ACTION", action))
    return [*TINY, f"plugins={plugin}", f"method=private/{module}", "processes=2"]


def listening() -> set[int]:
    """The ports on which this process waits for connections."""
    connections = psutil.Process().net_connections()
    return {connection.laddr.port for connection in connections if connection.status == "LISTEN"}


def test_an_error_of_any_rank_reaches_the_user_with_its_traceback(own_folder: Path) -> None:
    """A sweep: the first cell fails on rank 1 by a defect; nothing is left of it, and the second cell runs."""
    words = failing(own_folder, "defect", "if self.config.scale == 7: raise RuntimeError('it broke')")
    ports = listening()
    ended = retable("-m", *words, "method.scale=7,1")
    assert ended.code == 1 and "1 of 2 cells failed" in ended.err
    assert "RuntimeError: it broke (rank 1)" in ended.err
    failed = next(path.parent for path in Path("outputs").glob("runs/*/failure.json"))
    log = (failed / "run.log").read_text()
    assert "Traceback" in log and "defect.py" in log and "it broke" in log
    assert len(list(Path("outputs").glob("runs/*/result.json"))) == 1
    children = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    assert not [line for line in children if "spawn_main" in " ".join(line)], "workers are gone"
    assert listening() <= ports, "no port stays open"


def test_a_killed_rank_is_named(own_folder: Path) -> None:
    ended = retable(*failing(own_folder, "killed", "os.kill(os.getpid(), 9)"))
    assert ended.code == 1
    assert "rank 1 (process " in ended.error and "was killed by SIGKILL; the machine may have run out" in ended.error


def test_workers_die_with_the_command(own_folder: Path) -> None:
    """kill -9 of the command itself: its ranks must not go on writing."""
    words = failing(own_folder, "slow", "__import__('time').sleep(60)")
    command = [str(Path(sys.executable).with_name("retable")), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        log = Path("outputs")
        began = time.monotonic()
        while not list(log.glob("runs/*/environment.json")):
            assert time.monotonic() - began < 120 and process.poll() is None
            time.sleep(0.1)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_ranks_that_torchrun_started_are_used(own_folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "runners.main",
    ]
    done = subprocess.run([*command, *TINY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = only_run("outputs")
    assert json.loads((folder / "environment.json").read_text())["processes"] == 2
    assert done.stderr.count("run finetune_sft-mini_random-s1") == 1, "only rank 0 tells"
    again = subprocess.run([*command, *TINY], capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "is done" in again.stderr


def test_a_failing_cell_ends_a_sweep_that_torchrun_started(own_folder: Path) -> None:
    """Rank 1 may still wait in the failed cell: going on would leave both waiting for ever."""
    plugin = write_plugin(
        own_folder / "plugin",
        "alone",
        FAILING.replace("ACTION", "pass")
        .replace('"1":', '"0" and self.config.scale == 7:')
        .replace("pass", "raise KeyError"),
    )
    words = [*TINY, f"plugins={plugin}", "method=private/alone", "method.scale=7,1"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "runners.main",
    ]
    done = subprocess.run([*command, "-m", *words], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode != 0 and "1 cells were not started (several ranks; type the command again)" in done.stderr


def test_several_nodes_need_a_launcher() -> None:
    assert retable(*TINY, "nodes=2").error.startswith("nodes=2: needs hydra/launcher=slurm")
    assert "must set one of processes" in retable(*TINY, "gpus=2", "processes=2").error
