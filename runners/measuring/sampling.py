"""Prompts to sample from, and what a model in memory continues them with, dealt among the processes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn

from methods.generation import Sampling, generate, prompt_tokens
from runners import preemption, processes
from runners.compose import RunSpec
from runners.data import load_rows, texts
from runners.engine import sum_over_processes
from runners.errors import UserError
from runners.models import context_length
from runners.progress import progress
from runners.start import Tell


@dataclass(frozen=True)
class Prompt:
    """A prompt of a data set.

    text: as it stands there (without what `dataset.chat` writes around it). ids: as the model is given it. answer: the
    first response of its row.
    """

    text: str
    ids: list[int]
    answer: str


@dataclass(frozen=True)
class Questions:
    """What the model continues. prompts: with the data set's answers. rows: how many the data set has."""

    prompts: list[Prompt]
    rows: int


def questions(spec: RunSpec, name: str, tokenizer: Any, parent: Path | None) -> Questions:
    """Load the prompts of `evaluation.NAME`; those that leave no room for an answer are left out.

    Args:
        spec: the run.
        name: of the settings, which have `dataset`, `prompts` and `max_new_tokens`.
        tokenizer: of the model.
        parent: folder of the run that the model comes from.

    Raises:
        UserError: the data cannot be used, or fewer than two prompts fit.
    """
    evaluation, key = spec.config["evaluation"], f"evaluation.{name}.dataset"
    settings = evaluation[name]
    longest = min(context_length(spec.config["model"], parent), evaluation["max_length"] or 2**31)
    try:
        rows = load_rows(settings["dataset"])
        asked = bounded(settings["prompts"], evaluation["limit"], len(rows))
        prompts = different_prompts(rows, settings["dataset"], tokenizer, longest - settings["max_new_tokens"], asked)
    except UserError as error:
        raise as_of(key, error) from error
    if len(prompts) < 2:
        raise UserError(
            f"{key}: needs at least two prompts that fit into {longest} tokens with {settings['max_new_tokens']} new "
            f"ones, got {len(prompts)}"
        )
    return Questions(prompts, len(rows))


def sampling_of(settings: Mapping[str, Any], tokenizer: Any) -> Sampling:
    """How the settings of an evaluation sample."""
    return Sampling(
        max_new_tokens=settings["max_new_tokens"],
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        stop=tuple(settings.get("stop") or ()),
    )


def bounded(wanted: int | None, limit: int | None, there: int) -> int:
    """How many are taken of `there`: as many as are wanted (None: all) and `evaluation.limit` lets, at least two."""
    return min(max(min(wanted or there, limit or there), 2), there)


def as_of(key: str, error: UserError) -> UserError:
    """An error about the training data, as one about data under another key."""
    text = re.sub(r"^dataset\b", key, str(error)).replace("training.max_length", "evaluation.max_length")
    return UserError(text)


def different_prompts(
    rows: Iterable[Mapping[str, Any]], dataset: Mapping[str, Any], tokenizer: Any, room: int, count: int
) -> list[Prompt]:
    """The first `count` prompts that differ, of `dataset:` settings, and have at most `room` tokens.

    Raises:
        UserError: the settings do not fit the data.
    """
    found: list[Prompt] = []
    seen: set[str] = set()
    for number, row in enumerate(rows):
        for written, _ in texts([row], dataset, tokenizer, number):
            if written in seen:
                continue
            seen.add(written)
            (ids,) = prompt_tokens(tokenizer, [written])
            if 0 < len(ids) <= room:
                ((text, answer),) = texts([row], {**dataset, "chat": False}, tokenizer)
                found.append(Prompt(text, ids, answer))
        if len(found) == count:
            break
    return found


def sampled(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    sampling: Sampling,
    batch_size: int,
    seed: int,
    what: str,
    tell: Tell,
    tokenizer: Any = None,
) -> list[list[int]]:
    """Continue prompts, with EOS where they come to one; the same on every process, and for any number of them.

    Args:
        model: whole or sharded.
        prompt_ids: none of them empty.
        sampling: how.
        batch_size: prompts continued at a time; sampled tokens depend on it.
        seed: which samples.
        what: for the progress bar.
        tell: how far it is.
        tokenizer: needed for stop texts.

    Raises:
        Preempted: told to stop.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    lockstep = isinstance(model, deepspeed.DeepSpeedEngine) and world > 1
    begins = range(0, len(prompt_ids), batch_size)
    tokens = torch.zeros(len(prompt_ids), sampling.max_new_tokens, dtype=torch.int64)
    lengths = torch.zeros(len(prompt_ids), dtype=torch.int64)
    with progress(what, len(begins)) as advance:
        for turn in range(-(-len(begins) // world)):
            if processes.any_rank(preemption.requested()):
                raise processes.stop("in its evaluation")
            # Equally many turns for all, since a sharded model wants them in step.
            place = turn * world + rank
            number = min(place, len(begins) - 1)
            chunk = prompt_ids[begins[number] : begins[number] + batch_size]
            drawn = seed * len(begins) + number
            written = generate(model, chunk, sampling, drawn, lockstep=lockstep, tokenizer=tokenizer)
            if place < len(begins):
                for at, continuation in enumerate(written, begins[number]):
                    tokens[at, : len(continuation)] = torch.tensor(continuation)
                    lengths[at] = len(continuation)
            advance(min(world, len(begins) - turn * world))
            tell(min((turn + 1) * world, len(begins)), len(begins))
    if world > 1:
        for tensor in (tokens, lengths):
            sum_over_processes(tensor)
    return [row[:length].tolist() for row, length in zip(tokens, lengths.tolist(), strict=True)]


def decoded(continuations: Iterable[Sequence[int]], tokenizer: Any) -> list[str]:
    """The text of continuations, without EOS and other special tokens."""
    return [
        str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for tokens in continuations
    ]
