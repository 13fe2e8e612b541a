"""From a data set to token sequences: load, fill the template, tokenise, mask."""

import collections
import contextlib
import logging
import math
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals import mini_world
from evals.local_data import local_copy, reader
from evals.rewards.load import dotted_function
from evals.worlds import WORLDS
from methods.examples import Examples
from methods.generation import adds_bos, chat_prompt
from runners.errors import UserError, nearest
from runners.progress import progress
from runners.schema import RESPONSES

log = logging.getLogger(__name__)

_CHUNK = 1000  # examples tokenised at once

# Before what each side says, in a dialogue as Anthropic publishes them.
_ASSISTANT, _HUMAN = "\n\nAssistant:", "\n\nHuman:"


def load_rows(settings: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The raw rows of `dataset:` settings, with the columns its template may use.

    Raises:
        UserError: the set cannot be loaded, is empty, or lacks a column of the template.
    """
    rows = _SOURCES[settings["source"]](settings)
    if settings["where"]:
        rows = _only(rows, settings)
    if settings["limit"] is not None:
        rows = (
            rows[: settings["limit"]]
            if isinstance(rows, list)
            else rows.select(range(min(settings["limit"], len(rows))))
        )
    if len(rows) == 0:
        reason = (
            f"no row has the values of dataset.where={settings['where']}"
            if settings["where"]
            else "the data set is empty"
        )
        raise UserError(f"dataset={settings['path'] or settings['skill']}: {reason}")
    columns = list(rows[0])
    for key, column in _needed_columns(settings):
        if column not in columns:
            raise UserError(
                f"dataset.{key}={settings[key]!r}: the data set has no column {column!r}"
                f"{nearest(column, columns)}; it has {', '.join(columns)}"
            )
    return rows


def _needed_columns(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each key of `dataset:` that asks for a column, with the column."""
    templates, columns = ((), ()) if settings.get("reference") else RESPONSES[settings["type"]]
    if settings["layout"] == "columns":  # else the prompt stands before the answer, in one column
        templates = ("prompt", *templates)
    asked = [(key, column) for key in templates for column in _columns_of(key, settings[key])]
    return asked + [(key, _column(key, settings)) for key in columns]


def _column(key: str, settings: Mapping[str, Any]) -> str:
    """The one column that a key names, as `{column}`."""
    name: str = settings[key].removeprefix("{").removesuffix("}")
    return name


def _only(rows: Any, settings: Mapping[str, Any]) -> Any:
    """The rows that have every value `dataset.where` asks for."""
    wanted = settings["where"]
    columns = list(rows[0]) if len(rows) else []
    for column in wanted:
        if columns and column not in columns:
            raise UserError(
                f"dataset.where={wanted}: the data set has no column {column!r}{nearest(column, columns)}; "
                f"it has {', '.join(columns)}"
            )

    def fits(row: Mapping[str, Any]) -> bool:
        return all(row[column] == value for column, value in wanted.items())

    return [row for row in rows if fits(row)] if isinstance(rows, list) else rows.filter(fits)


def _mini_world(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    skill, size, seed = settings["skill"], settings["size"], settings["seed"]
    try:
        if skill in WORLDS:
            found: list[dict[str, Any]] = WORLDS[skill].rows(
                skill, settings["split"], size, seed, **settings["options"] or {}
            )
            return found
        if skill != "pretraining":
            items = mini_world.items(skill, settings["split"], size, seed)
        elif settings["split"] == "train":
            items = mini_world.pretraining_items(size, seed)
        else:
            raise ValueError(f"there is only dataset.split=train, got {settings['split']}")
    except ValueError as error:
        raise UserError(f"dataset.skill={skill}: {error}") from error
    return [{"prompt": item.prompt, "answer": item.answer, "part": item.part} for item in items]


def _file(settings: Mapping[str, Any]) -> Any:
    path = Path(settings["path"])
    try:
        return _load(reader(path), data_files=str(path), split="train")
    except ValueError as error:
        raise UserError(str(error)) from error


def _hub(settings: Mapping[str, Any]) -> Any:
    where, split = settings["data_dir"], settings["split"]
    copy = local_copy(settings["path"], settings["data_root"], where)
    if copy:
        return _load(reader(copy[split]), data_files=str(copy[split]), split="train")
    return _load(settings["path"], settings["name"], split=split, revision=settings["revision"], data_dir=where)


def _load(path: str, *words: Any, **options: Any) -> Any:
    import datasets

    named = options.get("data_files", path)
    try:
        return datasets.load_dataset(path, *words, **options)
    except StopIteration as error:  # of a file without rows
        raise UserError(f"dataset.path={named}: the data set is empty") from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if "corresponds to no data" in str(error):
            raise UserError(f"dataset.path={named}: the data set is empty") from error
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"dataset.path={named}: cannot be loaded: {reason}") from error


_SOURCES = {"mini_world": _mini_world, "file": _file, "hub": _hub}


def _columns_of(key: str, template: str) -> list[str]:
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"dataset.{key}={template!r}: {error} (a literal brace is written twice)") from error
    for name in fields:
        if not name or any(sign in name for sign in ".["):  # which `str.format` would follow into the value
            raise UserError(
                f"dataset.{key}={template!r}: {{{name}}} must be a column's name (a literal brace is written twice)"
            )
    return fields


@dataclass(frozen=True)
class _Responses:
    """What a row says: a prompt, the responses to it, and what is said of each (None: nothing)."""

    prompt: str
    responses: list[str]
    labels: list[float] | None = None


class _BadRow(Exception):
    """A row that cannot be used; says why."""


def texts(
    rows: Iterable[Mapping[str, Any]], settings: Mapping[str, Any], tokenizer: Any, first: int = 0
) -> list[tuple[str, str]]:
    """Prompt and completion of each row that can be used, by `dataset:` settings of type `completion`.

    Args:
        rows: of the data set.
        first: number of the first of them, for messages.
    """
    found = []
    for place, row in enumerate(rows, first):
        _check_filled([row], place, settings)
        with contextlib.suppress(_BadRow):
            read = _read(row, settings, tokenizer)
            found.append((read.prompt, read.responses[0]))
    return found


def _read(row: Mapping[str, Any], settings: Mapping[str, Any], tokenizer: Any) -> _Responses:
    """What a row says, in the layout and of the type that `dataset:` states.

    Raises:
        _BadRow: with the reason.
    """
    kind = settings["type"]
    labels: list[float] | None = None
    answers: list[Any]
    if kind == "pair":
        answers, labels = [_filled("chosen", row, settings), _filled("rejected", row, settings)], [1.0, 0.0]
    elif kind == "groups":
        chosen, rejected = (_listed(key, row, settings) for key in ("chosen", "rejected"))
        if not chosen or not rejected:
            raise _BadRow("no response on one side")
        answers, labels = chosen + rejected, [1.0] * len(chosen) + [0.0] * len(rejected)
    elif kind == "ranked":
        answers, scores = (_listed(key, row, settings) for key in ("responses", "scores"))
        if len(answers) < 2 or len(answers) != len(scores):
            raise _BadRow("fewer than two responses, or not a score for each")
        if not all(_is_number(score) for score in scores):
            raise _BadRow("a score that is not a number")
        order = sorted(range(len(scores)), key=lambda i: -scores[i])  # the best first
        answers, labels = [answers[i] for i in order], [float(scores[i]) for i in order]
        if labels[0] == labels[-1]:
            raise _BadRow("all scores are equal")
    elif settings.get("reference"):
        answers = [_referred(row, settings["reference"])]
    else:
        answers = [_filled("completion", row, settings)]
        if kind == "negative":
            labels = [0.0]
        if kind == "labelled":
            labels = [_label(row[_column("label", settings)])]
    read = [_split(answer, row, settings) for answer in answers]
    if any(prompt != read[0][0] for prompt, _ in read):
        raise _BadRow("the responses have different prompts")
    responses = [response for _, response in read]
    if kind != "completion" and not all(response.strip() for response in responses):
        raise _BadRow("an empty answer" if kind == "problem" else "an empty response")
    if kind == "pair" and responses[0] == responses[1]:
        raise _BadRow("chosen equals rejected")
    if kind == "groups" and sorted(responses[: len(chosen)]) == sorted(responses[len(chosen) :]):
        raise _BadRow("chosen equals rejected")
    prompt = read[0][0]
    if isinstance(prompt, str):
        return _Responses(prompt, responses, labels)
    if kind == "problem":  # the answer is for a reward alone
        return _Responses(_chat(prompt, "", settings, tokenizer)[0], responses)
    written = [_chat(prompt, response, settings, tokenizer) for response in responses]
    return _Responses(written[0][0], [response for _, response in written], labels)


def _referred(row: Mapping[str, Any], path: str) -> str:
    """What a function makes of a row to check answers against."""
    try:
        return str(dotted_function(path, f"dataset.reference={path}")(row))
    except (ValueError, KeyError, SyntaxError) as error:
        raise UserError(f"dataset.reference={path}: {type(error).__name__}: {error}") from error


def _label(value: Any) -> float:
    if isinstance(value, bool) or value in (0, 1):
        return float(value)
    raise _BadRow("a label that is neither true nor false")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _filled(key: str, row: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """A template filled in; of a layout with messages what the one column holds."""
    if settings["layout"] == "messages":
        return row[_column(key, settings)]
    return settings[key].format_map(row)


def _listed(key: str, row: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Any]:
    """What a column of lists holds.

    Raises:
        UserError: no list; of a string the letters would be the responses.
    """
    found = row[_column(key, settings)]
    if not isinstance(found, list | tuple):
        raise UserError(f"dataset.{key}={settings[key]!r}: must be a column of lists, got {str(found)[:40]!r}")
    return list(found)


def _split(answer: Any, row: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str | list[Any], str]:
    """Prompt and response of one answer, by the layout; a prompt in messages, where a chat template is to write it."""
    if settings["layout"] == "messages":
        turns = answer if isinstance(answer, list) else []
        if not turns or not all(isinstance(turn, Mapping) and isinstance(turn.get("content"), str) for turn in turns):
            raise _BadRow("messages that are not a list of role and content")
        if turns[-1].get("role") != "assistant" or len(turns) < 2:
            raise _BadRow("messages that do not end with the assistant's answer")
        return turns[:-1], turns[-1]["content"]
    if not isinstance(answer, str):
        raise _BadRow("a response that is not text")
    if settings["layout"] == "dialogue":
        before, turn, after = answer.rpartition(_ASSISTANT)
        if not turn or _HUMAN in after:
            raise _BadRow("a dialogue that does not end with the assistant's answer")
        return before + turn, after
    prompt = settings["prompt"].format_map(row)
    return ([{"role": "user", "content": prompt}] if settings["chat"] else prompt), answer


def _chat(prompt: list[Any], response: str, settings: Mapping[str, Any], tokenizer: Any) -> tuple[str, str]:
    """Prompt and response as the tokenizer's chat template writes them."""
    key = "dataset.chat=true" if settings["chat"] else "dataset.layout=messages"
    if tokenizer.chat_template is None:
        raise UserError(
            f"{key}: needs a chat template, and the tokenizer has none; take a model that was trained with one, or set "
            "model.tokenizer to one that has it"
        )
    before = chat_prompt(tokenizer, prompt)
    answered = [*prompt, {"role": "assistant", "content": response}]
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    if adds_bos(tokenizer):
        whole = whole.removeprefix(tokenizer.bos_token)
    if not whole.startswith(before):
        raise UserError(f"{key}: the tokenizer's chat template changes a prompt by the answer after it")
    return before, whole[len(before) :].rstrip("\n")


def tokenize(
    rows: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    tokenizer: Any,
    *,
    max_length: int,
    too_long: str,
    dropped: collections.Counter[str] | None = None,
) -> Examples:
    """Fill the template of each row and turn it into token sequences with a target mask.

    Prompt and response are tokenised as one text, as evaluation does; a token carries loss when any of its characters
    belong to the response (all but the first with `loss_on: all`), and EOS does. The responses of a row are a group.
    A problem is its prompt, with EOS in the place of a response.

    Args:
        dropped: counts the rows that were left out, by reason.

    Raises:
        UserError: a row without a value for the template, a prompt that doubles BOS, a sequence longer than
            `max_length` (unless `too_long` says truncate or drop), nothing left to train on.
    """
    rows = list(rows)
    dropped = collections.Counter() if dropped is None else dropped
    grouped = settings["type"] not in ("completion", "problem")
    tokens: list[NDArray[np.int32]] = []
    targets: list[int] = []
    sizes: list[int] = []
    labels: list[float] = []
    with progress("tokenising", len(rows)) as advance:
        for begin in range(0, len(rows), _CHUNK):
            chunk = rows[begin : begin + _CHUNK]
            _check_filled(chunk, begin, settings)
            for number, read, sequences in _tokenized(chunk, begin, settings, tokenizer, dropped):
                longest = max(len(ids) for ids, _ in sequences)
                if longest > max_length:
                    if too_long == "error":
                        raise UserError(
                            f"training.max_length={max_length}: example {number} has {longest} tokens; "
                            "raise it, or set training.too_long to truncate or drop"
                        )
                    if too_long == "drop":
                        dropped["longer than training.max_length"] += 1
                        continue
                    if grouped and any(target >= max_length for _, target in sequences):
                        dropped["a prompt that leaves no room for a response in training.max_length"] += 1
                        continue
                sequences = [(ids[:max_length], target) for ids, target in sequences]
                if len(sequences) > 1 and all(ids == sequences[0][0] for ids, _ in sequences):
                    dropped["responses of the same tokens, as far as training.max_length"] += 1
                    continue
                for ids, target in sequences:
                    tokens.append(np.asarray(ids, dtype=np.int32))
                    targets.append(target)
                sizes.append(len(sequences))
                labels += read.labels or []
            advance(len(chunk))
    examples = Examples.of(tokens, targets, sizes if grouped else None, labels if grouped else None)
    reasons = "".join(f"; {count}: {reason}" for reason, count in dropped.most_common())
    told = f"{sum(dropped.values())} of {len(rows)} rows are left out{reasons}"
    if not examples.target_tokens:
        if dropped and not any("max_length" in reason for reason in dropped):
            raise UserError(f"dataset={settings['path'] or settings['skill']}: no row can be used ({told})")
        raise UserError(f"training.max_length={max_length}: no example has a token that carries loss ({told})")
    if dropped:
        log.warning("dataset=%s: %s", settings["path"] or settings["skill"], told)
    return examples


def _tokenized(
    rows: Sequence[Mapping[str, Any]],
    first: int,
    settings: Mapping[str, Any],
    tokenizer: Any,
    dropped: collections.Counter[str],
) -> Iterable[tuple[int, _Responses, list[tuple[list[int], int]]]]:
    """Of each row that can be used: its number, what it says, and of each response token ids and the first target."""
    read = []
    for offset, row in enumerate(rows):
        try:
            read.append((first + offset, _read(row, settings, tokenizer)))
        except _BadRow as problem:
            dropped[str(problem)] += 1
    unanswered = settings["type"] == "problem"
    whole = [found.prompt + ("" if unanswered else response) for _, found in read for response in found.responses]
    if not whole:
        return
    encoded = tokenizer(whole, return_offsets_mapping=True, return_attention_mask=False)
    place = 0
    for number, found in read:
        sequences = []
        for _ in found.responses:
            ids, spans = encoded["input_ids"][place], encoded["offset_mapping"][place]
            _check_bos(ids, tokenizer, whole[place])
            if (settings["add_eos"] or unanswered) and ids[-1:] != [tokenizer.eos_token_id]:
                ids = [*ids, tokenizer.eos_token_id]
            if unanswered:  # where an answer will begin
                target = len(ids) - 1
            elif settings["loss_on"] == "all":
                target = 1
            else:
                target = next((at for at, (_, end) in enumerate(spans) if end > len(found.prompt)), len(spans))
            sequences.append((ids, max(target, 1)))
            place += 1
        yield number, found, sequences


def _check_filled(rows: Sequence[Mapping[str, Any]], first: int, settings: Mapping[str, Any]) -> None:
    for key, column in _needed_columns(settings):
        missing = next((place for place, row in enumerate(rows) if row[column] is None), None)
        if missing is not None:  # else the text would say "None"
            raise UserError(f"dataset.{key}={settings[key]!r}: example {first + missing} has no {column!r}")


def _check_bos(ids: Sequence[int], tokenizer: Any, text: str) -> None:
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        raise UserError(
            f"dataset.prompt: the text {text[:30]!r} begins with BOS {tokenizer.bos_token!r}, which the "
            "tokenizer adds itself; leave it out"
        )
