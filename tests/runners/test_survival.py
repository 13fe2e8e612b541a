"""Runs that survive: told to stop, killed, two at once, out of disk or memory, with damaged checkpoints."""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import deepspeed
import pytest

from runners.preemption import EXIT_RESUMABLE
from tests.command import METHOD, TINY, forget_sources, retable, write_plugin

ROOT = Path(__file__).parents[2]
SCRIPT = Path(sys.executable).with_name("retable")
STEPS = ["training.steps=8", "training.log_every=1", "training.checkpoint_every=2", "method=finetune/flow"]
MEASURED = [word for word in TINY if word != "evaluation=none"] + ["evaluation.limit=4", "evaluation.batch_size=4"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder_of(outputs: str = "outputs") -> Path:
    (folder,) = (path.parent for path in Path(outputs).glob("runs/*/config.yaml") if ".before-" not in path.parent.name)
    return folder


def outcome(outputs: str = "outputs") -> tuple:
    """What must not depend on interruptions."""
    folder = folder_of(outputs)
    result = json.loads((folder / "result.json").read_text())
    numbers = {key: value for key, value in result["method_metrics"].items() if "seconds" not in key}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["train/loss"]) for row in rows]
    return result["metrics"], numbers, losses, (folder / "model" / "model.safetensors").read_bytes()


def start(*words: str) -> subprocess.Popen:
    return subprocess.Popen([SCRIPT, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 180, "it did not come so far"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def logged_steps(outputs: str = "outputs") -> int:
    return sum(len(path.read_text().splitlines()) for path in Path(outputs).glob("runs/*/metrics.jsonl"))


def slow(folder: Path, module: str, seconds: float) -> list[str]:
    """Words of a method that takes so long for each batch."""
    delay = f"__import__('time').sleep({seconds})\n        return Loss"
    plugin = write_plugin(folder / "plugin", module, METHOD.replace("return Loss", delay))
    return [*TINY, *STEPS[:3], f"plugins={plugin}", f"method=private/{module}"]


# Killed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "kills"), [(1, 2), (2, 1), pytest.param(2, 4, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(processes: int, kills: int) -> None:
    """In training, while a checkpoint is written, in the evaluation (scripts/kill_and_resume.py); of two, either."""
    script = [sys.executable, str(ROOT / "scripts" / "kill_and_resume.py")]
    command = [*script, f"--kills={kills}", f"--processes={processes}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"killed {kills} times; equal: weights, metrics and the record of every step" in done.stdout
    assert "continued 0 times from a checkpoint, 0 times" not in done.stdout
    assert done.stdout.count("SIGKILL") == kills


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_told_to_stop_it_writes_a_checkpoint_and_says_that_it_can_be_resumed(own_folder: Path, number: int) -> None:
    words = slow(own_folder, f"told_{int(number)}", 0.5)
    words[words.index("training.checkpoint_every=2")] = "training.checkpoint_every=null"
    assert retable(*words, "outputs=whole").code == 0
    process = start(*words)
    wait_for(lambda: logged_steps() >= 3, process)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == EXIT_RESUMABLE == 75
    last = err.splitlines()[-1]
    assert last.startswith(f"retable: stopped by {signal.Signals(number).name} after step ")
    assert last.endswith("of 8; the same command continues it")
    (checkpoint,) = (folder_of() / "checkpoints").glob("step-*")
    assert int(last.split("after step ")[1].split()[0]) == int(checkpoint.name[-6:]), "the checkpoint of that step"
    assert not (folder_of() / "failure.json").exists(), "an interruption is no failure"
    again = retable(*words)
    assert again.code == 0 and f"continuing from {checkpoint}" in again.err
    assert outcome() == outcome("whole")


def test_a_sweep_told_to_stop_starts_no_other_cell(own_folder: Path) -> None:
    words = slow(own_folder, "told_sweep", 0.5)
    process = start("-m", *words, "seed=1,2")
    wait_for(lambda: logged_steps() >= 2, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == EXIT_RESUMABLE and "stopped by SIGTERM" in err
    assert len(list(Path("outputs/runs").glob("*/config.yaml"))) == 1


def test_two_processes_are_told_to_stop_by_their_command(own_folder: Path) -> None:
    words = [*slow(own_folder, "told_two", 0.5), "processes=2"]
    assert retable(*words, "outputs=whole").code == 0
    process = start(*words)
    wait_for(lambda: logged_steps() >= 2, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == EXIT_RESUMABLE, err
    assert "stopped by SIGTERM after step" in err.splitlines()[-1]
    again = retable(*words)
    assert again.code == 0 and "continuing from" in (folder_of() / "run.log").read_text()
    assert outcome() == outcome("whole")


def test_told_to_stop_before_its_workers_are_there_it_stops(own_folder: Path) -> None:
    words = [*slow(own_folder, "told_early", 0.3), "processes=2"]
    process = start(*words)
    wait_for(lambda: list(Path("outputs/runs").glob(".*.lock")), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == EXIT_RESUMABLE, err
    assert logged_steps() < 8


def test_told_to_stop_while_it_waits_for_another_it_stops(own_folder: Path) -> None:
    words = slow(own_folder, "told_waiting", 4.0)
    first = start(*words)
    wait_for(lambda: logged_steps() >= 1, first)
    second = start(*words)
    assert second.stderr is not None
    assert "waiting: private_told_waiting" in second.stderr.readline()
    second.send_signal(signal.SIGTERM)
    _, err = second.communicate(timeout=60)
    assert second.returncode == EXIT_RESUMABLE and "while it waited for private_told_waiting" in err
    first.kill()
    first.communicate()


def test_an_evaluation_resumes_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from runners import preemption

    words = [*MEASURED, *STEPS]
    assert retable(*words, "outputs=whole").code == 0
    asked = []

    def requested() -> bool:
        # Training asks before each of its 8 steps, FLOW before its one batch of base losses.
        asked.append(1)
        return len(asked) > 8 + 1 + 5

    with monkeypatch.context() as patched:
        patched.setattr(preemption, "requested", requested)
        stopped = retable(*words)
    assert stopped.code == EXIT_RESUMABLE and "in its evaluation" in stopped.error
    assert (folder_of() / "evaluation.jsonl").is_file() and (folder_of() / "method.json").is_file()
    (folder_of() / "checkpoints").rename("elsewhere")  # nothing of the training is needed any more
    again = retable(*words)
    assert again.code == 0, again.err
    assert "ended in an earlier attempt" in again.err
    assert outcome() == outcome("whole")
    assert not (folder_of() / "evaluation.jsonl").exists() and not (folder_of() / "progress.json").exists()


def test_what_was_prepared_before_training_is_not_prepared_again(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods.finetune.flow import Flow
    from runners import training

    def die(*_arguments: object, **_keywords: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "train", die)
        assert retable(*TINY, *STEPS).code == 130

    def measured_again(*_arguments: object) -> None:
        raise AssertionError("the base losses were measured again")

    monkeypatch.setattr(Flow, "_base_losses", measured_again)
    assert retable(*TINY, *STEPS).code == 0


# Damaged -------------------------------------------------------------------------------------------------------


def half_done(words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Interrupt a run after its checkpoints of steps 2 and 4."""
    from runners import training

    inner = training.save

    def save_then_die(engine: object, objective: object, folder: Path, done: training.Progress, keep: object) -> None:
        inner(engine, objective, folder, done, keep)  # type: ignore[arg-type]
        if done.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "save", save_then_die)
        assert retable(*words).code == 130
    found = sorted((folder_of() / "checkpoints").glob("step-*"))
    assert [path.name for path in found] == ["step-000002", "step-000004"]
    return found


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(monkeypatch: pytest.MonkeyPatch, damaged: int) -> None:
    words = [*TINY, *STEPS]
    assert retable(*words, "outputs=whole").code == 0
    found = half_done(words, monkeypatch)
    for path in found[-damaged:]:
        weights = path / "mp_rank_00_model_states.pt"
        weights.write_bytes(weights.read_bytes()[:-1])
    ended = retable(*words)
    assert ended.code == 0
    assert ended.err.count("is not used: mp_rank_00_model_states.pt is missing or truncated") >= damaged
    assert ("continuing from" in ended.err) == (damaged == 1)
    assert outcome() == outcome("whole")


def test_half_a_run_of_another_source_is_not_continued(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = write_plugin(own_folder / "plugin", "growing")
    words = [*TINY, *STEPS[:3], f"plugins={plugin}", "method=private/growing"]
    half_done(words, monkeypatch)
    (plugin / "growing.py").write_text(METHOD.replace("self.config.scale *", "2 * self.config.scale *"))
    forget_sources()
    del sys.modules["growing"]
    ended = retable(*words)
    assert ended.code == 0 and "its source has changed meanwhile, it starts anew" in ended.err
    assert "continuing from" not in ended.err
    assert len(list(Path("outputs/runs").glob("*.before-*/checkpoints/step-000004"))) == 1, "nothing is thrown away"


# Two at once ---------------------------------------------------------------------------------------------------


def test_of_two_commands_for_one_run_one_works_and_the_other_waits(own_folder: Path) -> None:
    words = slow(own_folder, "twice", 3.0)
    first = start(*words)
    wait_for(lambda: logged_steps() >= 1, first)
    refused = retable(*words, "busy=fail")
    assert refused.code == 1 and f"is worked on by process {first.pid} on {os.uname().nodename}, since" in refused.error
    second = start(*words)
    errors = [process.communicate()[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), errors
    assert f"waiting: {folder_of().name} is worked on by process {first.pid}" in errors[1]
    assert "is done" in errors[1] and "run private_twice" not in errors[1]
    assert logged_steps() == 8


def test_a_lock_of_a_killed_command_is_taken_over(own_folder: Path) -> None:
    words = slow(own_folder, "orphan", 0.2)
    first = start(*words)
    wait_for(lambda: logged_steps() >= 3, first)
    first.kill()
    first.communicate()
    again = retable(*words, "busy=fail")
    assert again.code == 0 and "continuing from" in again.err


def as_parent(words: list[str]) -> str:
    """The words of a run inside `model.from_run=[...]` of its child."""
    return ",".join(f'"{word}"' for word in words if not word.startswith(("tracker", "plugins")))


def test_children_started_at_once_train_their_parent_once(own_folder: Path) -> None:
    parent = as_parent(slow(own_folder, "shared", 0.1))
    words = ["model=hf", f"model.from_run=[{parent}]", "method=untrained", "evaluation=none", "tracker=none",
             f"plugins={own_folder / 'plugin'}"]  # fmt: skip
    children = [start(*words, f"seed={seed}") for seed in (1, 2)]
    errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], errors
    assert sum(error.count("run private_shared-mini_random") for error in errors) == 1
    assert sum("waiting: private_shared-mini_random" in error for error in errors) == 1


# Out of room ---------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands for the disk: what the system says of either differs by one number."""
    words = [*TINY, *STEPS]
    assert retable(*words, "outputs=whole").code == 0
    half_done(words, monkeypatch)
    full = subprocess.run(
        [SCRIPT, *words],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    assert full.returncode == 1, full.stderr
    assert "make room or choose another outputs=" in full.stderr.splitlines()[-1]
    assert "Traceback" not in full.stderr
    ended = retable(*words)
    assert ended.code == 0 and "continuing from" in ended.err and "step-000004" in ended.err
    assert outcome() == outcome("whole")


@pytest.mark.parametrize("outputs", ["/proc/retable", "file/below"])
def test_a_folder_that_cannot_be_written_is_one_line(outputs: str) -> None:
    Path("file").write_text("")
    for mode in ((), ("-m",)):
        ended = retable(*mode, *TINY, f"outputs={outputs}")
        assert ended.code == 1 and outputs.split("/")[1] in ended.error and "Traceback" not in ended.err


OUT_OF_MEMORY = {
    "gpu": "__import__('torch').OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB')",
    "cpu": "RuntimeError('[enforce fail] DefaultCPUAllocator: can\\'t allocate memory: you tried to allocate 8 bytes')",
}


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_out_of_memory_says_what_to_change(own_folder: Path, kind: str) -> None:
    method = METHOD.replace("return Loss", f"raise {OUT_OF_MEMORY[kind]}\n        return Loss")
    plugin = write_plugin(own_folder / "plugin", f"hungry_{kind}", method)
    ended = retable(*TINY, f"plugins={plugin}", f"method=private/hungry_{kind}")
    assert ended.code == 1
    assert ended.error.startswith("the GPU is out of memory" if kind == "gpu" else "the machine is out of memory")
    assert "lower training.micro_batch_size (64)" in ended.error and "engine=zero3" in ended.error
    assert "out of memory" in json.loads((folder_of() / "failure.json").read_text())["error"]


# Sweeps --------------------------------------------------------------------------------------------------------


def test_fail_fast_stops_at_the_first_failure(own_folder: Path) -> None:
    broken = METHOD.replace("return Loss", "raise RuntimeError('it broke')\n        return Loss")
    plugin = write_plugin(own_folder / "plugin", "broken", broken)
    words = ["-m", *TINY, f"plugins={plugin}", "method=private/broken,finetune/sft"]
    fast = start(*words, "fail_fast=true")
    _, err = fast.communicate()
    assert fast.returncode == 1 and "1 of 2 cells failed:" in err
    assert "1 cells were not started (fail_fast=true)" in err
    assert not list(Path("outputs").glob("runs/*/result.json"))
    kept_going = retable(*words)
    assert kept_going.code == 1 and len(list(Path("outputs").glob("runs/*/result.json"))) == 1


@pytest.mark.parametrize(
    ("keep", "checkpoints", "model"),
    [("none", [], False), ("last", [], True), ("best", [2], True), ("all", [2, 4, 6], True)],
)
def test_keep_says_what_stays_of_a_done_run(keep: str, checkpoints: list[int], model: bool) -> None:
    """The loss falls from step to step here: with `best_is=higher` the first checkpoint is the best."""
    words = [*TINY, *STEPS, "optimizer.lr=1e-2", "training.batch_size=64"]
    assert retable(*words, f"keep={keep}", "best_is=higher").code == 0
    found = sorted((folder_of() / "checkpoints").glob("step-*"))
    assert [int(path.name[-6:]) for path in found] == checkpoints
    assert (folder_of() / "model").is_dir() == model


def test_keep_best_of_an_unknown_metric_says_so_and_keeps_all() -> None:
    ended = retable(*TINY, *STEPS, "keep=best", "best_metric=train/los")
    assert ended.code == 0 and "checkpoints kept: none has the metric train/los" in ended.err
    assert len(list((folder_of() / "checkpoints").glob("step-*"))) == 2, "the last two, as during the run"
    assert retable(*TINY, "method=untrained", "keep=best", "outputs=untrained").code == 0


def test_an_interrupted_rerun_of_all_goes_on_without_it(own_folder: Path) -> None:
    words = ["-m", *TINY, "seed=1,2"]
    assert retable(*words).code == 0
    before = {path.parent.name: path.read_text() for path in Path("outputs/runs").glob("*/result.json")}
    ended = retable(*words, "rerun=all")
    assert ended.code == 0 and "rerun=all: 2 results put aside; if this is interrupted, go on without it" in ended.err
    aside = list(Path("outputs/runs").glob("*.before-*/result.json"))
    assert {path.read_text() for path in aside} == set(before.values())


def test_children_that_run_again_train_their_missing_parent_once(own_folder: Path) -> None:
    parent = as_parent(slow(own_folder, "again", 0.1))
    words = ["model=hf", f"model.from_run=[{parent}]", "method=untrained", "evaluation=none", "tracker=none",
             f"plugins={own_folder / 'plugin'}", "rerun=all"]  # fmt: skip
    children = [start(*words, f"seed={seed}") for seed in (1, 2)]
    errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], errors
    assert sum(error.count("run private_again-mini_random") for error in errors) == 1
    assert not list(Path("outputs/runs").glob("*.before-*"))


def test_a_failed_cell_leaves_no_engine_in_memory(own_folder: Path) -> None:
    """On a GPU the next cell would run out of memory too."""
    method = METHOD.replace(
        "return Loss",
        "import gc\n        import deepspeed\n"
        "        alive = sum(isinstance(item, deepspeed.DeepSpeedEngine) for item in gc.get_objects())\n"
        "        raise RuntimeError(f'{alive} engines are alive')\n        return Loss",
    )
    plugin = write_plugin(own_folder / "plugin", "crowded", method)
    before = sum(isinstance(item, deepspeed.DeepSpeedEngine) for item in gc.get_objects())
    ended = retable("-m", *TINY, f"plugins={plugin}", "method=private/crowded", "seed=1,2,3")
    listed = ended.err[ended.err.index("3 of 3 cells failed:") :]
    assert listed.count(f"RuntimeError: {before + 1} engines are alive") == 3


def test_signals_that_come_when_nothing_runs_are_nobodys() -> None:
    """The handlers are there only while a run goes on."""
    before = signal.getsignal(signal.SIGTERM)
    assert retable(*TINY).code == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_outside_the_main_thread_runs_without_handlers() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(retable(*TINY).code))
    thread.start()
    thread.join()
    assert codes == [0]
