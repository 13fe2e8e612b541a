"""From rows to token sequences: templates, masks, lengths, and the mistakes a data set can hold."""

import collections
import gzip
import itertools
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.byte_tokenizer import BOS, EOS, byte_tokenizer
from methods.examples import Examples
from runners.data import load_rows, texts, tokenize
from runners.errors import UserError
from runners.schema import Dataset
from tests.command import forget_sources

TOKENIZER = byte_tokenizer()
BOS_ID, EOS_ID = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id


def settings(**changes: Any) -> dict[str, Any]:
    return asdict(Dataset(**{"source": "file", "path": "data.jsonl", **changes}))


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


def test_template_may_take_the_beginning_of_a_column() -> None:
    examples = tokens_of([{"text": "a long review", "label": 1}], prompt="{text:.6}", completion="{label}")
    assert text_of(examples, 0) == f"{BOS}a long1{EOS}" and TOKENIZER.decode(examples.prompt(0)) == f"{BOS}a long"


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


def test_an_empty_column_is_not_the_text_none() -> None:
    """Where texts are read one row at a time too; the message has the row's number in the data set."""
    with pytest.raises(UserError, match=r"^dataset\.completion='\{answer\}': example 7 has no 'answer'$"):
        texts([{"prompt": "ab:", "answer": None}], settings(), TOKENIZER, first=7)


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


# Responses and what is said of them --------------------------------------------------------------------------


def responses_of(examples: Examples) -> list[list[tuple[str, str, float]]]:
    """Of each group its prompts, responses and labels."""
    assert examples.labels is not None
    decoded = [
        (TOKENIZER.decode(examples.prompt(i)), TOKENIZER.decode(examples.response(i)), float(examples.labels[i]))
        for i in range(len(examples))
    ]
    groups = examples.groups.tolist()
    return [decoded[begin:end] for begin, end in itertools.pairwise(groups)]


PAIR = {"prompt": "ab:", "chosen": "cd", "rejected": "e"}
LISTS = {"prompt": "ab:", "chosen": ["cd", "c"], "rejected": ["e"]}
SCORED = {"prompt": "ab:", "responses": ["low", "top", "mid"], "scores": [-1, 2.5, 0]}


@pytest.mark.parametrize(
    ("row", "changes", "expected"),
    [
        (PAIR, {"type": "pair"}, [("cd", 1.0), ("e", 0.0)]),
        (PAIR, {"type": "pair", "chosen": "{chosen}{rejected}!", "rejected": "{chosen}"}, [("cde!", 1.0), ("cd", 0.0)]),
        ({**ROWS[0], "label": True}, {"type": "labelled"}, [("cd", 1.0)]),
        ({**ROWS[0], "label": False}, {"type": "labelled"}, [("cd", 0.0)]),
        ({**ROWS[0], "good": 1.0}, {"type": "labelled", "label": "{good}"}, [("cd", 1.0)]),
        (ROWS[0], {"type": "negative"}, [("cd", 0.0)]),
        (SCORED, {"type": "ranked"}, [("top", 2.5), ("mid", 0.0), ("low", -1.0)]),
        (LISTS, {"type": "groups"}, [("cd", 1.0), ("c", 1.0), ("e", 0.0)]),
    ],
)
def test_each_type_of_data(row: dict[str, Any], changes: dict[str, Any], expected: list[tuple[str, float]]) -> None:
    other = {"prompt": "x:", "answer": "y", "label": 0, "good": 0, "chosen": "1", "rejected": "2"}
    if changes["type"] in ("groups", "ranked"):
        other = {"prompt": "x:", "chosen": ["1"], "rejected": ["2"], "responses": ["1", "2"], "scores": [1, 0]}
    first, second = responses_of(tokens_of([row, other], **changes))
    assert first == [(f"{BOS}ab:", f"{answer}{EOS}", label) for answer, label in expected]
    assert all(prompt == f"{BOS}x:" for prompt, _, _ in second)


def test_equally_scored_responses_keep_their_order() -> None:
    row = {"prompt": "", "responses": ["a", "b", "c", "d"], "scores": [0, 1, 0, 1]}
    (found,) = responses_of(tokens_of([row], type="ranked"))
    assert [response.removesuffix(EOS) for _, response, _ in found] == ["b", "d", "a", "c"]


def test_completions_are_neither_grouped_nor_labelled() -> None:
    examples = tokens_of(ROWS)
    assert examples.group_starts is None and examples.labels is None
    assert examples.groups.tolist() == [0, 1, 2] and examples.group_count == 2


# Layouts -----------------------------------------------------------------------------------------------------

TALK = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}[{{ turn['role'] }}]{{ turn['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def chat_tokenizer(template: str | None = TEMPLATE, *, adds_bos: bool = True) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    if not adds_bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    return tokenizer


def chatted(row: dict[str, Any], tokenizer: Any = None, **changes: Any) -> list[tuple[str, str, float]]:
    found = settings(**{"type": "pair", **changes})
    examples = tokenize([row], found, tokenizer or chat_tokenizer(), max_length=200, too_long="error")
    (group,) = responses_of(examples)
    return group


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)]


def test_dialogues_are_cut_before_the_last_answer() -> None:
    row = {"chosen": f"{TALK} See you", "rejected": f"{TALK} No"}
    (found,) = responses_of(tokens_of([row], type="pair", layout="dialogue", max_length=200))
    assert found == [(f"{BOS}{TALK}", f" See you{EOS}", 1.0), (f"{BOS}{TALK}", f" No{EOS}", 0.0)]
    examples = tokens_of([row], layout="dialogue", completion="{rejected}", max_length=200)
    assert text_of(examples, 0) == f"{BOS}{TALK} No{EOS}" and examples.group_starts is None


@pytest.mark.parametrize("adds_bos", [True, False])
def test_messages_are_written_by_the_chat_template(adds_bos: bool) -> None:
    """BOS, which template and tokenizer both add, is there once, and so is EOS; nothing is after it."""
    row = {"chosen": turns("q", "a", "r", "good"), "rejected": turns("q", "a", "r", "bad")}
    prompt = f"{BOS}[user]q{EOS}\n[assistant]a{EOS}\n[user]r{EOS}\n[assistant]"
    found = chatted(row, chat_tokenizer(adds_bos=adds_bos), layout="messages")
    assert found == [(prompt, f"good{EOS}", 1.0), (prompt, f"bad{EOS}", 0.0)]


def test_columns_as_one_turn_of_a_chat() -> None:
    found = chatted(PAIR, chat=True)
    assert found == [
        (f"{BOS}[user]ab:{EOS}\n[assistant]", f"cd{EOS}", 1.0),
        (f"{BOS}[user]ab:{EOS}\n[assistant]", f"e{EOS}", 0.0),
    ]


def test_messages_in_lists_of_responses() -> None:
    row = {"responses": [turns("q", "a"), turns("q", "b")], "scores": [1, 2]}
    assert [response for _, response, _ in chatted(row, type="ranked", layout="messages")] == [f"b{EOS}", f"a{EOS}"]


def test_template_that_writes_something_before_the_answer() -> None:
    """Such as an empty thought: it belongs to what the model has to write."""
    thinking = TEMPLATE.replace("]{{ turn['content']", "]{{ '<t>' if turn['role'] == 'assistant' }}{{ turn['content']")
    row = {"chosen": turns("q", "a"), "rejected": turns("q", "b")}
    assert chatted(row, chat_tokenizer(thinking), layout="messages")[0] == (
        f"{BOS}[user]q{EOS}\n[assistant]",
        f"<t>a{EOS}",
        1.0,
    )


@pytest.mark.parametrize(
    ("changes", "key"), [({"layout": "messages"}, "dataset.layout=messages"), ({"chat": True}, "dataset.chat=true")]
)
def test_tokenizer_without_a_chat_template(changes: dict[str, Any], key: str) -> None:
    row = PAIR if "chat" in changes else {"chosen": turns("q", "a"), "rejected": turns("q", "b")}
    with pytest.raises(UserError) as error:
        chatted(row, chat_tokenizer(None), **changes)
    assert str(error.value).startswith(f"{key}: needs a chat template, and the tokenizer has none;")
    with pytest.raises(UserError, match=f"{key}: the tokenizer's chat template changes a prompt by the answer"):
        chatted(row, chat_tokenizer("{{ messages | length }}{{ messages[-1]['content'] }}"), **changes)


# Rows that cannot be used ------------------------------------------------------------------------------------

NO_ANSWER = f"{TALK} a\n\nHuman: b"
BAD = [
    ({**PAIR, "rejected": "cd"}, {"type": "pair"}, "chosen equals rejected"),
    ({**PAIR, "chosen": ""}, {"type": "pair"}, "an empty response"),
    ({**PAIR, "rejected": " \n"}, {"type": "pair"}, "an empty response"),
    ({**ROWS[0], "answer": ""}, {"type": "negative"}, "an empty response"),
    ({**ROWS[0], "label": "good"}, {"type": "labelled"}, "a label that is neither true nor false"),
    ({**ROWS[0], "label": float("nan")}, {"type": "labelled"}, "a label that is neither true nor false"),
    ({**ROWS[0], "label": -1}, {"type": "labelled"}, "a label that is neither true nor false"),
    ({**SCORED, "scores": [1, float("nan"), 2]}, {"type": "ranked"}, "a score that is not a number"),
    ({**SCORED, "scores": [1, None, 2]}, {"type": "ranked"}, "a score that is not a number"),
    ({**SCORED, "scores": [1, "2", 3]}, {"type": "ranked"}, "a score that is not a number"),
    ({**SCORED, "scores": [1, 1, 1]}, {"type": "ranked"}, "all scores are equal"),
    ({**SCORED, "scores": [1, 2]}, {"type": "ranked"}, "fewer than two responses, or not a score for each"),
    ({**SCORED, "responses": ["x"], "scores": [1]}, {"type": "ranked"}, "fewer than two responses, or not a score"),
    ({**SCORED, "responses": ["x", "", "y"]}, {"type": "ranked"}, "an empty response"),
    ({**SCORED, "responses": ["x", None, "y"]}, {"type": "ranked"}, "a response that is not text"),
    ({**LISTS, "rejected": []}, {"type": "groups"}, "no response on one side"),
    ({**LISTS, "rejected": ["c", "cd"]}, {"type": "groups"}, "chosen equals rejected"),
    (
        {"chosen": f"{TALK} a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
        {"type": "pair", "layout": "dialogue"},
        "the responses have different prompts",
    ),
    ({"chosen": f"{TALK} a", "rejected": TALK}, {"type": "pair", "layout": "dialogue"}, "an empty response"),
    ({"chosen": f"{TALK} a", "rejected": "b"}, {"type": "pair", "layout": "dialogue"}, "a dialogue that does not end"),
    ({"chosen": NO_ANSWER, "rejected": NO_ANSWER}, {"type": "pair", "layout": "dialogue"}, "a dialogue that does not"),
    (
        {"chosen": turns("q", "a"), "rejected": turns("p", "b")},
        {"type": "pair", "layout": "messages"},
        "different prom",
    ),
    ({"chosen": turns("q", "a"), "rejected": turns("q", " ")}, {"type": "pair", "layout": "messages"}, "an empty resp"),
    (
        {"chosen": turns("q", "a"), "rejected": turns("q")},
        {"type": "pair", "layout": "messages"},
        "do not end with the",
    ),
    ({"chosen": "text", "rejected": "text"}, {"type": "pair", "layout": "messages"}, "not a list of role and content"),
]


def good(changes: dict[str, Any]) -> dict[str, Any]:
    if changes.get("layout") == "dialogue":
        return {"chosen": f"{TALK} yes", "rejected": f"{TALK} no"}
    if changes.get("layout") == "messages":
        return {"chosen": turns("q", "yes"), "rejected": turns("q", "no")}
    return {"groups": LISTS, "ranked": SCORED, "pair": PAIR}.get(changes["type"], {**ROWS[0], "label": True})


@pytest.mark.parametrize(("row", "changes", "reason"), BAD)
def test_rows_that_cannot_be_used_are_counted_by_reason_and_told(
    caplog: pytest.LogCaptureFixture, row: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    dropped: collections.Counter[str] = collections.Counter()
    found, tokenizer, fine = settings(**changes), chat_tokenizer(), good(changes)
    with caplog.at_level(logging.WARNING):
        examples = tokenize([row, fine, row], found, tokenizer, max_length=200, too_long="error", dropped=dropped)
    assert list(dropped.values()) == [2] and reason in next(iter(dropped))
    (told,) = (record.getMessage() for record in caplog.records)
    assert told == f"dataset=data.jsonl: 2 of 3 rows are left out; 2: {next(iter(dropped))}"
    alone = tokenize([fine], found, tokenizer, max_length=200, too_long="error")
    assert responses_of(examples) == responses_of(alone)
    with pytest.raises(UserError) as error:
        tokenize([row], found, tokenizer, max_length=200, too_long="error")
    assert str(error.value).startswith("dataset=data.jsonl: no row can be used (1 of 1 rows are left out; 1: ")
    assert reason in str(error.value)


def test_a_row_without_a_value_is_named_whatever_the_type() -> None:
    with pytest.raises(UserError, match=r"dataset\.rejected='{rejected}': example 1 has no 'rejected'"):
        tokens_of([PAIR, {**PAIR, "rejected": None}], type="pair")
    with pytest.raises(UserError, match=r"dataset\.scores='{scores}': example 0 has no 'scores'"):
        tokens_of([{**SCORED, "scores": None}], type="ranked")


def test_text_in_place_of_a_list_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(UserError, match=r"dataset\.chosen='{chosen}': must be a column of lists, got 'cd'"):
        tokens_of([PAIR], type="groups")


LONG = {"prompt": "x" * 20 + ":", "chosen": "cd", "rejected": "e"}
LONG_ANSWERS = {"prompt": "x:", "chosen": "y" * 20 + "1", "rejected": "y" * 20 + "2"}


@pytest.mark.parametrize(
    ("too_long", "row", "reason"),
    [
        ("drop", LONG, "longer than training.max_length"),
        ("drop", {**PAIR, "rejected": "e" * 20}, "longer than training.max_length"),
        ("truncate", LONG, "a prompt that leaves no room for a response in training.max_length"),
        ("truncate", LONG_ANSWERS, "responses of the same tokens, as far as training.max_length"),
    ],
)
def test_groups_that_are_too_long_are_left_out_whole(too_long: str, row: dict[str, Any], reason: str) -> None:
    dropped: collections.Counter[str] = collections.Counter()
    found = settings(type="pair")
    examples = tokenize([row, PAIR], found, TOKENIZER, max_length=10, too_long=too_long, dropped=dropped)
    assert dropped == {reason: 1}
    assert [[response for _, response, _ in group] for group in responses_of(examples)] == [[f"cd{EOS}", f"e{EOS}"]]
    with pytest.raises(
        UserError, match=rf"training\.max_length=10: no example .* carries loss \(1 of 1 .*; 1: {reason}"
    ):
        tokenize([row], found, TOKENIZER, max_length=10, too_long=too_long)


def test_groups_that_are_too_long_are_cut_or_refused() -> None:
    (found,) = responses_of(tokens_of([{**PAIR, "chosen": "cdefgh"}], type="pair", max_length=8, too_long="truncate"))
    assert [response for _, response, _ in found] == ["cdef", f"e{EOS}"]
    with pytest.raises(UserError, match=r"training\.max_length=8: example 1 has 25 tokens"):
        tokens_of([PAIR, LONG], type="pair", max_length=8)


def test_texts_are_those_of_the_rows_that_are_used() -> None:
    rows = [{"talk": f"{TALK} yes"}, {"talk": "nobody answers"}, {"talk": f"{TALK} no"}]
    found = settings(layout="dialogue", completion="{talk}")
    assert texts(rows, found, TOKENIZER) == [(TALK, " yes"), (TALK, " no")]
    examples = tokenize(rows, found, TOKENIZER, max_length=200, too_long="error")
    assert len(examples) == 2


@pytest.mark.skipif("RETABLE_DATA" not in os.environ, reason="RETABLE_DATA does not say where the real data is")
def test_published_pairs_of_dialogues(caplog: pytest.LogCaptureFixture) -> None:
    """Anthropic's harmless-base test pairs: 9 of the 2,312 cannot be used, 5 for their prompts, 4 for empty answers."""
    found = settings(
        source="hub", path="Anthropic/hh-rlhf", data_dir="harmless-base", split="test", type="pair", layout="dialogue",
        data_root=os.environ["RETABLE_DATA"],
    )  # fmt: skip
    rows = load_rows(found)
    dropped: collections.Counter[str] = collections.Counter()
    examples = tokenize(rows, found, TOKENIZER, max_length=8192, too_long="error", dropped=dropped)
    assert len(rows) == 2312
    assert dropped == {"the responses have different prompts": 5, "an empty response": 4}
    assert examples.group_count == 2303 and examples.labels is not None
    assert examples.labels.reshape(-1, 2).tolist() == [[1.0, 0.0]] * 2303
    for index in (0, 1, 4604, 4605):
        assert TOKENIZER.decode(examples.prompt(index)).endswith("\n\nAssistant:")
    first = rows[0]
    assert text_of(examples, 0) == f"{BOS}{first['chosen']}{EOS}"
    assert text_of(examples, 1) == f"{BOS}{first['rejected']}{EOS}"
    # By hand, from the published file.
    path = Path(os.environ["RETABLE_DATA"]) / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    with gzip.open(path, "rt") as file:
        pairs = [json.loads(line) for line in file]
    cut = [[side.rsplit("\n\nAssistant:", 1) for side in (pair["chosen"], pair["rejected"])] for pair in pairs]
    assert sum(a[0] != b[0] for a, b in cut) == 5
    assert sum(not a[1].strip() or not b[1].strip() for a, b in cut) == 4


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


def test_split_of_the_mini_world(folder: Path) -> None:
    world = {"source": "mini_world", "size": 20, "path": None}
    prompts = {
        split: {row["prompt"] for row in load_rows(settings(**world, skill="copy", split=split))}
        for split in ("train", "test")
    }
    assert not prompts["train"] & prompts["test"]
    with pytest.raises(UserError, match=r"dataset\.skill=pretraining: there is only dataset\.split=train, got test"):
        load_rows(settings(**world, skill="pretraining", split="test"))
    with pytest.raises(
        UserError, match=r"dataset\.skill=preference_pairs: split must be one of train, validation, test"
    ):
        load_rows(settings(**world, skill="preference_pairs", split="tset", type="pair"))


def test_skills_of_every_world_take_their_options(folder: Path) -> None:
    world = {"source": "mini_world", "size": 300, "path": None}
    adding = settings(**world, skill="addition_demonstrations", options={"marked": 0, "digits": 1})
    assert all(len(row["prompt"]) == 4 and "#" not in row["answer"] for row in load_rows(adding))
    with pytest.raises(UserError, match=r"^dataset\.skill=programs: size=300: must be <= "):
        load_rows(settings(**world, skill="programs", options={"shown": 1}))
    assert len(load_rows(settings(**world, skill="programs_demonstrations", options={"shown": 1}))) == 300


@pytest.mark.parametrize("name", ["harmless-base-test.jsonl", "harmless-base/test.jsonl"])
def test_local_copy_of_a_folder_of_a_hub_set_is_read(folder: Path, name: str) -> None:
    path = folder / "data" / "hh-rlhf" / name
    path.parent.mkdir(parents=True)
    write(path, [{"chosen": "x", "rejected": "y"}])
    write(folder / "data" / "hh-rlhf" / "test.jsonl", [{"chosen": "of all", "rejected": "folders"}])
    found = {"source": "hub", "path": "Anthropic/hh-rlhf", "data_root": "data", "type": "pair", "split": "test"}
    one = load_rows(settings(**found, layout="dialogue", data_dir="harmless-base"))
    assert [dict(row) for row in one] == [{"chosen": "x", "rejected": "y"}]
    whole = load_rows(settings(**found, layout="dialogue"))
    assert [row["chosen"] for row in whole] == ["of all"]


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


def first_letter(row: dict[str, Any]) -> str:
    """Of a row's prompt."""
    return str(row["prompt"][0])


def test_a_problem_is_its_prompt_with_eos_where_an_answer_begins() -> None:
    """What an answer is checked against is no token of it."""
    for changes in ({}, {"add_eos": False}):
        examples = tokens_of(ROWS, type="problem", **changes)
        assert [text_of(examples, index) for index in range(2)] == [f"{BOS}ab:{EOS}", f"{BOS}x:{EOS}"]
        assert [TOKENIZER.decode(examples.prompt(index)) for index in range(2)] == [f"{BOS}ab:", f"{BOS}x:"]
        assert examples.target_tokens == 2 and examples.labels is None
    assert texts(ROWS, settings(type="problem"), TOKENIZER) == [("ab:", "cd"), ("x:", "yz!")]


def test_a_problem_in_a_chat_ends_where_the_answer_begins() -> None:
    changes = settings(type="problem", chat=True)
    tokenizer = chat_tokenizer()
    examples = tokenize(ROWS, changes, tokenizer, max_length=200, too_long="error")
    assert tokenizer.decode(examples.prompt(0)) == f"{BOS}[user]ab:{EOS}\n[assistant]"
    assert texts(ROWS[:1], changes, tokenizer) == [("[user]ab:<eos>\n[assistant]", "cd")]


def test_what_an_answer_is_checked_against_may_be_made_of_the_row() -> None:
    made = settings(type="problem", reference="tests.runners.test_data.first_letter")
    assert texts(ROWS, made, TOKENIZER) == [("ab:", "a"), ("x:", "x")]
    broken = settings(type="problem", reference="tests.runners.test_data.first_letter", prompt="{answer}")
    with pytest.raises(UserError, match=r"dataset\.reference=tests\.runners\.test_data\.first_letter: KeyError"):
        texts([{"answer": "1"}], broken, TOKENIZER)
