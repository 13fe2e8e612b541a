"""Problems in whole runs: pass@k of the answers, turns of feedback, bad settings."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.rewards.graded import Graded
from runners.compose import run_spec
from runners.errors import UserError
from runners.measuring import problems
from tests.command import TINY, retable

MODEL = [word for word in TINY if word.startswith(("model", "tracker"))]
ASKED = [*MODEL, "method=untrained", "dataset=preference_pairs", "evaluation=problems", "evaluation.batch_size=16",
         "evaluation.problems.dataset.size=6", "evaluation.problems.max_new_tokens=4"]  # fmt: skip


def early(prompts: list[str], responses: list[str]) -> list[Graded]:
    """1 for answers that begin with an early letter; the feedback says with what they begin."""
    return [Graded(float(response[:1] < "P"), f"<{response[:1]}>") for response in responses]


REWARD = "evaluation.problems.rewards=[{function: tests.runners.measuring.test_problems.early}]"


def result_of(folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    (path,) = folder.glob("runs/*/result.json")
    records = [json.loads(line) for line in (path.parent / "samples" / "problems.jsonl").read_text().splitlines()]
    return json.loads(path.read_text())["metrics"]["problems"], records


def test_what_is_measured_of_the_answers(tmp_path: Path) -> None:
    """pass@k by all subsets of the answers that were written."""
    words = ["evaluation.problems.samples=5", "evaluation.problems.pass_at=[2,5]", REWARD]
    ended = retable(*ASKED, *words, f"outputs={tmp_path}")
    assert ended.code == 0, ended.err
    metrics, records = result_of(tmp_path)
    assert len(records) == 6
    scores = [record["scores"] for record in records]
    assert [[early([], [text])[0].score for text in record["samples"]] for record in records] == scores
    assert 0 < np.mean(scores) < 1, "else this shows nothing"
    for k in (1, 2, 5):
        by_hand = [np.mean([max(some) for some in itertools.combinations(own, k)]) for own in scores]
        assert metrics[f"pass_at_{k},none"] == pytest.approx(np.mean(by_hand))
    assert metrics["score,none"] == pytest.approx(np.mean(scores))
    different = [len(set(record["samples"])) / 5 for record in records]
    assert metrics["distinct_responses,none"] == pytest.approx(np.mean(different))
    assert 0 < metrics["entropy,none"] < 4 * np.log(300)
    assert metrics["length,none"] <= 4
    assert "solved_by_1,none" not in metrics


def test_turns_of_feedback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is not solved is asked again, with attempt and feedback in the prompt."""
    asked: list[list[str]] = []
    sampled = problems.sampled

    def noted(model: Any, prompts: Any, *rest: Any) -> Any:
        asked.append([rest[-1].decode(ids, skip_special_tokens=True) for ids in prompts])
        return sampled(model, prompts, *rest)

    monkeypatch.setattr(problems, "sampled", noted)
    words = ["evaluation.problems.samples=2", "evaluation.problems.pass_at=[1]", "evaluation.problems.turns=3", REWARD]
    words += ["evaluation.problems.greedy=false", "evaluation.problems.history=chain"]
    ended = retable(*ASKED, *words, f"outputs={tmp_path}")
    assert ended.code == 0, ended.err
    metrics, records = result_of(tmp_path)
    first, second, third = asked
    wrong = [
        f"{record['prompt']}{text}\n<{text[:1]}>\n"
        for record in records
        for text, score in zip(record["samples"], record["scores"], strict=True)
        if score < 1
    ]
    assert len(first) == 12
    assert second == wrong
    assert all(any(prompt.startswith(before) for before in second) for prompt in third)
    shares = [metrics[f"solved_by_{turn},none"] for turn in (1, 2, 3)]
    assert shares == sorted(shares)
    assert shares[0] == metrics["pass_at_1,none"] == 1 - len(second) / 12
    assert shares[1] == pytest.approx(1 - len(third) / 12)


def test_several_sets_are_tasks_of_their_own(tmp_path: Path) -> None:
    """What a set does not say is said by `problems`; alone, as one of several, a set gives the same numbers."""
    many = "{source: mini_world, type: problem, skill: addition, size: 4, split: test}"
    sets = f"evaluation.problem_sets={{first: {{}}, second: {{dataset: {many}, samples: 3, pass_at: [3]}}}}"
    ended = retable(*ASKED, REWARD, sets, f"outputs={tmp_path / 'several'}")
    assert ended.code == 0, ended.err
    alone = retable(*ASKED, REWARD, f"outputs={tmp_path / 'alone'}")
    assert alone.code == 0, alone.err
    (path,) = (tmp_path / "several").glob("runs/*/result.json")
    result = json.loads(path.read_text())
    assert result["metrics"]["first"] == result_of(tmp_path / "alone")[0]
    assert set(result["metrics"]) == {"first", "second"}
    assert "pass_at_3,none" in result["metrics"]["second"] and "pass_at_3,none" not in result["metrics"]["first"]
    assert result["samples"] == {
        "first": {"original": 6, "effective": 6},
        "second": {"original": 4, "effective": 4},
    }


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("evaluation.problem_sets={two words: {}}", r"evaluation\.problem_sets\.two words: must be named by letters"),
        ("evaluation.problem_sets={mauve: {}}", r"evaluation\.problem_sets\.mauve: must be named by"),
        ("evaluation.problem_sets={a: {sampels: 2}}", r"evaluation\.problem_sets\.a\.sampels=2: unknown key .*samples"),
        ("evaluation.problem_sets={a: {pass_at: [9]}}", r"evaluation\.problem_sets\.a\.pass_at=\[9\]"),
        (
            "evaluation.problem_sets={a: {dataset: {source: hub, path: x}}}",
            r"evaluation\.problem_sets\.a\.dataset\.type=completion: must be problem",
        ),
        ("evaluation.problems.pass_at=[9]", r"evaluation\.problems\.pass_at=\[9\]"),
        ("evaluation.problems.rewards=[]", r"evaluation\.problems\.rewards"),
        ("evaluation.problems.dataset.type=completion", r"evaluation\.problems\.dataset\.type=completion"),
        (
            "evaluation.problems.rewards=[{function: evals.rewards.exact_match.exakt}]",
            r"evaluation\.problems\.rewards\[0\]\.function=evals\.rewards\.exact_match\.exakt",
        ),
        (
            "evaluation.problems.rewards=[{function: evals.rewards.exact_match.exact, options: {afer: x}}]",
            r"evaluation\.problems\.rewards\[0\]\.options\.afer: .* it has after, first_line",
        ),
        (
            "evaluation.problems.rewards=[{function: evals.rewards.exact_match.exact, weight: heavy}]",
            r"evaluation\.problems\.rewards\[0\]\.weight=heavy",
        ),
        ("evaluation.problems.turns=0", r"evaluation\.problems\.turns"),
    ],
)
def test_bad_settings_are_told_before_anything_starts(word: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_spec([*ASKED, word])


def test_a_bad_template_is_told(tmp_path: Path) -> None:
    ended = retable(*ASKED, "evaluation.problems.feedback_template='{prompt}'", f"outputs={tmp_path}")
    assert ended.code != 0
    assert "evaluation.problems.feedback_template" in ended.err
