"""Evaluation that was interrupted, or done by several ranks, measures exactly what a straight one of one rank does."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evals.harness import Stopped, TaskRequest, evaluate
from evals.task_index import task_folders
from tests.evals.tiny import after, byte_tokenizer, evaluate_all, note_forwards, tiny_llama, write_tasks

ROOT = Path(__file__).parents[2]


class Killed(Exception):
    pass


def kill() -> None:
    raise Killed


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("resume") / "tasks")


@pytest.fixture
def llama():
    return tiny_llama()


@pytest.fixture(scope="module")
def straight(tasks, tmp_path_factory):
    """A straight evaluation, the journal it leaves, and the shapes of its forward passes."""
    model = tiny_llama()
    shapes = note_forwards(model)
    journal = tmp_path_factory.mktemp("straight") / "journal.jsonl"
    return evaluate_all(tasks, model, journal=journal), journal, shapes


def test_every_kind_of_request_is_there(straight):
    result, journal, _ = straight
    assert {type(sample["resps"][0][0]) for sample in result.samples["letters"]} == {list}
    assert {type(sample["resps"][0][0]) for sample in result.samples["texts"]} == {float}
    answers = [answer for sample in result.samples["sampled"] for answer in sample["resps"][0]]
    assert len(answers) == 24 and len(set(answers)) > 12
    # Several batches, so that there is something to interrupt; and cut prompts, so that their count can be lost.
    assert len(journal.read_bytes().splitlines()) > 20
    assert {task for task, count in result.cut_prompts.items() if count} == {"mini_world_word_problems"}


def test_a_journal_changes_nothing(straight, tasks, llama):
    assert evaluate_all(tasks, llama) == straight[0]


def test_killed_after_every_batch(straight, tasks, llama, tmp_path):
    shapes = note_forwards(llama)
    journal = tmp_path / "journal.jsonl"
    batches = len(straight[1].read_bytes().splitlines()) - 1
    for lives in range(1, batches + 2):  # the last finds all of them
        # The state of the generators is another one in each life.
        torch.manual_seed(lives)
        try:
            result = evaluate_all(tasks, llama, journal=journal, on_progress=after(1, kill))
        except Killed:
            assert lives <= batches
    assert result == straight[0]
    assert journal.read_bytes() == straight[1].read_bytes()
    assert shapes == straight[2]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.77, 0.999])
def test_killed_while_writing(straight, tasks, llama, tmp_path, share):
    whole = straight[1].read_bytes()
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(whole[: int(share * len(whole))])
    shapes = note_forwards(llama)
    assert evaluate_all(tasks, llama, journal=journal) == straight[0]
    assert journal.read_bytes() == whole
    assert 0 < len(shapes) <= len(straight[2])


@pytest.mark.parametrize("tail", [b"\0\0\0\n", b'{"key": "half", "answ\n', b'{"key": "half"}\n', b"\xff"])
def test_a_damaged_end_is_cut_off(straight, tasks, llama, tmp_path, tail):
    whole = straight[1].read_bytes()
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(whole + tail)
    assert evaluate_all(tasks, llama, journal=journal) == straight[0]
    assert journal.read_bytes() == whole


def test_all_from_the_journal(straight, tasks, tmp_path):
    """No forward pass is made: another model with the same fingerprint gets the answers of the first."""
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(straight[1].read_bytes())
    other = tiny_llama(seed=1)
    shapes = note_forwards(other)
    reports = []
    result = evaluate_all(tasks, other, journal=journal, on_progress=lambda *report: reports.append(report))
    assert result == straight[0]
    assert shapes == []
    assert len(reports) == 5 and all(done == total for done, total in reports)


@pytest.mark.parametrize("changed", [{"fingerprint": "other"}, {"max_length": 41}, {"seed": 6}, {"batch_size": 4}])
def test_answers_of_other_settings_are_not_taken(straight, tasks, tmp_path, changed, caplog):
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(straight[1].read_bytes())
    other = tiny_llama(seed=1)
    assert evaluate_all(tasks, other, journal=journal, **changed) == evaluate_all(tasks, other, **changed)
    replaced = f"{journal} is not of this evaluation and is replaced"
    assert (replaced in caplog.messages) == bool(changed.keys() & {"fingerprint", "max_length"})


def test_a_journal_needs_a_fingerprint(tasks, llama, tmp_path):
    with pytest.raises(ValueError, match=r"^fingerprint must say whose answers the journal keeps, got none$"):
        evaluate_all(tasks, llama, journal=tmp_path / "journal.jsonl", fingerprint="")


def test_stopped_and_resumed(straight, tasks, llama, tmp_path):
    journal = tmp_path / "journal.jsonl"
    asked = iter([False] * 3)
    with pytest.raises(Stopped, match=r"^with 3 of \d+ batches done$"):
        evaluate_all(tasks, llama, journal=journal, should_stop=lambda: next(asked, True))
    assert len(journal.read_bytes().splitlines()) == 1 + 3
    with pytest.raises(Stopped, match=r"^with 3 of \d+ batches done$"):
        evaluate_all(tasks, llama, journal=journal, should_stop=lambda: True)
    assert evaluate_all(tasks, llama, journal=journal) == straight[0]
    # What is done needs no stopping.
    assert evaluate_all(tasks, llama, journal=journal, should_stop=lambda: True) == straight[0]


def test_progress(tasks, llama):
    reports = []
    evaluate_all(tasks, llama, on_progress=lambda *report: reports.append(report))
    totals = [total for done, total in reports if done == 0]
    assert len(totals) == 5
    assert reports == [(done, total) for total in totals for done in range(total + 1)]


@pytest.mark.parametrize("name", ["mini_world_reverse", "letters", "texts", "mini_world_word_problems"])
def test_same_as_plain_lm_eval(llama, tasks, name):
    """In the same forward passes: the batches are those that lm-eval makes itself."""
    shapes = note_forwards(llama)
    ours = evaluate(
        llama, byte_tokenizer(), [TaskRequest(name, limit=7)],
        batch_size=3, seed=0, max_length=64, include_path=tasks, progress=False,
    ).metrics[name]  # fmt: skip
    our_shapes = shapes[:]
    shapes.clear()
    theirs = simple_evaluate(
        HFLM(pretrained=llama, tokenizer=byte_tokenizer(), batch_size=3, max_length=64),
        tasks=[name], limit=7, bootstrap_iters=0, random_seed=0,
        task_manager=TaskManager(include_path=list(task_folders([name], tasks)), include_defaults=False),
    )["results"][name]  # fmt: skip
    values = {key: value for key, value in ours.items() if "_stderr" not in key}
    assert values and values == pytest.approx({key: theirs[key] for key in values}, rel=1e-6)
    if name != "texts":  # whose windows lm-eval takes in the order of the texts, not longest first
        assert our_shapes == shapes


# Ranks ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two ranks reported before rank 0 was killed, and the folder with the journal they left."""
    folder = tmp_path_factory.mktemp("ranks")
    write_tasks(folder / "tasks")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.evals.tiny", str(rank), "2", str(folder)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == -signal.SIGKILL, printed[0]
    assert processes[1].returncode != 0, printed[1]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)], folder


def test_two_ranks_measure_what_one_does(two_ranks, straight):
    reports, _ = two_ranks
    for report in reports:
        assert report["straight"] == report["lockstep"] == dataclasses.asdict(straight[0])


def test_two_ranks_share_the_work(two_ranks, straight):
    reports, _ = two_ranks
    forwards = [report["forwards"] for report in reports]
    assert sum(forwards) == len(straight[2])
    assert max(forwards) < 0.75 * sum(forwards)


def test_in_lockstep_all_make_the_same_number_of_forward_passes(two_ranks):
    first, second = (report["lockstep_forwards"] for report in two_ranks[0])
    assert first == second


def test_all_stop_when_one_must(two_ranks):
    assert [report["stopped"] for report in two_ranks[0]] == ["with 6 of 7 batches done"] * 2


def test_all_fail_when_one_does(two_ranks):
    """And none waits for it."""
    assert [report["failed"] for report in two_ranks[0]] == [
        "RuntimeError(\"evaluation failed on rank 1: ZeroDivisionError('on purpose')\")",
        "ZeroDivisionError('on purpose')",
    ]


def test_ranks_with_other_requests_are_refused(two_ranks):
    assert {report["different"] for report in two_ranks[0]} == {
        "evaluation: the ranks must have the same requests, but they differ"
    }


def test_killed_with_two_ranks_and_resumed_with_one(two_ranks, straight, llama):
    _, folder = two_ranks
    journal = folder / "journal.jsonl"
    kept = journal.read_bytes()
    assert 1 + 6 + 8 <= len(kept.splitlines()) < len(straight[1].read_bytes().splitlines())
    shapes = note_forwards(llama)
    result = evaluate_all(folder / "tasks", llama, journal=journal)
    assert dataclasses.asdict(result) == dataclasses.asdict(straight[0])
    assert journal.read_bytes().startswith(kept)
    assert 0 < len(shapes) < len(straight[2])
