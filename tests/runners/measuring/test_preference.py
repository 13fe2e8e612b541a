"""What a model prefers and writes: whole runs against direct computation, limits, several processes, bad settings."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from evals import preference_world
from evals.byte_tokenizer import byte_tokenizer
from methods.examples import Examples
from methods.generation import Sampling, generate
from methods.kinds import adapter
from runners import processes
from runners.compose import RunSpec, run_spec
from runners.errors import UserError
from runners.measuring.comparison import sums_over_tokens
from runners.measuring.preference import held_out, kl_and_entropy
from runners.models import load_model
from tests.command import TINY, forget_sources, retable
from tests.models import tiny_llama

MODEL = [word for word in TINY if word.startswith(("model", "tracker"))]
# 20 pairs; 7 prompts with 3 samples each, drawn 5 at a time: two processes get unequal shares.
MEASURED = [
    "dataset=preference_pairs",
    "dataset.size=24",
    "evaluation=mini_preference",
    "evaluation.preference.dataset.size=20",
    "evaluation.preference.prompts=7",
    "evaluation.preference.samples_per_prompt=3",
    "evaluation.preference.max_new_tokens=8",
    "evaluation.preference.batch_size=5",
    "evaluation.preference.reward.function=private_rewards.length",
]
TRAINED = [*MODEL, *MEASURED, "method=preference/dpo", "training.steps=3", "training.batch_size=6",
           "training.warmup_ratio=0", "optimizer.lr=3e-2", "optimizer.eps=1e-3"]  # fmt: skip
UNTRAINED = [*MODEL, *MEASURED, "method=untrained"]
# A random model never writes digits: this world's own reward would be 0 throughout.
REWARDS = '''"""A private reward."""


def length(prompts, responses):
    """Characters."""
    return [float(len(response)) for response in responses]


def refused(prompts, responses):
    """Raises."""
    raise ValueError("must be asked for something else")
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "private_rewards.py").write_text(REWARDS)
    forget_sources()
    yield f"plugins={folder}"
    forget_sources()


def measured(words: list[str], folder: Path) -> Path:
    """Run it in a folder of its own; returns the run's folder."""
    ended = retable(*words, f"outputs={folder}")
    assert ended.code == 0, ended.err
    return only_run(folder)


def only_run(folder: Path) -> Path:
    (found,) = (path.parent for path in folder.glob("runs/*/result.json"))
    return found


def metrics_of(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "result.json").read_text())["metrics"]["preference"]
    return found


def samples_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples" / "preference.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(plugin: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measured([*TRAINED, plugin], tmp_path_factory.mktemp("trained"))


@pytest.fixture
def composer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="conf", version_base="1.3"):
        yield


# What is measured, computed directly ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(trained: Path) -> tuple[nn.Module, nn.Module]:
    """Of the trained run: its final model, and the one that its training started from."""
    import yaml

    settings = yaml.safe_load((trained / "config.yaml").read_text())["model"]
    return AutoModelForCausalLM.from_pretrained(trained / "model").eval(), load_model(settings, None, 259).eval()


def distributions(model: nn.Module, prompt: list[int], response: list[int]) -> Tensor:
    """Log-probabilities of all tokens at each place of a response, alone in its batch."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].double()
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def logp(model: nn.Module, prompt: list[int], response: list[int]) -> float:
    return float(distributions(model, prompt, response)[torch.arange(len(response)), response].sum())


def test_pairs_are_what_the_two_models_say_of_whole_responses(trained, models):
    tokenizer = byte_tokenizer()
    rows = preference_world.rows("preference_pairs", "test", 20, 0)
    found: dict[str, list[float]] = {"chosen": [], "rejected": [], "chosen_start": [], "rejected_start": []}
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        for side in ("chosen", "rejected"):
            response = [*tokenizer(row[side])["input_ids"][1:], tokenizer.eos_token_id]
            for name, model in zip((side, f"{side}_start"), models, strict=True):
                found[name].append(logp(model, prompt, response))
    values = {name: np.array(column) for name, column in found.items()}
    ratios = [values[side] - values[f"{side}_start"] for side in ("chosen", "rejected")]
    metrics = metrics_of(trained)
    expected = {
        "chosen_logps": values["chosen"].mean(),
        "rejected_logps": values["rejected"].mean(),
        "chosen_log_ratio": ratios[0].mean(),
        "rejected_log_ratio": ratios[1].mean(),
        "margin": 0.1 * (ratios[0] - ratios[1]).mean(),  # beta of DPO
        "accuracy": np.mean(ratios[0] > ratios[1]),
        "likelihood_accuracy": np.mean(values["chosen"] > values["rejected"]),
    }
    assert {name: metrics[f"{name},none"] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert abs(expected["chosen_log_ratio"]) > 0.1, "it has learned something"
    assert metrics["margin_stderr,none"] == pytest.approx(
        0.1 * (ratios[0] - ratios[1]).std(ddof=1) / math.sqrt(20), abs=1e-6
    )


def test_samples_and_their_divergence_are_the_policys_own(trained, models):
    """Drawn again with the same seeds, looked at one by one."""
    policy, start = models
    tokenizer = byte_tokenizer()
    rows = preference_world.rows("preference_pairs", "test", 7, 0)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    asked = [prompt for prompt in prompts for _ in range(3)]
    sampling = Sampling(max_new_tokens=8, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id)
    drawn = [
        tokens
        for number, begin in enumerate(range(0, 21, 5))
        for tokens in generate(policy, asked[begin : begin + 5], sampling, number)
    ]
    records = samples_of(trained)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in drawn]
    assert [text for record in records for text in record["samples"]] == texts
    assert [record["prompt"] for record in records] == [row["prompt"] for row in rows]
    kl, entropy = [], []
    for prompt, tokens in zip(asked, drawn, strict=True):
        p, q = (distributions(model, prompt, tokens) for model in (policy, start))
        kl.append(float((p.exp() * (p - q)).sum()))
        entropy.append(float(-(p.exp() * p).sum()))
    metrics = metrics_of(trained)
    assert metrics["kl,none"] == pytest.approx(np.mean(kl), abs=1e-5) and np.mean(kl) > 0.01
    assert metrics["entropy,none"] == pytest.approx(np.mean(entropy), abs=1e-4)
    by_prompt = np.reshape(kl, (7, 3)).mean(1)
    assert metrics["kl_stderr,none"] == pytest.approx(by_prompt.std(ddof=1) / math.sqrt(7), abs=1e-6)
    ended = [tokens[-1] == tokenizer.eos_token_id for tokens in drawn]
    assert metrics["finished,none"] == pytest.approx(np.mean(ended))
    assert metrics["length,none"] == pytest.approx(np.mean(list(map(len, drawn))) - np.mean(ended))
    (greedy,) = generate(policy, prompts[:1], Sampling(**{**vars(sampling), "temperature": 0.0}), 0)
    assert records[0]["greedy"] == tokenizer.decode(greedy, skip_special_tokens=True)


def test_rewards_and_win_rate_are_those_of_the_recorded_samples(trained):
    records, metrics = samples_of(trained), metrics_of(trained)
    for record in records:
        assert record["rewards"] == [len(text) for text in record["samples"]]
        assert record["start_rewards"] == [len(text) for text in record["start"]]
        assert record["greedy_reward"] == len(record["greedy"])
    assert metrics["reward,none"] == pytest.approx(np.mean([record["rewards"] for record in records]))
    assert metrics["reward_greedy,none"] == pytest.approx(np.mean([record["greedy_reward"] for record in records]))
    won = [
        (own > other) + 0.5 * (own == other)
        for record in records
        for own, other in itertools.product(record["rewards"], record["start_rewards"])
    ]
    assert metrics["win_rate,none"] == pytest.approx(np.mean(won))
    assert len({text for record in records for text in record["start"]}) > 10
    result = json.loads((trained / "result.json").read_text())
    assert result["samples"]["preference"] == {"original": 20, "effective": 20}
    assert (
        result["evaluation"]["higher_is_better"]["preference"] | {"kl": False, "length": None, "accuracy": True}
        == (result["evaluation"]["higher_is_better"]["preference"])
    )


# All sequences of at most two symbols that a model of six can write, symbol 1 ending them.
SYMBOLS = 6
EVERY = [[1], *([a, b] for a in range(SYMBOLS) if a != 1 for b in range(SYMBOLS))]


def test_kl_and_entropy_are_the_enumerated_ones(tmp_path):
    """Summed over all sequences with their probabilities, the chain rule on samples gives the exact values."""
    processes.join(tmp_path / "run")
    policy, start = (tiny_llama(seed, vocab_size=SYMBOLS).eval() for seed in (1, 2))
    prompts = [[2, 3], [4, 0, 5]]
    for prompt in prompts:
        examples = Examples.of([prompt + word for word in EVERY], [len(prompt)] * len(EVERY))
        kl_S, entropy_S = sums_over_tokens(
            examples, kl_and_entropy(adapter("causal"), policy, start), rows=7, pad=0, what="", tell=lambda *_: None
        )
        logp_S, start_S = (np.array([logp(model, prompt, word) for word in EVERY]) for model in (policy, start))
        p_S = np.exp(logp_S)
        assert p_S.sum() == pytest.approx(1)
        assert p_S @ kl_S == pytest.approx(p_S @ (logp_S - start_S), abs=1e-6) and p_S @ kl_S > 0.05
        assert p_S @ entropy_S == pytest.approx(-p_S @ logp_S, abs=1e-6)


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_sums_do_not_depend_on_the_batch_size(tmp_path, rows):
    processes.join(tmp_path / "run")
    policy, start = (tiny_llama(seed).eval() for seed in (1, 2))
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 15, 23)
    examples = Examples.of([generator.integers(1, 32, length) for length in lengths], [2] * 23)

    def values(batch):
        logps = [adapter("causal").token_logps(model, batch) for model in (policy, start)]
        return [*logps, *kl_and_entropy(adapter("causal"), policy, start)(batch)]

    found = sums_over_tokens(examples, values, rows=rows, pad=0, what="", tell=lambda *_: None)
    sequences = [(examples.prompt(i).tolist(), examples.response(i).tolist()) for i in range(23)]
    exact = [[logp(model, *sequence) for sequence in sequences] for model in (policy, start)]
    np.testing.assert_allclose(found[:2] / (lengths - 2), np.array(exact) / (lengths - 2), atol=1e-6, rtol=0)
    kls = [float((p.exp() * (p - q)).sum()) for p, q in
           ((distributions(policy, *s), distributions(start, *s)) for s in sequences)]  # fmt: skip
    np.testing.assert_allclose(found[2] / (lengths - 2), np.array(kls) / (lengths - 2), atol=1e-6, rtol=0)


# Limits --------------------------------------------------------------------------------------------------------


def test_what_has_learned_nothing(plugin, tmp_path):
    metrics = metrics_of(measured([*UNTRAINED, plugin], tmp_path))
    for name in ("margin", "chosen_log_ratio", "rejected_log_ratio", "kl"):
        assert metrics[f"{name},none"] == 0.0 == metrics[f"{name}_stderr,none"]
    assert metrics["accuracy,none"] == 0.5
    assert abs(metrics["win_rate,none"] - 0.5) < 3 * metrics["win_rate_stderr,none"]
    assert metrics["win_rate_stderr,none"] > 0, "the two draws are independent"
    assert metrics["chosen_logps,none"] < -10 and metrics["entropy,none"] > 1


def test_the_same_run_again_in_other_batches_gives_the_same(plugin, trained, tmp_path):
    again = measured([*TRAINED, plugin, "evaluation.batch_size=3"], tmp_path)
    assert again.name == trained.name, "the batch is no part of the identity"
    assert samples_of(again) == samples_of(trained)
    assert metrics_of(again) == pytest.approx(metrics_of(trained), abs=1e-6, rel=1e-6)


def test_the_shards_of_two_processes_give_what_one_gives(plugin, trained, tmp_path):
    """Trained on two processes: the weights differ by rounding."""
    two = measured([*TRAINED, plugin, "processes=2", "engine=zero3"], tmp_path)
    assert two.name == trained.name and json.loads((two / "environment.json").read_text())["processes"] == 2
    assert samples_of(two) == samples_of(trained)
    assert metrics_of(two) == pytest.approx(metrics_of(trained), abs=1e-4, rel=1e-4)


def test_another_seed_draws_other_samples_and_one_sample_has_no_diversity(plugin, tmp_path):
    words = [*UNTRAINED, plugin, "evaluation.preference.reward=null", "evaluation.preference.samples_per_prompt=1",
             "evaluation.preference.dataset.size=8"]  # fmt: skip
    folders = [measured([*words, f"evaluation.preference.seed={seed}"], tmp_path / str(seed)) for seed in (0, 1)]
    drawn = [[record["samples"] for record in samples_of(folder)] for folder in folders]
    assert drawn[0] != drawn[1] and len(drawn[0]) == 7
    names = {name.partition(",")[0] for name in metrics_of(folders[0])}
    assert {"accuracy", "length", "finished", "kl", "entropy"} <= names
    assert not names & {"self_bleu", "distinct_1", "distinct_responses", "reward", "win_rate", "reward_greedy"}


def test_samples_at_another_temperature_have_no_kl(plugin, tmp_path):
    words = [*UNTRAINED, plugin, "evaluation.preference.temperature=0", "evaluation.preference.kl=false"]
    folder = measured(words, tmp_path)
    metrics = metrics_of(folder)
    assert "kl,none" not in metrics and "entropy,none" not in metrics
    for record in samples_of(folder):  # the likeliest tokens
        assert set(record["samples"]) == set(record["start"]) == {record["greedy"]}
    assert metrics["self_bleu,none"] == 1.0 and metrics["distinct_responses,none"] == pytest.approx(1 / 3)
    assert metrics["win_rate,none"] == 0.5 and metrics["reward,none"] == metrics["reward_greedy,none"]


# What is asked for ---------------------------------------------------------------------------------------------


def spec_of(plugin: str, *words: str) -> RunSpec:
    return run_spec([*UNTRAINED, plugin, *words])


def pairs_file(*rows: tuple[str, str, str]) -> list[str]:
    lines = [json.dumps({"prompt": p, "chosen": c, "rejected": r}) for p, c, r in rows]
    Path("pairs.jsonl").write_text("\n".join(lines))
    return [
        "evaluation.preference.dataset={source: file, skill: null, size: null, type: pair, split: train, seed: 0}",
        "+evaluation.preference.dataset.path=pairs.jsonl",
    ]


def test_prompts_are_different_and_what_does_not_fit_is_left_out(composer, plugin):
    long = "x" * 140
    words = pairs_file(
        ("a:", "1", "2"),
        ("a:", "3", "4"),
        (f"{long}:", "1", "2"),
        ("b:", "1", "1"),
        ("c:", long, "2"),
        ("d:", "1", "2"),
    )
    spec = spec_of(plugin, *words, "evaluation.max_length=128")
    held = held_out(spec, byte_tokenizer(), None)
    assert [prompt.text for prompt in held.prompts] == ["a:", "c:", "d:"], "b has no pair, as its responses are equal"
    assert [byte_tokenizer().decode(held.pairs.sequence(i), skip_special_tokens=True) for i in range(6)] == [
        "a:1", "a:2", "a:3", "a:4", "d:1", "d:2",
    ]  # fmt: skip
    assert held.rows == 6
    two = held_out(spec_of(plugin, *words, "evaluation.preference.max_pairs=2", "evaluation.preference.prompts=2"),
                   byte_tokenizer(), None)  # fmt: skip
    assert len(two.pairs) == 4 and [prompt.text for prompt in two.prompts] == ["a:", f"{long}:"]


def test_debug_bounds_it(composer):
    spec = run_spec(
        [*MODEL, "dataset=preference_pairs", "evaluation=mini_preference", "method=untrained", "debug=fast"]
    )
    settings = spec.config["evaluation"]["preference"]
    assert (settings["max_new_tokens"], settings["samples_per_prompt"]) == (16, 2)
    held = held_out(spec, byte_tokenizer(), None)
    assert (len(held.pairs), len(held.prompts), held.rows) == (8, 4, 250)


def test_identity(composer, plugin):
    """Where the data lie decides nothing, what they are does; without the evaluation there is no trace of it."""
    plain = spec_of(plugin)
    data = "evaluation.preference.dataset"
    assert spec_of(plugin, f"+{data}.data_root=/tmp").identity == plain.identity
    assert spec_of(plugin, "evaluation.preference.batch_size=7").identity != plain.identity, "samples depend on it"
    words = pairs_file(("a:", "1", "2"), ("b:", "1", "2"))
    first = spec_of(plugin, *words).identity
    Path("pairs.jsonl").rename("same.jsonl")
    assert spec_of(plugin, *words[:1], f"+{data}.path=same.jsonl").identity == first
    words = pairs_file(("a:", "1", "2"), ("b:", "1", "3"))
    assert spec_of(plugin, *words).identity != first
    assert "preference" not in run_spec([*MODEL, "evaluation=none"]).what_decides()["evaluation"]
    assert "private_rewards" in plain.sources, "another reward makes a result stale"


@pytest.mark.parametrize(("word", "message"), [
    ("evaluation.preference.temperature=0.7", "evaluation.preference.kl=true: KL and entropy are estimated on samples"),
    ("evaluation.preference.top_p=0.9", "at temperature 1 and top_p 1, got 1.0 and 0.9; to leave them out, set"),
    ("evaluation.preference.dataset.type=completion", "evaluation.preference.dataset.type=completion: must be pair"),
    ("+evaluation.preference.sample=3", "evaluation.preference.sample=3: "),
    ("+evaluation.preference.dataset.splitt=test", "evaluation.preference.dataset.splitt=test: unknown key (nearest"),
    ("evaluation.preference.dataset.source=hubb", "evaluation.preference.dataset.source=hubb: should be 'mini_"),
    ("evaluation.preference.dataset.source=file", "evaluation.preference.dataset.path must be set for source file"),
    ("~evaluation.preference.dataset.source", "must name its source (mini_world, hub or file)"),
    ("evaluation.preference.dataset.skill=pairs", "evaluation.preference.dataset.skill=pairs: no such skill"),
    ("+evaluation.preference.dataset.loss_on=all", "evaluation.preference.dataset.loss_on=all: only for type"),
    ("evaluation.preference.prompts=1", "evaluation.preference.prompts=1: should be greater than or equal to 2"),
    ("evaluation.preference.beta=0", "evaluation.preference.beta=0: should be greater than 0"),
    ("evaluation.preference.reward.function=private_rewards.lenght",
     "evaluation.preference.reward.function=private_rewards.lenght: the module has no lenght"),
    ("evaluation.preference.reward={function: null, model: null}", "must name either a function or a model"),
])  # fmt: skip
def test_bad_settings_are_one_line_before_anything_starts(composer, plugin, word, message):
    with pytest.raises(UserError) as caught:
        spec_of(plugin, word)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("words", "message"), [
    (["evaluation.preference.dataset.skill=preference_ranked"],
     "evaluation.preference.dataset.chosen='{chosen}': the data set has no column 'chosen'"),
    (["evaluation.preference.dataset.size=10000000"], "evaluation.preference.dataset.skill=preference_pairs: "),
    (["evaluation.max_length=19"],
     "dataset: needs at least two pairs, and two prompts with 8 new tokens, that fit into 19 tokens"),
])  # fmt: skip
def test_bad_data_are_told_before_training(plugin, tmp_path, words, message):
    ended = retable(*TRAINED, plugin, *words, f"outputs={tmp_path}")
    assert ended.code == 1 and message in ended.error and "Traceback" not in ended.err
    assert not list(tmp_path.glob("runs/*/model")) and not list(tmp_path.glob("runs/*/metrics.jsonl"))


def test_a_reward_model_that_does_not_fit_is_told_before_training(plugin, tmp_path):
    """By its configuration alone: there are no weights."""
    from transformers import LlamaConfig

    LlamaConfig(num_labels=3).save_pretrained(tmp_path / "judge")
    byte_tokenizer().save_pretrained(tmp_path / "judge")
    words = [*TRAINED, plugin, f"evaluation.preference.reward={{function: null, model: {tmp_path / 'judge'}}}"]
    ended = retable(*words, f"outputs={tmp_path}")
    assert ended.code == 1 and "evaluation.preference.reward.model=" in ended.error
    assert "must have one output, got 3" in ended.error
    assert not list(tmp_path.glob("runs/*/model")) and not list(tmp_path.glob("runs/*/metrics.jsonl"))


def test_a_reward_that_refuses_is_one_line(plugin, tmp_path):
    words = [*UNTRAINED, plugin, "evaluation.preference.reward.function=private_rewards.refused"]
    ended = retable(*words, f"outputs={tmp_path}")
    assert ended.code == 1 and "must be asked for something else" in ended.error
    assert "evaluation.preference.reward.function=private_rewards.refused" in ended.error
