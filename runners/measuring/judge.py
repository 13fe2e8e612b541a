"""A language model as judge compares a run's answers with a baseline's (`evaluation.judge`).

The first process alone asks. Verdicts are kept in the run's folder as they come: after an interruption, or where the
endpoint was down, the same command asks only what is not answered yet.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from evals import judge, preference
from evals.harness import Evaluation
from evals.journal import Journal
from runners import fingerprint, preemption, processes
from runners.compose import RunSpec
from runners.errors import UserError
from runners.measuring.comparison import started_from
from runners.measuring.sampling import Questions, decoded, sampled, sampling_of
from runners.progress import progress
from runners.start import Start, Tell

log = logging.getLogger(__name__)

TASK = "judge"
_KEY = "evaluation.judge"


def check_key(spec: RunSpec) -> None:
    """The key of the endpoint is there.

    Raises:
        UserError: it is not.
    """
    settings = spec.config["evaluation"]["judge"]
    try:
        processes.first_decides(lambda: bool(_endpoint(settings).headers()))  # the first alone will need the key
    except judge.JudgeError as error:
        raise UserError(f"{_KEY}.api_key_env={settings['api_key_env']}: {error}") from error


def with_judge(
    measured: Evaluation,
    spec: RunSpec,
    asked: Questions,
    tokenizer: Any,
    model: nn.Module,
    dtype: str,
    tell: Callable[[str], Tell],
) -> Evaluation:
    """`measured` with the metrics of one task more, `judge`.

    win_rate (a tie counts 1/2), length_controlled_win_rate (`evals/judge.py`), length and baseline_length in
    characters, unreadable (share of replies without a verdict, which count for nothing).

    Args:
        measured: by lm-eval.
        spec: the run.
        asked: of `sampling.questions`.
        tokenizer: of the model.
        model: the run's final one, sharded or whole.
        dtype: in which the model that training started from is loaded, where its answers are the baseline.
        tell: from the name of a phase to a function of (done, total).

    Raises:
        UserError: the judge cannot be asked, or says too little.
        Preempted: told to stop.
    """
    settings = spec.config["evaluation"]["judge"]
    sampling = sampling_of(settings, tokenizer)
    ids = [prompt.ids for prompt in asked.prompts]
    written = sampled(model, ids, sampling, settings["batch_size"], settings["seed"], "answers", tell("judge answers"))
    answers, baseline = decoded(written, tokenizer), [prompt.answer for prompt in asked.prompts]
    if settings["baseline"] == "start":
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        with started_from(spec, tokenizer, model, dtype) as start:
            others = Start(spec, lambda: start, tell, rank, world).generate(
                f"judge-{settings['seed']}", ids, sampling, settings["batch_size"]
            )
        baseline = decoded([others.response(number).tolist() for number in range(len(others))], tokenizer)
    texts = [prompt.text for prompt in asked.prompts]
    replies = _replies(spec, texts, answers, baseline, tell(TASK))
    # The second question of a prompt has the baseline's answer first.
    said = [[judge.verdict(reply) for reply in of_prompt] for of_prompt in replies]
    preferences = [
        [value if place == 0 else 1 - value for place, value in enumerate(of_prompt) if value is not None]
        for of_prompt in said
    ]
    known = [number for number, values in enumerate(preferences) if values]
    if len(known) < 2:
        raise UserError(
            f"{_KEY}.model={settings['model']}: gives no verdicts; its first reply was {replies[0][0][:80]!r}"
        )
    rates = np.array([np.mean(preferences[number]) for number in known])
    lengths, theirs = (np.array([len(column[number]) for number in known], float) for column in (answers, baseline))
    found = {
        "win_rate": preference.mean(rates),
        "length_controlled_win_rate": judge.length_controlled(rates, lengths, theirs),
        "length": preference.mean(lengths),
        "baseline_length": preference.mean(theirs),
        "unreadable": preference.over_prompts(np.array([[one is None for one in of_prompt] for of_prompt in said])),
    }
    higher = {"win_rate": True, "length_controlled_win_rate": True, "unreadable": False}
    columns = zip(texts, answers, baseline, replies, preferences, strict=True)
    names = ("prompt", "answer", "baseline", "replies", "preferences")
    return dataclasses.replace(
        measured,
        metrics={**measured.metrics, TASK: preference.named(found)},
        n_samples={**measured.n_samples, TASK: {"original": asked.rows, "effective": len(known)}},
        higher_is_better={**measured.higher_is_better, TASK: {name: higher.get(name) for name in found}},
        samples={**measured.samples, TASK: [dict(zip(names, row, strict=True)) for row in columns]},
    )


def _endpoint(settings: dict[str, Any]) -> judge.Endpoint:
    return judge.Endpoint(
        url=settings["endpoint"],
        model=settings["model"],
        key_from=settings["api_key_env"],
        max_tokens=settings["reply_tokens"],
        timeout=settings["timeout"],
        retries=settings["retries"],
        connections=settings["connections"],
    )


def _replies(
    spec: RunSpec, prompts: Sequence[str], answers: Sequence[str], baseline: Sequence[str], tell: Tell
) -> list[list[str]]:
    """The judge's replies to the one or two questions about each prompt.

    Raises:
        UserError: a question is refused, or not answered in all attempts.
        Preempted: told to stop; what was answered is kept.
    """
    settings = spec.config["evaluation"]["judge"]
    template = settings["template"] or judge.TEMPLATE
    orders = (0, 1) if settings["both_orders"] else (0,)
    asked = [
        template.format(prompt=prompt, first=(own, other)[order], second=(other, own)[order])
        for prompt, own, other in zip(prompts, answers, baseline, strict=True)
        for order in orders
    ]

    def ask() -> list[str] | None:
        with Journal(spec.folder / "judge.jsonl", f"{settings['model']} {settings['reply_tokens']}") as journal:
            known = {text: kept[0] for text in asked if (kept := journal.get(fingerprint.of_data(text)))}
            todo = list(dict.fromkeys(text for text in asked if text not in known))
            with progress("judge", len(asked)) as advance:
                advance(len(asked) - len(todo))
                for done, (number, reply) in enumerate(_endpoint(settings).ask(todo), len(asked) - len(todo) + 1):
                    known[todo[number]] = reply
                    journal.add(fingerprint.of_data(todo[number]), [reply])
                    advance()
                    tell(done, len(asked))
                    if preemption.requested():
                        return None
        return [known[text] for text in asked]

    try:
        replies = processes.first_decides(ask)
    except judge.JudgeError as error:
        raise UserError(f"{_KEY}.endpoint={settings['endpoint']}: {error}") from error
    if replies is None:
        raise processes.stop("in its evaluation")
    return [replies[begin : begin + len(orders)] for begin in range(0, len(replies), len(orders))]
