"""ESCI: accuracy and macro-F1 worked out by hand, and always the same English pairs, on made-up ones."""

import importlib.util

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from evals.harness import TaskRequest, evaluate
from evals.task_index import OWN_TASKS
from runners.expand import config_roots
from tests.evals.tiny import byte_tokenizer, config, write_json_lines

spec = importlib.util.spec_from_file_location("esci", OWN_TASKS / "esci" / "esci.py")
esci = importlib.util.module_from_spec(spec)
spec.loader.exec_module(esci)


def pair(number, label="Exact", locale="us", title="lamp"):
    return {
        "example_id": number,
        "query": f"query {number}",
        "query_id": number // 2,
        "product_id": f"B{number}",
        "product_locale": locale,
        "esci_label": label,
        "small_version": 0,
        "large_version": 1,
        "product_title": title,
        "product_description": None,
        "product_bullet_point": None,
        "product_brand": "none",
        "product_color": None,
        "product_text": title,
    }


class Favouring(LlamaForCausalLM):
    """Answers a prompt with the label that `favourites` has for its beginning."""

    favourites: dict[str, str]

    def forward(self, input_ids, **unused):
        logits = torch.zeros(*input_ids.shape, 258)
        tokenizer = byte_tokenizer()
        for line, ids in enumerate(input_ids):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            label = next(label for start, label in self.favourites.items() if text.startswith(start))
            # The first letters of the four labels differ: the favourite's is predicted after "Answer: ".
            place = len(tokenizer(text.partition("Answer:")[0] + "Answer: ").input_ids) - 1
            logits[line, place, tokenizer(label[0]).input_ids[0]] = 50.0
        return CausalLMOutput(logits=logits)


def measured(tmp_path, monkeypatch, pairs, favourites):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    write_json_lines(tmp_path / "esci" / "test.jsonl", pairs)
    model = Favouring(config())
    model.favourites = favourites
    return evaluate(
        model, byte_tokenizer(), [TaskRequest("esci")], batch_size=4, seed=0, data_root=tmp_path, progress=False
    )


def test_scores_of_known_guesses(tmp_path, monkeypatch):
    labels = ["Exact", "Exact", "Exact", "Substitute", "Substitute", "Complement", "Irrelevant", "Irrelevant"]
    guesses = ["Exact", "Exact", "Substitute", "Substitute", "Irrelevant", "Exact", "Irrelevant", "Irrelevant"]
    pairs = [pair(number, label) for number, label in enumerate(labels)]
    favourites = {f"Query: query {number}\n": guess for number, guess in enumerate(guesses)}
    result = measured(tmp_path, monkeypatch, [*pairs, pair(90, locale="es"), pair(91, locale="jp")], favourites)
    assert result.n_samples["esci"] == {"effective": 8, "original": 8}
    assert result.metrics["esci"]["acc,none"] == 5 / 8
    # F1 by label: Exact 2 of 3 and 2 of 3 -> 2/3; Substitute 1 of 2 and 1 of 2 -> 1/2; Complement 0; Irrelevant 2 of 3
    # guessed, 2 of 2 found -> 4/5.
    assert result.metrics["esci"]["macro_f1,none"] == pytest.approx((2 / 3 + 1 / 2 + 0 + 4 / 5) / 4)
    sample = result.samples["esci"][0]
    assert [arguments[1] for arguments in sample["arguments"]] == [f" {label}" for label in esci.LABELS]


def test_always_the_same_label_is_a_quarter_of_an_f1():
    items = [(0, 0), (0, 0), (1, 0), (2, 0)]
    assert esci.macro_f1(items) == pytest.approx((2 / 3) / 4)
    assert esci.macro_f1([(label, label) for label in range(4)]) == 1.0


def test_subset_is_english_distinct_and_independent_of_the_order(monkeypatch):
    import datasets

    monkeypatch.setattr(esci, "ITEMS", 5)
    pairs = [pair(number) for number in range(40)] + [pair(number, locale="es") for number in range(40, 60)]
    pairs += [pair(3, label="Irrelevant"), pair(60, title=None), pair(61, title="")]
    chosen = [esci.english(datasets.Dataset.from_list(rows)) for rows in (pairs, pairs[39::-1])]
    numbers = [subset["example_id"][:] for subset in chosen]
    assert numbers[0] == numbers[1] and len(set(numbers[0])) == 5 and max(numbers[0]) < 40
    assert numbers[0] != sorted(numbers[0])
    # With more to choose from than there is, all of it.
    monkeypatch.setattr(esci, "ITEMS", 100)
    whole = esci.english(datasets.Dataset.from_list(pairs))
    assert sorted(whole["example_id"][:]) == list(range(40))
    assert {doc["esci_label"] for doc in whole} == {"Exact"}  # the first of two rows with one ID


def test_training_asks_as_the_task_does():
    settings = yaml.safe_load((config_roots([])[0] / "dataset" / "esci.yaml").read_text())
    doc = pair(1, "Complement")
    assert settings["prompt"].format_map(doc) == esci.prompt(doc)
    assert settings["completion"].format_map(doc) == " Complement"
    assert settings["path"] == "tasksource/esci"
