"""Answers of allowed actions: chances, entropy and the likeliest one against enumeration, whole runs, bad settings."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evals.number_game import actions, trajectories
from runners.compose import run_spec
from runners.errors import UserError
from runners.measuring import trajectories as measured
from runners.measuring.sampling import Prompt
from tests.command import TINY, retable
from tests.methods.mix.fakes import EOS, TOKENIZER, byte_llama
from tests.models import batches_of

PROBLEM = "1,3>3:"
HERE = "tests.runners.measuring.test_trajectories"
MODEL = [word for word in TINY if word.startswith(("model", "tracker"))]
ASKED = [*MODEL, "method=untrained", "dataset=preference_pairs", "evaluation=problems", "evaluation.batch_size=16",
         "evaluation.problems.dataset.skill=numbers", "evaluation.problems.dataset.size=6",
         "evaluation.problems.rewards=[{function: evals.number_game.reward}]",
         "evaluation.problems.environment=evals.number_game.actions"]  # fmt: skip


def sums_alone(examples: Any, values: Any, **_: Any) -> list[np.ndarray]:
    """As `sums_over_tokens`, of one process without a group."""
    batches = batches_of(examples, batch_size=len(examples), micro=len(examples), row_length=240).of_step(0)
    found = torch.zeros(len(examples), dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            (logps_K,) = values(batch)
            found[batch.example_S] = (
                torch.zeros(len(batch.example_S)).index_add(0, batch.sequence_K, logps_K).to(torch.float64)
            )
    return [found.numpy()]


def text_logp(model: Any, prompt: str, response: str, *, is_end: bool) -> float:
    """Of a response's tokens under a model."""
    before = TOKENIZER(prompt)["input_ids"]
    ids = TOKENIZER(response, add_special_tokens=False)["input_ids"] + ([EOS] if is_end else [])
    logits = model(input_ids=torch.tensor([[*before, *ids]])).logits[0]
    return float(logits.log_softmax(-1)[len(before) - 1 : -1][torch.arange(len(ids)), torch.tensor(ids)].sum())


def chances(model: Any, prompt: str, temperature: float) -> dict[str, float]:
    """Of all trajectories, one text at a time."""
    found = {}
    for taken, _ in trajectories(prompt):
        total = 0.0
        for at, action in enumerate(taken):
            allowed = actions(prompt, taken[:at])
            scores = torch.tensor([
                text_logp(
                    model, prompt + "".join(taken[:at]), text, is_end=not actions(prompt, [*taken[:at], text])
                )
                for text in allowed
            ])  # fmt: skip
            total += float((scores / temperature).log_softmax(0)[allowed.index(action)])
        found["".join(taken)] = float(np.exp(total))
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_trajectories_are_drawn_by_the_policy_over_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Shares of 3,000 answers, and the likeliest, against all trajectories there are; entropy is -log of a chance."""
    monkeypatch.setattr(measured, "sums_over_tokens", sums_alone)
    model = byte_llama(0)
    prompts = [Prompt(text, TOKENIZER(text)["input_ids"], "") for text in (PROBLEM, "2,3>6:")]
    settings = {
        "environment": "evals.number_game.actions",
        "dataset": {"add_eos": True},
        "max_steps": 4,
        "batch_size": 7,
    }
    policy = measured.Policy(model, "causal", prompts, settings, "evaluation.problems", TOKENIZER)

    def drawn(of: list[int], temperature: float) -> list[measured.Trajectory]:
        return policy.answers(of, temperature, 3, 240, "answers", lambda done, total: None)

    found = drawn([0] * 3000, temperature)
    exact = chances(model, PROBLEM, temperature)
    assert sum(exact.values()) == pytest.approx(1.0, abs=1e-5) and len(exact) > 3
    shares = Counter(one.text for one in found)
    assert set(shares) <= set(exact)
    for text, chance in exact.items():
        assert shares[text] / 3000 == pytest.approx(chance, abs=4.5 * (chance * (1 - chance) / 3000) ** 0.5 + 1e-3)
    mean = -sum(chance * np.log(chance) for chance in exact.values())
    assert np.mean([one.entropy for one in found]) == pytest.approx(mean, rel=0.02), "a step each: the same for all"
    for one in found[:5]:
        assert one.tokens == [*TOKENIZER(one.text, add_special_tokens=False)["input_ids"], EOS]
    greedy = drawn([0, 1], 0.0)
    plain = chances(model, PROBLEM, 1.0)
    assert greedy[0].text == max(plain, key=lambda text: plain[text])


def test_a_whole_run(tmp_path: Path) -> None:
    """Every answer of a model that knows nothing is one that the game allows, and is counted as others are."""
    words = ["evaluation.problems.samples=5", "evaluation.problems.pass_at=[5]"]
    ended = retable(*ASKED, *words, f"outputs={tmp_path}")
    assert ended.code == 0, ended.err
    (path,) = tmp_path.glob("runs/*/result.json")
    records = [json.loads(line) for line in (path.parent / "samples" / "problems.jsonl").read_text().splitlines()]
    found = json.loads(path.read_text())["metrics"]["problems"]
    for record in records:
        right = {"".join(taken): is_right for taken, is_right in trajectories(record["prompt"])}
        assert [float(right[text]) for text in record["samples"]] == record["scores"]
    assert found["pass_at_5,none"] == pytest.approx(np.mean([max(record["scores"]) for record in records]))
    assert found["finished,none"] == 1 and found["entropy,none"] > 0
    assert found["length,none"] == pytest.approx(
        np.mean([len(text) for record in records for text in record["samples"]])
    ), "a byte a token, EOS not counted"


def closed(prompt: str, taken: list[str]) -> list[str]:
    """Nothing is ever allowed."""
    return []


def test_an_environment_without_an_action(tmp_path: Path) -> None:
    words = [word for word in ASKED if "environment" not in word]
    ended = retable(*words, f"evaluation.problems.environment={HERE}.closed", f"outputs={tmp_path}")
    assert ended.code != 0
    assert f"evaluation.problems.environment={HERE}.closed: must allow an action at first" in ended.err


@pytest.mark.parametrize(("word", "message"), [
    ("evaluation.problems.environment=evals.number_game.acts", r"environment=evals\.number_game\.acts"),
    ("evaluation.problems.turns=2", r"turns must be 1, top_p 1 and stop null, got 2, 1\.0 and None"),
    ("evaluation.problems.top_p=0.9", r"turns must be 1, top_p 1 and stop null, got 1, 0\.9 and None"),
    ("evaluation.problems.max_steps=0", r"evaluation\.problems\.max_steps"),
])  # fmt: skip
@pytest.mark.usefixtures("composer")
def test_bad_settings_are_told_before_the_run(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_spec([*ASKED, word])


@pytest.mark.usefixtures("composer")
def test_what_is_allowed_decides_a_result() -> None:
    """The environment's module is one of those whose source a result depends on."""
    assert (
        "evals.number_game"
        in run_spec([*ASKED, "evaluation.problems.rewards=[{function: evals.rewards.exact_match.exact}]"]).sources
    )
