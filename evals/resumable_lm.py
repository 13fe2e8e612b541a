"""lm-eval's Hugging Face model, computed in fixed batches that are kept and shared out. Imports torch and lm-eval.

The requests of a call are cut into batches by a rule that sees nothing but the requests, the one that lm-eval itself
follows. So a batch has the same members, and thereby the same padding, whatever was computed before and whoever
computes it, and its answers can be kept in a journal and computed by any rank. lm-eval's own code computes each batch.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from evals.journal import Journal, Stopped
from evals.ranks import Ranks

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    # What lm-eval makes of a request to score: its strings (None for a window of a text), tokens of the prompt
    # and of the answer.
    Encoded = tuple[tuple[str, str] | None, list[int], list[int]]


def seed_all(seed: int) -> None:
    """Seeds the global random generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class _Outcome:
    """What a rank brings back from a round: the answers of its batch, if it had one, or why there are none."""

    answers: list[Any] | None
    failure: str | None
    stop: bool


class ResumableLM(HFLM):
    """`HFLM` that computes batch by batch, on all ranks, and knows which documents lost the beginning of their prompt.

    lm-eval cuts silently when it scores answers, or with a warning per batch that names no task.

    Args:
        batch_size: sequences per forward pass.
        seed: of sampled answers; each batch has a generator of its own.
        ranks: who computes together. `HFLM` itself, and with it lm-eval, takes itself to be alone.
        journal: where finished batches are found and kept; only rank 0 has one.
        lockstep: whether ranks must make the same forward passes, as those that share out a model's weights
            must.
        should_stop: asked between batches.
        on_progress: told how many batches of the present list of requests are done, and how many it has.
        show_bars: whether to show the same as a progress bar.

    Raises, when it is run:
        ValueError: the model cannot take a task's answer, even with no prompt at all.
        Stopped: a rank was told to stop.
        RuntimeError: another rank failed, or has other requests.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        seed: int,
        ranks: Ranks,
        journal: Journal | None,
        lockstep: bool,
        should_stop: Callable[[], bool] | None,
        on_progress: Callable[[int, int], None] | None,
        show_bars: bool,
        **arguments: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **arguments)
        self._fixed_batch_size = batch_size
        self._seed = seed
        self._ranks = ranks
        self._journal = journal
        self._lockstep = lockstep and ranks.count > 1
        self._should_stop = should_stop or (lambda: False)
        self._on_progress = on_progress or (lambda done, total: None)
        self._show_bars = show_bars
        self._cut: dict[str, set[int]] = defaultdict(set)
        self._scored: Sequence[Instance] | None = None

    # Requests -> batches ------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        # `_loglikelihood_tokens` gets the encoded requests, in this order, without the tasks they belong to.
        self._scored = requests
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            self._scored = None

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        # `HFLM` hands the windows of all texts to `_loglikelihood_tokens` in batches of its own; here they come at
        # once, to be shared out.
        self.batch_size_per_gpu = 2**62
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self.batch_size_per_gpu = self._fixed_batch_size

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], *arguments: Any, **keywords: Any
    ) -> list[tuple[float, bool]]:
        # The windows of a text (no requests are stored then) are never cut.
        if self._scored is not None:
            for request, (_, prompt_ids, answer_ids) in zip(self._scored, requests, strict=True):
                self._check_scored(request, len(prompt_ids), len(answer_ids))
        compute = super()._loglikelihood_tokens
        answers = self._in_batches(
            "loglikelihood",
            [request[1:] for request in requests],
            _scored_batches(requests, self._fixed_batch_size),
            lambda batch: compute([requests[index] for index in batch], disable_tqdm=True),
        )
        return [(logp, greedy) for logp, greedy in answers]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        lengths = [self._checked_prompt(request) for request in requests]
        compute = super().generate_until
        return self._in_batches(
            "generate_until",
            [request.args for request in requests],
            _generated_batches(requests, lengths, self._fixed_batch_size),
            lambda batch: compute([requests[index] for index in batch], disable_tqdm=True),
        )

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any) -> torch.Tensor:
        if self._lockstep:
            # A rank whose answers have all ended goes on with the forward passes that the others still need.
            settings["synced_gpus"] = True
        return super()._model_generate(context, max_length, stop, **settings)

    # Batches -> answers -------------------------------------------------------------------------------------

    def _in_batches(
        self,
        kind: str,
        contents: Sequence[Any],
        batches: Sequence[list[int]],
        compute: Callable[[list[int]], list[Any]],
    ) -> list[Any]:
        """The answers of requests, in their order.

        Batches that are still to do are dealt in rounds, one to each rank.

        Args:
            kind: of requests.
            contents: of each request, what its answer depends on, besides the model.
            batches: of each batch, the indices of its requests.
            compute: answers the requests of a batch.
        """
        ranks = self._ranks
        # The place tells apart batches of equal contents: several answers sampled to one prompt differ.
        keys = [
            _digest([self._seed, kind, number, [contents[index] for index in batch]])
            for number, batch in enumerate(batches)
        ]
        plans = ranks.exchange((_digest(keys), self._should_stop()))
        if len({plan for plan, _ in plans}) > 1:
            raise RuntimeError("evaluation: the ranks must have the same requests, but they differ")
        found = ranks.from_first(self._found(keys, batches))
        todo = [number for number, key in enumerate(keys) if key not in found]
        if todo and any(stop for _, stop in plans):
            raise Stopped(f"with {len(found)} of {len(keys)} batches done")

        bar = tqdm(total=len(keys), initial=len(found), desc=kind, unit="batch", disable=not self._show_bars)
        with bar:
            self._report(len(found), len(keys))
            for start in range(0, len(todo), ranks.count):
                dealt = todo[start : start + ranks.count]
                outcomes = self._round(dealt, keys, batches, compute)
                for number, outcome in zip(dealt, outcomes, strict=False):
                    found[keys[number]] = outcome.answers
                bar.update(len(dealt))
                self._report(len(found), len(keys))
                if len(found) < len(keys) and any(outcome.stop for outcome in outcomes):
                    raise Stopped(f"with {len(found)} of {len(keys)} batches done")
        # What comes next must not see how many batches were computed here.
        seed_all(self._seed)
        answers: list[Any] = [None] * len(contents)
        for key, batch in zip(keys, batches, strict=True):
            for index, answer in zip(batch, found[key], strict=True):
                answers[index] = answer
        return answers

    def _found(self, keys: Sequence[str], batches: Sequence[list[int]]) -> dict[str, Any]:
        """The answers that the journal has. Only those of rank 0 count."""
        if self._journal is None:
            return {}
        kept = {key: self._journal.get(key) for key in keys}
        sizes = dict(zip(keys, map(len, batches), strict=True))
        return {key: answers for key, answers in kept.items() if answers is not None and len(answers) == sizes[key]}

    def _round(
        self,
        dealt: Sequence[int],
        keys: Sequence[str],
        batches: Sequence[list[int]],
        compute: Callable[[list[int]], list[Any]],
    ) -> list[_Outcome]:
        """Computes one batch per rank, as far as they go, and keeps them. Returns the outcomes of all ranks."""
        ranks = self._ranks
        has_one = ranks.rank < len(dealt)
        answers, failure = None, None
        # In lockstep a rank without a batch must still make the forward passes.
        if has_one or self._lockstep:
            number = dealt[ranks.rank] if has_one else dealt[0]
            # Sampled answers depend on their batch alone.
            seed_all(int(keys[number][:15], 16))
            try:
                answers = compute(batches[number])
            except Exception as error:
                # The others are told, else they wait for this rank; in lockstep they already do.
                if self._lockstep:
                    raise
                failure = error
        outcomes = ranks.exchange(
            _Outcome(answers if has_one else None, repr(failure) if failure else None, self._should_stop())
        )
        if self._journal is not None:
            for number, outcome in zip(dealt, outcomes, strict=False):
                if outcome.answers is not None:
                    self._journal.add(keys[number], outcome.answers)
        if failure is not None:
            raise failure
        for rank, outcome in enumerate(outcomes):
            if outcome.failure is not None:
                raise RuntimeError(f"evaluation failed on rank {rank}: {outcome.failure}")
        return outcomes

    def _report(self, done: int, total: int) -> None:
        if self._ranks.rank == 0:
            self._on_progress(done, total)

    # Prompts that do not fit --------------------------------------------------------------------------------

    def cut_prompts(self, task: str) -> int:
        """The number of documents of a task whose prompt was cut in at least one request."""
        return len(self._cut[task])

    def _note_cut(self, request: Instance) -> None:
        self._cut[str(request.task_name)].add(int(request.doc_id or 0))

    def _check_scored(self, request: Instance, prompt_length: int, answer_length: int) -> None:
        if answer_length > self.max_length:
            raise ValueError(
                f"evaluation.tasks: an answer of {request.task_name} has {answer_length} tokens, "
                f"it must have at most {self.max_length}, what the model takes"
            )
        # The last token of the answer is predicted, not read.
        if prompt_length + answer_length - 1 > self.max_length:
            self._note_cut(request)

    def _checked_prompt(self, request: Instance) -> int:
        """The number of tokens in the prompt of a request to generate."""
        prompt, settings = request.args[:2]
        answer_length = normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
        if answer_length >= self.max_length:
            raise ValueError(
                f"evaluation.tasks: {request.task_name} generates up to {answer_length} tokens, "
                f"it must be less than {self.max_length}, what the model takes"
            )
        prompt_length = len(self.tok_encode(prompt))
        if prompt_length > self.max_length - answer_length:
            self._note_cut(request)
        return prompt_length


def _scored_batches(requests: Sequence[Encoded], size: int) -> list[list[int]]:
    """Indices of requests batch by batch: as lm-eval does, longest first, ties by tokens and by place.

    Requests that differ in the last token only need one forward pass for all; they count as one sequence.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (_, prompt_ids, answer_ids) in enumerate(requests):
        groups[*prompt_ids, *answer_ids[:-1]].append(index)

    def longest_first(group: list[int]) -> tuple[int, list[int]]:
        _, prompt_ids, answer_ids = requests[max(group, key=lambda index: len(requests[index][2]))]
        return -len(prompt_ids) - len(answer_ids), prompt_ids + answer_ids

    return [
        [index for group in groups_of_batch for index in group]
        for groups_of_batch in _runs(sorted(groups.values(), key=longest_first), size)
    ]


def _generated_batches(requests: Sequence[Instance], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of requests batch by batch: as lm-eval does, by settings, longest first, ties by prompt and place."""
    by_settings: dict[str, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        by_settings[_plain(request.args[1])].append(index)
    return [
        batch
        for group in by_settings.values()
        for batch in _runs(sorted(group, key=lambda index: (-lengths[index], requests[index].args[0])), size)
    ]


def _runs(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)


def _digest(value: Any) -> str:
    return hashlib.sha256(_plain(value).encode()).hexdigest()
