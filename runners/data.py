"""From a data set to token sequences: load, fill the template, tokenise, mask."""

import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals import mini_world
from evals.local_data import local_copy, reader
from methods.examples import Examples
from runners.errors import UserError, nearest
from runners.progress import progress

_CHUNK = 1000  # examples tokenised at once


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
    for key in ("prompt", "completion"):
        for column in _columns_of(key, settings[key]):
            if column not in columns:
                raise UserError(
                    f"dataset.{key}={settings[key]!r}: the data set has no column {column!r}"
                    f"{nearest(column, columns)}; it has {', '.join(columns)}"
                )
    return rows


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
        if skill == "pretraining":
            items = mini_world.pretraining_items(size, seed)
        else:
            items = mini_world.items(skill, "train", size, seed)
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
    copy = local_copy(settings["path"], settings["data_root"])
    if copy:
        path = copy[settings["split"]]
        return _load(reader(path), data_files=str(path), split="train")
    return _load(settings["path"], settings["name"], split=settings["split"], revision=settings["revision"])


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


def texts(rows: Iterable[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Prompt and completion of each row, by the templates of `dataset:` settings."""
    return [(settings["prompt"].format_map(row), settings["completion"].format_map(row)) for row in rows]


def tokenize(
    rows: Iterable[Mapping[str, Any]], settings: Mapping[str, Any], tokenizer: Any, *, max_length: int, too_long: str
) -> Examples:
    """Fill the template of each row and turn it into a token sequence with a target mask.

    Prompt and completion are tokenised as one text, as evaluation does; a token carries loss when any of its
    characters belong to the completion (all but the first with `loss_on: all`), and EOS does.

    Raises:
        UserError: a row without a value for the template, a prompt that doubles BOS, a sequence longer than
            `max_length` (unless `too_long` says truncate or drop), nothing left to train on.
    """
    rows = list(rows)
    tokens: list[NDArray[np.int32]] = []
    targets: list[int] = []
    dropped = 0
    with progress("tokenising", len(rows)) as advance:
        for begin in range(0, len(rows), _CHUNK):
            chunk = rows[begin : begin + _CHUNK]
            _check_filled(chunk, begin, settings)
            prompts = [settings["prompt"].format_map(row) for row in chunk]
            texts = [
                prompt + settings["completion"].format_map(row) for prompt, row in zip(prompts, chunk, strict=True)
            ]
            encoded = tokenizer(texts, return_offsets_mapping=True, return_attention_mask=False)
            for offset, prompt in enumerate(prompts):
                ids, spans = encoded["input_ids"][offset], encoded["offset_mapping"][offset]
                _check_bos(ids, tokenizer, texts[offset])
                if settings["add_eos"] and ids[-1:] != [tokenizer.eos_token_id]:
                    ids = [*ids, tokenizer.eos_token_id]
                if settings["loss_on"] == "all":
                    target = 1
                else:
                    target = next((place for place, (_, end) in enumerate(spans) if end > len(prompt)), len(spans))
                if len(ids) > max_length:
                    if too_long == "error":
                        raise UserError(
                            f"training.max_length={max_length}: example {begin + offset} has {len(ids)} tokens; "
                            "raise it, or set training.too_long to truncate or drop"
                        )
                    if too_long == "drop":
                        dropped += 1
                        continue
                    ids = ids[:max_length]
                tokens.append(np.asarray(ids, dtype=np.int32))
                targets.append(max(target, 1))
            advance(len(chunk))
    examples = Examples.of(tokens, targets)
    if not examples.target_tokens:
        raise UserError(
            f"training.max_length={max_length}: no example has a token that carries loss "
            f"({dropped} of {len(rows)} dropped)"
        )
    return examples


def _check_filled(rows: Sequence[Mapping[str, Any]], first: int, settings: Mapping[str, Any]) -> None:
    for key in ("prompt", "completion"):
        for column in _columns_of(key, settings[key]):
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
