"""`job=status`: what is said of each cell."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runners import lock, record
from runners.jobs.status import Line, duration, line_of, ranges, total
from runners.record import Recorder
from runners.sweep import check_all
from tests.command import UNTRAINED, retable, write_plugin
from tests.runs import write_checkpoint, write_done


@pytest.fixture
def words(composer: Path) -> list[str]:
    """What names the made-up experiment: rows plain (seed 0), sft and flow (seeds 1, 2)."""
    return [f"plugins={write_plugin(composer / 'plugin')}", "experiment=tried/table", "tracker=none"]


def shown(*words: str) -> list[str]:
    ended = retable(*words, "job=status")
    assert ended.code == 0, ended.err
    assert "\x1b" not in ended.out and max(map(len, ended.out.splitlines())) <= 100
    return [" ".join(line.split()) for line in ended.out.splitlines() if line.strip()]


def test_every_state(words: list[str]) -> None:
    ((_, (plain, sft1, sft2, flow1, flow2)),) = check_all(words)
    write_done(plain)
    record.write_json(write_done(sft1) / "result.json", {**(record.read_result(sft1.folder) or {}), "source": "old"})
    Recorder(sft2).open({})
    (sft2.folder / "run.log").write_text("Traceback:\n  the whole of it\nValueError: the last line\n\n")
    Recorder(sft2).failure(RuntimeError("it broke"))
    Recorder(flow1).open({})
    updated = (datetime.now(UTC) - timedelta(seconds=20)).strftime("%Y-%m-%dT%H:%M:%SZ")
    (flow1.folder / "progress.json").write_text(
        json.dumps({"phase": "training", "done": 120, "total": 300, "seconds_left": 260.0, "updated": updated})
    )
    Recorder(flow2).open({})
    with lock.held(flow1.folder, patience=0):
        lines = shown(*words)
        assert lines == shown("-m", *words)  # with and without -m
    assert lines[0] == "tried/table, scale mini"
    text = " ".join(lines)
    assert "plain 0 done sft 2 failed RuntimeError: it broke ValueError: the last line" in text
    assert f"log of sft seed 2: {sft2.folder}/run.log" in lines
    assert "1 stale the source of its method, evaluation or engine has changed; rerun=stale" in text
    assert "flow 1 running training 120 of 300, about 4 min left; process" in text
    assert "2 missing interrupted; starts anew" in text
    assert lines[-1] == (
        "5 cells: 1 done, 1 running, 1 failed, 1 stale, 1 missing; about 4 min left for what is running"
    )


def test_done_and_missing_cells_are_counted(composer: Path) -> None:
    words = [*UNTRAINED, "seed=range(1,31)"]
    ((_, specs),) = check_all(words)
    for spec in specs[:20]:
        write_done(spec)
    lines = shown("-m", *words)
    assert "untrained 1-20 20 done" in lines and "21-30 10 missing" in lines
    assert lines[-1] == "30 cells: 20 done, 10 missing"


def test_where_an_interrupted_run_goes_on(composer: Path) -> None:
    ((_, (spec,)),) = check_all(list(UNTRAINED))
    assert line_of(spec) == Line("missing")
    Recorder(spec).open({})
    assert line_of(spec) == Line("missing", "interrupted; starts anew")
    write_checkpoint(spec.folder, 100)
    write_checkpoint(spec.folder, 250)
    write_checkpoint(spec.folder, 300, complete=False)
    assert line_of(spec) == Line("missing", "interrupted; resumes after step 250")
    (spec.folder / "method.json").write_text("{}")
    assert line_of(spec) == Line("missing", "interrupted; resumes with the evaluation")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"phase": "training", "done": null, "total": 3}'])
def test_progress_that_cannot_be_read_is_left_out(composer: Path, text: str) -> None:
    ((_, (spec,)),) = check_all(list(UNTRAINED))
    Recorder(spec).open({})
    (spec.folder / "progress.json").write_text(text)
    with lock.held(spec.folder, patience=0):
        line = line_of(spec)
    assert line.state == "running" and line.words.startswith("process ") and line.seconds_left is None


def test_old_news_are_called_so(composer: Path) -> None:
    ((_, (spec,)),) = check_all(list(UNTRAINED))
    Recorder(spec).open({})
    hour_ago = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 7200))
    noted = {"phase": "evaluation", "done": 1, "total": 2, "seconds_left": None, "updated": hour_ago}
    (spec.folder / "progress.json").write_text(json.dumps(noted))
    with lock.held(spec.folder, patience=0):
        assert line_of(spec).words.startswith("evaluation 1 of 2 (told 2.0 h ago); process")


def test_parents_that_are_not_done_are_listed(composer: Path) -> None:
    words = ["model=hf", "model.from_run=['model=mini_random','seed=5']", "method=untrained", "tracker=none"]
    ((_, (spec,)),) = check_all(words)
    assert spec.parent is not None
    lines = shown("-m", *words)
    after = lines[lines.index("Parents, which run first") :]
    assert any(line.startswith(f"{spec.parent.name} missing") for line in after)
    assert lines[-1] == "1 cell: 1 missing"
    write_done(spec.parent)
    assert "Parents, which run first" not in shown("-m", *words)


def test_nothing_heavy_is_imported(composer: Path) -> None:
    code = "import sys; from runners.main import main; main(); assert not {'torch', 'transformers'} & set(sys.modules)"
    command = [sys.executable, "-c", code, "-m", *UNTRAINED, "job=status"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 cell: 1 missing" in done.stdout, done.stderr


def test_seeds_in_short() -> None:
    assert ranges([3, 1, 2, 7, 9, 10]) == "1-3, 7, 9, 10"


@pytest.mark.parametrize(("seconds", "said"), [(0.0, "1 s"), (41.2, "42 s"), (240, "4 min"), (9000, "2.5 h")])
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_longest_of_what_is_running_is_told() -> None:
    lines = [Line("running", "", 30.0), Line("running", "", 600.0), Line("done")]
    assert total(lines) == "3 cells: 1 done, 2 running; about 10 min left for what is running"
