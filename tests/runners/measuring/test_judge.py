"""A judge at a local endpoint compares answers: whole runs, what is kept when it goes down, bad settings."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from evals.judge import TEMPLATE, length_controlled
from runners.compose import run_spec
from runners.errors import UserError
from tests.command import TINY, retable
from tests.evals.judge_server import Server

MODEL = [word for word in TINY if word.startswith(("model", "tracker"))]
JUDGED = [*MODEL, "method=untrained", "dataset=preference_pairs", "evaluation=judge",
          "evaluation.judge.dataset.size=12", "evaluation.judge.prompts=9", "evaluation.judge.max_new_tokens=8",
          "evaluation.judge.temperature=1", "evaluation.judge.batch_size=4", "evaluation.judge.retries=0"]  # fmt: skip
ANSWERS = re.compile(r"\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n\n\[End\]", re.DOTALL)


def likes_long(question: str) -> str:
    """The longer answer is better; of answers of one length the first, whichever it is."""
    first, second = ANSWERS.search(question).groups()  # type: ignore[union-attr]
    return "[[A]]" if len(first) >= len(second) else "[[B]]"


@pytest.fixture
def server() -> Iterator[Server]:
    built = Server(likes_long)
    yield built
    built.close()


def result_of(folder: Path) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, Any]]:
    (path,) = folder.glob("runs/*/result.json")
    result = json.loads(path.read_text())
    records = [json.loads(line) for line in (path.parent / "samples" / "judge.jsonl").read_text().splitlines()]
    return result["metrics"]["judge"], records, result


@pytest.mark.parametrize("baseline", ["dataset", "start"])
def test_verdicts_become_a_win_rate(server, tmp_path, baseline):
    ended = retable(*JUDGED, f"evaluation.judge.endpoint={server.url}", f"evaluation.judge.baseline={baseline}",
                    f"outputs={tmp_path}")  # fmt: skip
    assert ended.code == 0, ended.err
    metrics, records, result = result_of(tmp_path)
    assert len(records) == 9 and len(server.requests) == len({r["messages"][0]["content"] for r in server.requests})
    own, other = (np.array([len(record[name]) for record in records], float) for name in ("answer", "baseline"))
    rates = (np.sign(own - other) + 1) / 2  # of equal lengths each order has its own winner
    assert [np.mean(record["preferences"]) for record in records] == rates.tolist()
    controlled = length_controlled(rates, own, other)
    assert metrics == pytest.approx({
        "win_rate,none": rates.mean(), "win_rate_stderr,none": rates.std(ddof=1) / 3,
        "length_controlled_win_rate,none": controlled.mean,
        "length_controlled_win_rate_stderr,none": controlled.standard_error,
        "length,none": own.mean(), "length_stderr,none": own.std(ddof=1) / 3,
        "baseline_length,none": other.mean(), "baseline_length_stderr,none": other.std(ddof=1) / 3,
        "unreadable,none": 0.0, "unreadable_stderr,none": 0.0,
    })  # fmt: skip
    assert result["samples"]["judge"] == {"original": 12, "effective": 9}
    prompt, answer, theirs = (records[0][name] for name in ("prompt", "answer", "baseline"))
    assert re.fullmatch(r"next \d{5}:", prompt)
    assert (re.fullmatch(r"\d{5}\.*", theirs) is not None) is (baseline == "dataset")
    questions = [request["messages"][0]["content"] for request in server.requests]
    assert TEMPLATE.format(prompt=prompt, first=answer, second=theirs) in questions
    assert TEMPLATE.format(prompt=prompt, first=theirs, second=answer) in questions


def test_what_was_answered_is_not_asked_again(server, tmp_path):
    words = [*JUDGED, f"evaluation.judge.endpoint={server.url}", f"outputs={tmp_path}",
             "evaluation.judge.connections=1", "evaluation.judge.both_orders=false"]  # fmt: skip
    server.statuses = [200] * 5 + [503]
    ended = retable(*words)
    assert ended.code == 1 and ended.error == (
        f"evaluation.judge.endpoint={server.url}: {server.url}: no reply in 1 attempts: status 503"
    )
    kept = len(server.requests)
    assert not list(tmp_path.glob("runs/*/result.json"))
    again = retable(*words)
    assert again.code == 0, again.err
    _, records, _ = result_of(tmp_path)
    assert kept >= 6 and len(server.requests) - kept == 9 - (kept - 1), "only one was not answered"
    assert len(records) == 9


def test_replies_without_a_verdict_count_for_nothing(tmp_path):
    def sometimes(question: str) -> str:
        return "I cannot tell." if "next 0" in question or "next 1" in question else likes_long(question)

    server = Server(sometimes)
    try:
        words = [*JUDGED, f"evaluation.judge.endpoint={server.url}", "evaluation.judge.prompts=null",
                 f"outputs={tmp_path / 'some'}"]  # fmt: skip
        assert retable(*words).code == 0
        metrics, records, result = result_of(tmp_path / "some")
        silent = sum(not record["preferences"] for record in records)
        assert 0 < silent < 10 and metrics["unreadable,none"] == pytest.approx(silent / 12)
        assert result["samples"]["judge"] == {"original": 12, "effective": 12 - silent}
        server.answer = lambda question: "Hello!"
        ended = retable(*words[:-1], f"outputs={tmp_path / 'none'}")
        assert ended.code == 1
        assert ended.error == "evaluation.judge.model=judge: gives no verdicts; its first reply was 'Hello!'"
    finally:
        server.close()


@pytest.mark.parametrize(("words", "message"), [
    (["evaluation.judge.api_key_env=NO_SUCH_KEY"], "evaluation.judge.api_key_env=NO_SUCH_KEY: the environment "),
    (["evaluation.judge.dataset.skill=preference_pairs"], "evaluation.judge.dataset.completion='{answer}': the data "),
    (["evaluation.judge.max_new_tokens=4090"], "evaluation.judge.dataset: needs at least two prompts that fit into "),
])  # fmt: skip
def test_bad_data_are_told_before_anything_is_trained(tmp_path, monkeypatch, words, message):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    trained = [word for word in JUDGED if word != "method=untrained"]
    ended = retable(*trained, "method=preference/dpo", "training.steps=1", *words, f"outputs={tmp_path}")
    assert ended.code == 1 and message in ended.error and not list(tmp_path.glob("runs/*/model"))


@pytest.fixture
def composer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="conf", version_base="1.3"):
        yield


@pytest.mark.parametrize(("word", "message"), [
    ("evaluation.judge.endpoint=localhost:8000", "evaluation.judge.endpoint=localhost:8000: must begin with http"),
    ("evaluation.judge.template=Which?", "evaluation.judge.template: must have {prompt}, {first} and {second}"),
    ("evaluation.judge.template='{prompt} {first} {second} {third}'", "got first, prompt, second, third"),
    ("+evaluation.judge.dataset.type=pair", "evaluation.judge.dataset.type=pair: must be completion"),
    ("+evaluation.judge.dataset.layout=dialogue", "evaluation.judge.dataset.layout=dialogue: must be columns"),
    ("evaluation.judge.baseline=gpt", "evaluation.judge.baseline=gpt: should be 'dataset' or 'start'"),
    ("evaluation.judge.connections=0", "evaluation.judge.connections=0: should be greater than 0"),
])  # fmt: skip
def test_bad_settings_are_one_line(composer, word, message):
    with pytest.raises(UserError) as caught:
        run_spec([*JUDGED, word])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_how_the_judge_is_reached_is_no_part_of_the_identity(composer):
    plain = run_spec(JUDGED)
    same = ["endpoint=https://other/v1", "api_key_env=KEY", "connections=2", "timeout=3.0", "retries=9"]
    assert run_spec([*JUDGED, *(f"evaluation.judge.{word}" for word in same)]).identity == plain.identity
    assert run_spec([*JUDGED, "evaluation.judge.model=other"]).identity != plain.identity
    assert "judge" not in run_spec([*MODEL, "evaluation=none"]).what_decides()["evaluation"]
