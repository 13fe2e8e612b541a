"""From rows to token sequences: templates, masks, lengths, and the mistakes a data set can hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.byte_tokenizer import BOS, EOS, byte_tokenizer
from methods.examples import Examples
from runners.data import load_rows, tokenize
from runners.errors import UserError
from runners.schema import Dataset
from tests.command import forget_sources

TOKENIZER = byte_tokenizer()
BOS_ID, EOS_ID = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id


def settings(**changes: Any) -> dict[str, Any]:
    defaults = {name: field.default for name, field in Dataset.__dataclass_fields__.items()}
    return {**defaults, "source": "file", "path": "data.jsonl", **changes}


def tokens_of(rows: list[dict[str, Any]], *, max_length: int = 64, too_long: str = "error", **changes: Any) -> Examples:
    return tokenize(rows, settings(**changes), TOKENIZER, max_length=max_length, too_long=too_long)


def text_of(examples: Examples, index: int) -> str:
    return TOKENIZER.decode(examples.sequence(index))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and a cache of data sets that is the test's own."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    forget_sources()
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


ROWS = [{"prompt": "ab:", "answer": "cd"}, {"prompt": "x:", "answer": "yz!"}]


# Tokens and masks --------------------------------------------------------------------------------------------


def test_sequence_is_bos_prompt_completion_eos() -> None:
    examples = tokens_of(ROWS)
    assert len(examples) == 2 and examples.lengths.tolist() == [7, 7]
    assert [text_of(examples, index) for index in (0, 1)] == [f"{BOS}ab:cd{EOS}", f"{BOS}x:yz!{EOS}"]
    # The first token that carries loss is the completion's first.
    assert [text_of(examples, index)[:] and examples.sequence(index)[examples.targets[index]] for index in (0, 1)] == [
        TOKENIZER.convert_tokens_to_ids("c"),
        TOKENIZER.convert_tokens_to_ids("y"),
    ]


def test_loss_on_all_leaves_out_the_first_token_only() -> None:
    assert tokens_of(ROWS, loss_on="all").targets.tolist() == [1, 1]


def test_without_eos_the_completion_is_the_end() -> None:
    examples = tokens_of(ROWS, add_eos=False)
    assert examples.sequence(0)[-1] != EOS_ID and examples.lengths.tolist() == [6, 6]


def test_eos_is_not_doubled() -> None:
    examples = tokens_of(ROWS, completion="{answer}" + EOS)
    assert text_of(examples, 0).count(EOS) == 1


def test_template_over_columns_and_literal_braces() -> None:
    rows = [{"question": "1+1", "worked": 2, "source": "x"}]
    examples = tokens_of(rows, prompt="Q: {question} {{set}}\nA:", completion=" {worked}")
    assert text_of(examples, 0) == f"{BOS}Q: 1+1 {{set}}\nA: 2{EOS}"
    assert TOKENIZER.decode(examples.sequence(0)[examples.targets[0] :]) == f" 2{EOS}"


def test_target_begins_at_the_completion_also_after_characters_of_several_bytes() -> None:
    examples = tokens_of([{"prompt": "é→", "answer": "ü"}])
    assert TOKENIZER.decode(examples.sequence(0)[examples.targets[0] :]) == f"ü{EOS}"


def test_prompt_may_be_empty() -> None:
    examples = tokens_of([{"answer": "ab"}], prompt="")
    assert text_of(examples, 0) == f"{BOS}ab{EOS}" and examples.targets.tolist() == [1]


def test_empty_completion_carries_loss_on_eos_alone() -> None:
    examples = tokens_of([{"prompt": "ab", "answer": ""}])
    assert examples.sequence(0)[examples.targets[0] :].tolist() == [EOS_ID]


def test_more_rows_than_a_chunk_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.data._CHUNK", 2)
    rows = [{"prompt": f"{number}:", "answer": "x"} for number in range(5)]
    whole = tokens_of(rows)
    assert [text_of(whole, number) for number in range(5)] == [f"{BOS}{number}:x{EOS}" for number in range(5)]
    assert np.diff(whole.starts).tolist() == [5] * 5 and whole.tokens.dtype == np.int32


# Lengths -----------------------------------------------------------------------------------------------------


def test_longer_than_the_model_takes_is_an_error_that_names_the_example() -> None:
    with pytest.raises(UserError) as error:
        tokens_of([ROWS[0], {"prompt": "x" * 20, "answer": "y"}], max_length=8)
    assert str(error.value) == (
        "training.max_length=8: example 1 has 23 tokens; raise it, or set training.too_long to truncate or drop"
    )


def test_exactly_as_long_as_the_model_takes_is_not() -> None:
    assert len(tokens_of(ROWS, max_length=7)) == 2


def test_truncated_examples_keep_their_beginning() -> None:
    examples = tokens_of(ROWS, max_length=5, too_long="truncate")
    assert [text_of(examples, index) for index in (0, 1)] == [f"{BOS}ab:c", f"{BOS}x:yz"]
    # Of an example whose completion was cut off altogether nothing carries loss.
    cut = tokens_of([ROWS[1], {"prompt": "long prompt", "answer": "x"}], max_length=5, too_long="truncate")
    assert cut.targets.tolist() == [3, 5] and cut.lengths.tolist() == [5, 5]


def test_dropped_examples_leave_the_others() -> None:
    examples = tokens_of([ROWS[0], {"prompt": "x" * 20, "answer": "y"}], max_length=8, too_long="drop")
    assert len(examples) == 1 and text_of(examples, 0) == f"{BOS}ab:cd{EOS}"


@pytest.mark.parametrize("too_long", ["truncate", "drop"])
def test_nothing_left_to_train_on(too_long: str) -> None:
    with pytest.raises(UserError, match=r"training.max_length=4: .*carries loss"):
        tokens_of([{"prompt": "x" * 20, "answer": "y"}], max_length=4, too_long=too_long)


# Mistakes in the data ----------------------------------------------------------------------------------------


def test_bos_in_the_template_is_doubled_by_the_tokenizer() -> None:
    with pytest.raises(UserError) as error:
        tokens_of(ROWS, prompt=BOS + "{prompt}")
    assert str(error.value) == (
        "dataset.prompt: the text '<bos>ab:cd' begins with BOS '<bos>', which the tokenizer adds itself; leave it out"
    )


def test_bos_in_the_data_is_found_in_any_row() -> None:
    with pytest.raises(UserError, match="begins with BOS"):
        tokens_of([ROWS[0], {"prompt": BOS + "x", "answer": "y"}])


def test_bos_in_the_template_of_a_tokenizer_that_adds_none_is_fine() -> None:
    from tokenizers.processors import TemplateProcessing

    plain = byte_tokenizer()
    plain.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    examples = tokenize(ROWS, settings(prompt=BOS + "{prompt}"), plain, max_length=64, too_long="error")
    assert text_of(examples, 0) == f"{BOS}ab:cd{EOS}"


@pytest.mark.parametrize("column", ["prompt", "answer"])
def test_a_row_without_a_value_is_named(column: str) -> None:
    with pytest.raises(UserError, match=rf"dataset\.\w+='{{{column}}}': example 1 has no '{column}'"):
        tokens_of([ROWS[0], {**ROWS[1], column: None}])


# Files -------------------------------------------------------------------------------------------------------


def test_jsonl_json_and_parquet_hold_the_same(folder: Path) -> None:
    import datasets

    write(folder / "data.jsonl", ROWS)
    (folder / "data.json").write_text(json.dumps(ROWS))
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "data.parquet")
    for name in ("data.jsonl", "data.json", "data.parquet"):
        assert [dict(row) for row in load_rows(settings(path=name))] == ROWS


def test_an_edited_file_is_read_anew(folder: Path) -> None:
    write(folder / "data.jsonl", ROWS)
    assert len(load_rows(settings())) == 2
    write(folder / "data.jsonl", ROWS[:1])
    assert len(load_rows(settings())) == 1


def test_limit_takes_the_first(folder: Path) -> None:
    write(folder / "data.jsonl", ROWS)
    assert [dict(row) for row in load_rows(settings(limit=1))] == ROWS[:1]
    assert len(load_rows(settings(limit=10))) == 2
    world = settings(source="mini_world", skill="copy", size=5, path=None)
    assert list(load_rows({**world, "limit": 2})) == list(load_rows(world))[:2]


SOME = [
    {"prompt": f"{number}", "answer": "x", "locale": ("us", "es")[number % 2], "small": number < 6}
    for number in range(8)
]


def test_where_takes_the_rows_with_these_values(folder: Path) -> None:
    import datasets

    write(folder / "data.jsonl", SOME)
    datasets.Dataset.from_list(SOME).to_parquet(folder / "data.parquet")
    wanted = {"locale": "es", "small": True}
    for name in ("data.jsonl", "data.parquet"):
        assert [row["prompt"] for row in load_rows(settings(path=name, where=wanted))] == ["1", "3", "5"]
        # The limit is on what is left.
        assert [row["prompt"] for row in load_rows(settings(path=name, where=wanted, limit=2))] == ["1", "3"]
        assert len(load_rows(settings(path=name, where={}))) == len(load_rows(settings(path=name))) == 8
    world = settings(source="mini_world", skill="relabelled_copy", size=20, path=None)
    parts = [row["part"] for row in load_rows({**world, "where": {"part": "hard"}})]
    assert parts == ["hard"] * len(parts) and 0 < len(parts) < 20


def test_where_that_nothing_fits_is_told(folder: Path) -> None:
    write(folder / "data.jsonl", SOME)
    with pytest.raises(UserError, match=r"^dataset=data\.jsonl: no row has the values of dataset\.where="):
        load_rows(settings(where={"locale": "jp"}))
    with pytest.raises(UserError) as error:
        load_rows(settings(where={"local": "us"}))
    assert str(error.value) == (
        "dataset.where={'local': 'us'}: the data set has no column 'local' (nearest: locale); "
        "it has prompt, answer, locale, small"
    )


def test_local_copy_of_a_hub_set_is_read(folder: Path) -> None:
    (folder / "data" / "gsm8k").mkdir(parents=True)
    write(folder / "data" / "gsm8k" / "train.jsonl", [{"question": "1+1?", "answer": "2"}])
    found = settings(source="hub", path="openai/gsm8k", data_root="data", prompt="{question}")
    assert [dict(row) for row in load_rows(found)] == [{"question": "1+1?", "answer": "2"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompt": "{promt}"},
            "dataset.prompt='{promt}': the data set has no column 'promt' (nearest: prompt); it has prompt, answer",
        ),
        ({"completion": "{response}"}, "dataset.completion='{response}': the data set has no column 'response'"),
        ({"prompt": "{prompt"}, "dataset.prompt='{prompt': expected '}' before end of string"),
        ({"prompt": "{}"}, "dataset.prompt='{}': {} must be a column's name"),
        ({"prompt": "{row.prompt}"}, "dataset.prompt='{row.prompt}': {row.prompt} must be a column's name"),
    ],
)
def test_template_that_does_not_fit_the_columns(folder: Path, changes: dict[str, str], message: str) -> None:
    write(folder / "data.jsonl", ROWS)
    with pytest.raises(UserError) as error:
        load_rows(settings(**changes))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.json", "empty.parquet"])
def test_empty_data_set(folder: Path, name: str) -> None:
    import datasets

    (folder / "empty.jsonl").touch()
    (folder / "empty.json").write_text("[]")
    datasets.Dataset.from_dict({"prompt": [], "answer": []}).to_parquet(folder / "empty.parquet")
    with pytest.raises(UserError, match=rf"{name}.*empty"):
        load_rows(settings(path=name))


def test_file_that_is_no_json(folder: Path) -> None:
    (folder / "data.jsonl").write_text('{"prompt": "x", \n')
    with pytest.raises(UserError, match=r"^dataset.path=data.jsonl: cannot be loaded: .+") as error:
        load_rows(settings())
    assert "\n" not in str(error.value)


def test_hub_set_that_cannot_be_reached(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^dataset\.path=nobody/nothing: cannot be loaded: "):
        load_rows(settings(source="hub", path="nobody/nothing"))
