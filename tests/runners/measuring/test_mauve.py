"""MAUVE in whole runs: from the texts that were written, embeddings kept for all runs, bad settings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evals import mauve
from evals.byte_tokenizer import byte_tokenizer
from runners.compose import run_spec
from runners.errors import UserError
from tests.command import TINY, retable

MODEL = [word for word in TINY if word.startswith(("model", "tracker"))]
ASKED = [*MODEL, "method=untrained", "dataset=preference_pairs", "evaluation=mauve", "evaluation.mauve.dataset.size=30",
         "evaluation.mauve.prompts=24", "evaluation.mauve.max_new_tokens=8", "evaluation.mauve.batch_size=8",
         "evaluation.mauve.clusters=4"]  # fmt: skip


@pytest.fixture
def embedding(tmp_path: Path) -> Path:
    """A random model with a tokenizer of bytes, saved."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    folder = tmp_path / "embedding"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def result_of(folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    (path,) = folder.glob("runs/*/result.json")
    records = [json.loads(line) for line in (path.parent / "samples" / "mauve.jsonl").read_text().splitlines()]
    return json.loads(path.read_text())["metrics"]["mauve"], records


def test_scores_are_those_of_the_texts_and_their_embeddings(embedding: Path, tmp_path: Path) -> None:
    ended = retable(*ASKED, f"evaluation.mauve.embedding={embedding}", f"outputs={tmp_path / 'out'}")
    assert ended.code == 0, ended.err
    metrics, records = result_of(tmp_path / "out")
    assert len(records) == 24 and len({record["prompt"] for record in records}) == 24
    model, tokenizer = LlamaForCausalLM.from_pretrained(embedding).eval(), byte_tokenizer()
    p, q = (
        mauve.hidden_states(model, tokenizer, [record["prompt"] + record[side] for record in records])
        for side in ("text", "written")
    )
    expected = mauve.quantised(p, q, clusters=4)
    assert metrics["score,none"] == pytest.approx(expected.mauve, abs=1e-6)
    assert metrics["frontier_integral,none"] == pytest.approx(expected.frontier_integral, abs=1e-6)
    assert metrics["score_star,none"] == pytest.approx(expected.mauve_star, abs=1e-6)


def test_the_data_are_embedded_once_for_all_runs(
    embedding: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[list[str]] = []
    hidden_states = mauve.hidden_states

    def counted(model: Any, tokenizer: Any, texts: Sequence[str], **settings: Any) -> mauve.Floats:
        embedded.append(list(texts))
        return hidden_states(model, tokenizer, texts, **settings)

    monkeypatch.setattr(mauve, "hidden_states", counted)
    for seed in (1, 2):
        words = [
            f"evaluation.mauve.embedding={embedding}",
            f"evaluation.mauve.seed={seed}",
            f"outputs={tmp_path / 'o'}",
        ]
        assert retable(*ASKED, *words).code == 0
    assert len(embedded) == 3 and embedded[0] != embedded[1] != embedded[2]


def test_without_a_model(tmp_path: Path) -> None:
    ended = retable(*ASKED, "evaluation.mauve.embedding=terms", f"outputs={tmp_path}")
    assert ended.code == 0, ended.err
    assert 0 < result_of(tmp_path)[0]["score,none"] < 1


@pytest.mark.usefixtures("composer")
def test_what_decides(embedding: Path) -> None:
    plain = run_spec([*ASKED, "evaluation.mauve.embedding=terms"])
    moved = embedding.rename(embedding.with_name("elsewhere"))
    by_model = run_spec([*ASKED, f"evaluation.mauve.embedding={moved}"]).identity
    moved.rename(embedding)
    assert by_model == run_spec([*ASKED, f"evaluation.mauve.embedding={embedding}"]).identity != plain.identity
    assert "mauve" not in run_spec([*MODEL, "evaluation=none"]).what_decides()["evaluation"]


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evaluation.mauve.clusters=1", "evaluation.mauve.clusters=1: should be greater than or equal to 2"),
        ("evaluation.mauve.scaling=0", "evaluation.mauve.scaling=0: should be greater than 0"),
        ("+evaluation.mauve.dataset.type=pair", "evaluation.mauve.dataset.type=pair: must be completion"),
        ("+evaluation.mauve.dataset.select=herding", "evaluation.mauve.dataset.select=herding: only training examples"),
        ("model=digits_cnn", "measures a language model (evaluation.mauve)"),
    ],
)
def test_bad_settings_are_one_line(word: str, message: str) -> None:
    words = [word, "dataset=images/digits", "method=finetune/sft"] if word.startswith("model") else [word]
    kept = [one for one in ASKED if not (word.startswith("model") and one.startswith("model"))]
    with pytest.raises(UserError) as caught:
        run_spec([*kept, *words])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    ended = retable(*ASKED, f"evaluation.mauve.embedding={tmp_path}/none", f"outputs={tmp_path}")
    assert ended.code == 1 and f"evaluation.mauve.embedding={tmp_path}/none: cannot be loaded" in ended.error
