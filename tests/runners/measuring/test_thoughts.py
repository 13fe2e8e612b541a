"""What thoughts add to the likelihood of completions, in whole runs: by the texts, without any, bad settings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoModelForCausalLM

from evals.byte_tokenizer import byte_tokenizer
from runners.compose import run_spec
from runners.errors import UserError
from tests.command import TINY, retable

MODEL = [word for word in TINY if word.startswith(("model", "tracker"))]
ASKED = [*MODEL, "method=finetune/sft", "dataset=problem_addition_text", "evaluation=mini_thoughts", "training.steps=1",
         "evaluation.thoughts.dataset.size=5", "evaluation.thoughts.samples=3", "evaluation.thoughts.batch_size=4",
         "evaluation.thoughts.max_new_tokens=4"]  # fmt: skip


def result_of(folder: Path) -> tuple[dict[str, float], list[dict[str, Any]], Path]:
    (path,) = folder.glob("runs/*/result.json")
    records = [json.loads(line) for line in (path.parent / "samples" / "thoughts.jsonl").read_text().splitlines()]
    return json.loads(path.read_text())["metrics"]["thoughts"], records, path.parent / "model"


def test_metrics_are_those_of_the_texts(tmp_path: Path) -> None:
    """By the saved model, one text in one pass. Thoughts are those of the record."""
    ended = retable(*ASKED, f"outputs={tmp_path}")
    assert ended.code == 0, ended.err
    metrics, records, folder = result_of(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), byte_tokenizer()

    def scored(before: str, completion: str) -> tuple[float, bool]:
        ids, then = tokenizer(before)["input_ids"], [*tokenizer(completion, add_special_tokens=False)["input_ids"]]
        then.append(tokenizer.eos_token_id)
        with torch.no_grad():
            logps = model(torch.tensor([[*ids, *then]])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        found = logps[torch.arange(len(then)), torch.tensor(then)].sum().item()
        return -found, logps.argmax(-1).tolist() == then

    assert len(records) == 5 and all(len(record["thoughts"]) == 3 for record in records)
    bare = [scored(record["prompt"], record["completion"])[0] for record in records]
    assert [record["nll_without"] for record in records] == pytest.approx(bare, abs=1e-3)
    assert metrics["nll_without,none"] == pytest.approx(np.mean(bare), abs=1e-3)
    nll = np.array([record["nlls"] for record in records])
    assert metrics["nll,none"] == pytest.approx(nll.mean(), abs=1e-6)
    assert metrics["nll_mixture,none"] == pytest.approx(np.mean(-np.log(np.exp(-nll).mean(1))), abs=1e-6)
    assert metrics["nll_mixture,none"] <= metrics["nll,none"]
    assert metrics["gain,none"] == pytest.approx(np.mean(bare) - nll.mean(), abs=1e-3)
    for record in records:
        for thought, own in zip(record["thoughts"], record["nlls"], strict=True):
            assert thought.endswith("]") and thought.count("]") == 1, "closed, once, before anything is scored"
            if thought.isascii():  # else bytes that are no text cannot be read back
                assert scored(f"{record['prompt']}[{thought}", record["completion"])[0] == pytest.approx(own, abs=1e-3)
    assert any(thought.isascii() for record in records for thought in record["thoughts"])
    assert 0 <= metrics["closed,none"] <= 1 and 1 <= metrics["length,none"] <= 5


def test_without_a_thought(tmp_path: Path) -> None:
    ended = retable(*ASKED, "evaluation.thoughts.samples=0", f"outputs={tmp_path}")
    assert ended.code == 0, ended.err
    metrics, records, _ = result_of(tmp_path)
    assert metrics["gain,none"] == 0 and metrics["nll,none"] == metrics["nll_without,none"]
    assert metrics["nll_mixture,none"] == pytest.approx(metrics["nll,none"])
    assert not any(name.startswith(("length", "closed")) for name in metrics) and "thoughts" not in records[0]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("evaluation.thoughts.samples=-1", r"evaluation\.thoughts\.samples=-1"),
        ("evaluation.thoughts.closing=''", r"evaluation\.thoughts\.closing"),
        ("evaluation.thoughts.documents=1", r"evaluation\.thoughts\.documents=1"),
        (
            "+evaluation.thoughts.dataset.type=problem",
            r"evaluation\.thoughts\.dataset\.type=problem: must be completion",
        ),
        ("evaluation.thoughts.dataset.skill=addtion", r"evaluation\.thoughts\.dataset"),
    ],
)
def test_settings_that_do_not_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    with (
        initialize_config_module(config_module="conf", version_base="1.3"),
        pytest.raises(UserError, match=told),
    ):
        run_spec([*ASKED, word])


def test_documents_that_leave_no_room(tmp_path: Path) -> None:
    ended = retable(*ASKED, "evaluation.max_length=12", f"outputs={tmp_path}")
    assert ended.code != 0 and "evaluation.thoughts.dataset: needs at least two" in ended.err
