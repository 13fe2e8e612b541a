"""lm-eval's Hugging Face model, counting the prompts that it has to cut. Imports torch and lm-eval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class CountingLM(HFLM):
    """`HFLM` that knows which documents lost the beginning of their prompt, and shows only its own bars.

    lm-eval cuts silently when it scores answers, or with a warning per batch that names no task.

    Raises, when it is run:
        ValueError: the model cannot take a task's answer, even with no prompt at all.
    """

    def __init__(self, *, show_bars: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._show_bars = show_bars
        self._cut: dict[str, set[int]] = defaultdict(set)
        self._scored: Sequence[Instance] | None = None

    def cut_prompts(self, task: str) -> int:
        """The number of documents of a task whose prompt was cut in at least one request."""
        return len(self._cut[task])

    def _note_cut(self, request: Instance) -> None:
        self._cut[str(request.task_name)].add(int(request.doc_id or 0))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        # `_loglikelihood_tokens` gets the encoded requests, in this order, without the tasks they belong to.
        self._scored = requests
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            self._scored = None

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], *arguments: Any, **keywords: Any
    ) -> list[tuple[float, bool]]:
        # Nothing is stored for the rolling log-likelihood of a whole text: it is split into windows, never
        # cut.
        if self._scored is not None:
            for request, (_, prompt_ids, answer_ids) in zip(self._scored, requests, strict=True):
                self._check_scored(request, len(prompt_ids), len(answer_ids))
        keywords["disable_tqdm"] = not self._show_bars
        return super()._loglikelihood_tokens(requests, *arguments, **keywords)

    def _check_scored(self, request: Instance, prompt_length: int, answer_length: int) -> None:
        if answer_length > self.max_length:
            raise ValueError(
                f"evaluation.tasks: an answer of {request.task_name} has {answer_length} tokens, "
                f"it must have at most {self.max_length}, what the model takes"
            )
        # The last token of the answer is predicted, not read.
        if prompt_length + answer_length - 1 > self.max_length:
            self._note_cut(request)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        for request in requests:
            prompt, settings = request.args[:2]
            answer_length = normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
            if answer_length >= self.max_length:
                raise ValueError(
                    f"evaluation.tasks: {request.task_name} generates up to {answer_length} tokens, "
                    f"it must be less than {self.max_length}, what the model takes"
                )
            if len(self.tok_encode(prompt)) > self.max_length - answer_length:
                self._note_cut(request)
        return super().generate_until(requests, disable_tqdm=not self._show_bars)
