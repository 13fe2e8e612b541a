"""Every full-scale row runs with a small random model of the same architecture."""

import json
import re
from pathlib import Path
from string import Formatter
from typing import Any

import pytest

from runners import record
from runners.expand import expand, value_of
from runners.schema import PARTS
from tests.experiments.every import (
    ALLOWED,
    FULL_ROWS,
    all_finite,
    composed,
    measured_items,
    model_type,
    one_formula,
    only_options,
    ran,
    slow_unless,
)


def shown_by(name: str, row: str, *, apart: bool = False) -> set[str]:
    """What a full-scale row shows by running: its data set, and all else that it chooses, together or each by itself.

    Numbers do not count, nor does which model of a type.
    """
    elsewhere = ("experiment", "row", "scale", "seed", "evaluation", "model.id", "model.from_run", "dataset")
    chosen: dict[str, str] = {}
    words = expand([f"experiment={name}", "scale=full", f"row={row}"])
    for word in words:
        key, _, value = word.partition("=")
        if key == "model":
            chosen["model.model_type"] = model_type(value)
        elif key in elsewhere or key.startswith("evaluation."):
            continue
        elif not re.fullmatch(r"-?[\d.]+(e-?\d+)?", value):
            chosen[key] = value
    if apart:
        groups = (
            (*PARTS, "model.model_type")
            if one_formula(chosen["method"]) or only_options(chosen["method"])
            else ("method", *PARTS, "model.model_type")
        )
        found = {f"{key}={chosen[key]}" for key in groups if key in chosen}
        return found if chosen["method"] == "untrained" else {*found, f"dataset={value_of(words, 'dataset')}"}
    together = " ".join(f"{key}={value}" for key, value in sorted(chosen.items()))
    return {together} if chosen["method"] == "untrained" else {together, f"dataset={value_of(words, 'dataset')}"}


def different(rows: list[tuple[str, str]], *, apart: bool = False) -> list[tuple[str, str]]:
    """The rows that show something which none before them shows: there are too many to run them all."""
    shown: set[str] = set()
    found = []
    for name, row in rows:
        if not (own := shown_by(name, row, apart=apart)) <= shown:
            shown |= own
            found.append((name, row))
    return found


DIFFERENT_ROWS = different(FULL_ROWS)
QUICK_ROWS = different(FULL_ROWS, apart=True)


# What `debug=random` may change of a full-scale run. Its data and its evaluation are the test's own.
CHANGED = {
    "model": {"id", "from_run", "architecture", "tokenizer"},
    "training": {"steps", "epochs", "batch_size", "micro_batch_size", "too_long", "log_every", "checkpoint_every"},
    "method": {"max_new_tokens", "presamples", "near_perfect", "rehearsal_size"},
    "optimizer": set(),
    "engine": set(),
    "adapter": set(),
    "penalty": {"samples", "max_length"},
    "mix": {"samples", "max_length", "max_new_tokens", "dataset"},
}


# The evaluation of these tests, also where a scale has changed keys of its own.
MEASURED = [
    "evaluation=mini_world_validation",
    "evaluation.tasks=[{name:mini_world_general,metadata:{split:validation}},"
    "{name:mini_world_relabelled_copy,metadata:{split:validation}}]",
    "evaluation.preference=null",
    "evaluation.apply_chat_template=false",
]


# What rows hold that a function makes an answer of (`dataset.reference`).
REFERRED = {
    "evals.rewards.code.kodcode_reference": {"test": "from solution import f\n\ndef test_f():\n    assert f(1) == 1\n"},
}


def write_local_copy(dataset: dict[str, Any], root: Path) -> None:
    """A local copy of a hub set, with the columns that its templates name.

    One text is too long for any training; of problems, to which a group of responses is written, all are short.
    """
    columns = {
        field
        for value in dataset.values()
        if isinstance(value, str) and "{" in value
        for _, field, _, _ in Formatter().parse(value)
        if field
    }
    repeats = [1 + number % 4 for number in range(15)] + [4 if dataset["type"] == "problem" else 1000]
    rows: list[dict[str, Any]] = [
        {column: f"{column} {number} " * times for column in columns} for number, times in enumerate(repeats)
    ]
    if dataset["layout"] == "dialogue":  # a column is a whole dialogue
        rows = [
            {column: f"\n\nHuman: prompt {number}\n\nAssistant: {text}" for column, text in row.items()}
            for number, row in enumerate(rows)
        ]
    if dataset["layout"] == "messages":  # a column is a whole chat
        rows = [
            {
                column: [{"role": "user", "content": f"prompt {number}"}, {"role": "assistant", "content": text}]
                for column, text in row.items()
            }
            for number, row in enumerate(rows)
        ]
    rows = [{**row, **REFERRED.get(dataset["reference"], {}), **(dataset["where"] or {})} for row in rows]
    folder = root / dataset["path"].rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{dataset['split']}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_method_part_model_type_and_data_set_is_among_the_rows_that_run() -> None:
    def choices_of(rows: list[tuple[str, str]]) -> tuple[set[tuple[str | None, ...]], set[str | None]]:
        words = [expand([f"experiment={name}", "scale=full", f"row={row}"]) for name, row in rows]
        combinations = {
            (*(value_of(of_row, group) for group in ("method", *PARTS)), model_type(value_of(of_row, "model")))
            for of_row in words
        }
        trained = [of_row for of_row in words if value_of(of_row, "method") != "untrained"]
        return combinations, {value_of(of_row, "dataset") for of_row in trained}

    assert len(QUICK_ROWS) < len(DIFFERENT_ROWS) < len(FULL_ROWS)
    assert choices_of(DIFFERENT_ROWS) == choices_of(FULL_ROWS)


@pytest.mark.parametrize(("name", "row"), [slow_unless(row in QUICK_ROWS, *row) for row in DIFFERENT_ROWS])
def test_every_full_scale_row_runs_with_a_small_random_model(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, row: str
) -> None:
    words = [f"experiment={name}", "scale=full", f"row={row}", ALLOWED]
    full = composed(*words)
    local = []
    for group, dataset in (("dataset", full.config["dataset"]), ("mix.dataset", full.config["mix"].get("dataset"))):
        if dataset and dataset["source"] == "hub":
            write_local_copy(dataset, tmp_path / "data")
            local.append(f"{'+' if group != 'dataset' else ''}{group}.data_root={tmp_path / 'data'}")
    if full.choices["method"].startswith("merging/"):  # the run it takes up has data and an evaluation of its own
        monkeypatch.setenv("RETABLE_DATA", str(tmp_path / "data"))
        named = [*full.config["model"]["from_run"], *MEASURED]
        local.append(f"model.from_run=[{','.join(repr(word) for word in named)}]")
    spec, result = ran(*words, *local, *MEASURED, "debug=random", f"outputs={outputs}")

    for group, changed in CHANGED.items():
        differs = {key for key, value in spec.config[group].items() if value != full.config[group][key]}
        assert differs <= changed
    own, of_full = (found.config["mix"].get("dataset") or {} for found in (spec, full))
    assert {**own, "data_root": None} == {**of_full, "data_root": None}
    architecture = spec.start.config["model"]["architecture"]
    assert architecture["model_type"] == full.config["model"]["model_type"]
    assert result["method_metrics"].get("train/steps", 2) == 2
    assert measured_items(result) == {4}
    assert all(all_finite(values) for values in (result["method_metrics"], *result["metrics"].values()))
    saved = record.status(spec).folder / "model" / "config.json"
    if saved.is_file():
        built = json.loads(saved.read_text())
        assert (built["model_type"], built["num_hidden_layers"]) == (architecture["model_type"], 2)
