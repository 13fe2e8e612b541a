"""`model.reference_run`: the reference of a preference method is the final model of another run, here a soup.

DPO whose reference is the mean of two supervised runs, and which starts from one of them, is SALSA's set-up (arXiv
2411.01798) without its reinforcement learning.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from evals import preference_world
from evals.byte_tokenizer import byte_tokenizer
from runners.compose import run_spec
from tests.command import TINY, retable

SIZES = [word for word in TINY if word.startswith("model.architecture.")]
TRAINED = ["method=finetune/sft", "dataset=preference_demonstrations", "dataset.size=32", "training.steps=3",
           "training.batch_size=8", "training.warmup_ratio=0", "optimizer.lr=3e-2", "evaluation=none"]  # fmt: skip
SFT = ["model=mini_random", *SIZES, "model.init_seed=3", *TRAINED]  # seeds differ in their data alone
# The mean of two of them. Its words are inside a list of the run that it is the reference of.
SOUP = ["model=mini", "model.from_run=null", "method=merging/model_soup", "evaluation=none",
        f"model.from_runs=[{[*SFT, 'seed=1']},{[*SFT, 'seed=2']}]"]  # fmt: skip
PAIRS = 16


def listed(words: list[str]) -> str:
    """Words as one value, in which they may hold quotes of their own."""
    return f"[{','.join(json.dumps(word) for word in words)}]"


def dpo(*words: str, reference: list[str] | None = SOUP) -> list[str]:
    """DPO on all pairs in every step, from the first of the supervised runs."""
    own = ["model=mini", f"model.from_run={listed([*SFT, 'seed=1'])}", "method=preference/dpo", "method.beta=1",
           "dataset=preference_pairs", f"dataset.size={PAIRS}", "training.steps=2", f"training.batch_size={PAIRS}",
           "training.micro_batch_size=5", "training.log_every=1", "training.warmup_ratio=0", "optimizer.lr=1e-3",
           "evaluation=none", "tracker=none"]  # fmt: skip
    return [*own, *([f"model.reference_run={listed(reference)}"] if reference else []), *words]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of all runs of these tests: parents are trained once."""
    return f"outputs={tmp_path_factory.mktemp('outputs')}"


def run_of(*words: str) -> Path:
    """Do a run; returns its folder."""
    ended = retable(*words)
    assert ended.code == 0, ended.err
    (line,) = (line for line in ended.out.splitlines() if line.endswith("result.json"))
    return Path(line.split()[-1]).parent


def losses(folder: Path) -> list[float]:
    """The training loss of every step."""
    return [json.loads(line)["train/loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def model_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "model").eval()


def response_logps(model: Any, prompt: str, response: str) -> float:
    """log p(response and EOS | prompt): one sequence, by transformers alone."""
    tokenizer = byte_tokenizer()
    begin = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([[*tokenizer(prompt + response)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        logps = model(ids).logits[0].double().log_softmax(-1)
    return float(logps[begin - 1 : -1].gather(-1, ids[0, begin:, None]).sum())


def first_loss(policy: Any, reference: Any) -> float:
    """DPO's loss (beta 1) before the first step, over all pairs of seed 1, from its formula."""
    total = 0.0
    for row in preference_world.rows("preference_pairs", "train", PAIRS, 1):
        ratios = [
            response_logps(policy, row["prompt"], row[side]) - response_logps(reference, row["prompt"], row[side])
            for side in ("chosen", "rejected")
        ]
        total += math.log1p(math.exp(ratios[1] - ratios[0]))
    return total / PAIRS


def test_the_reference_is_the_soup(shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log-probabilities are those of the mean of the two models; cached and live come to the same."""
    monkeypatch.chdir(tmp_path)
    first, second = (run_of(*SFT, f"seed={seed}", shared, "tracker=none") for seed in (1, 2))
    cached = run_of(*dpo(shared))
    soup = run_of(*SOUP, shared, "tracker=none")
    weights = [model_of(folder).state_dict() for folder in (first, second, soup)]
    for name, mean in weights[2].items():
        torch.testing.assert_close(mean, (weights[0][name] + weights[1][name]) / 2)
    assert any((weights[0][name] - weights[1][name]).abs().max() > 1e-3 for name in weights[0])

    expected = first_loss(model_of(first), model_of(soup))
    assert abs(expected - math.log(2)) > 1e-2, "the policy does not start at this reference"
    assert losses(cached)[0] == pytest.approx(expected, rel=1e-5)
    live = run_of(*dpo(shared, "method.reference=live"))
    assert live != cached and losses(live) == pytest.approx(losses(cached), rel=1e-4)
    plain = run_of(*dpo(shared, reference=None))
    assert losses(plain)[0] == pytest.approx(math.log(2), rel=1e-5), "its reference is what it starts from"


def test_a_reference_with_another_tokenizer_is_refused(
    shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["next"])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained("other")
    tokenizer.save_pretrained("other")
    other = ["model=hf", f"model.id={tmp_path / 'other'}", *TRAINED, "training.steps=1"]
    ended = retable(*dpo(shared, reference=other))
    assert ended.code == 1 and "Traceback" not in ended.err
    assert ended.error.startswith("model.reference_run=") and ended.error.endswith(
        "must have the tokenizer of the model that is trained; it would see other tokens"
    )


@pytest.mark.usefixtures("composer")
def test_the_identity_is_also_the_references() -> None:
    """Of what the reference is, not of how it was named; and its source is part of the run's."""
    plain = run_spec(dpo(reference=None))
    soup, other = run_spec(dpo()), run_spec(dpo(reference=[*SFT, "seed=2"]))
    again = run_spec(dpo(reference=["seed=2", *SFT]))
    assert len({spec.identity for spec in (plain, soup, other)}) == 3
    assert again.identity == other.identity
    assert soup.reference is not None and soup.reference.choices["method"] == "merging/model_soup"
    assert soup.reference in soup.needed and soup.source != plain.source
    assert plain.reference is None
