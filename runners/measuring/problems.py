"""What a run's final model solves of problems that can be checked, at once and after feedback.

Each problem is answered `samples` times; a reward (`evals/rewards/`) says what an answer is worth, and 1 is solved.
With `turns` above 1, an answer that is not solved is followed by its feedback and another attempt, in each sample on
its own, until it is solved or the last turn is over. What the feedback is about may be other tests than those that
count (`feedback`). With an `environment`, answers are made of the actions that it allows, drawn by what the model says
of each (`methods/rl/actions.py`). `evaluation.problems` is one set of problems; `evaluation.problem_sets` several, each
a task of its name.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evals import preference
from evals.harness import Evaluation
from evals.pass_at_k import pass_at_k
from evals.rewards.graded import Graded
from evals.rewards.load import Sampled, load_grader
from methods.batch import Batch
from methods.examples import Examples
from methods.generation import prompt_tokens
from methods.kinds import adapter
from methods.rl.turns import Attempt, Dialogue, check_template
from runners import fingerprint, processes
from runners.compose import RunSpec
from runners.data import load_rows, texts
from runners.engine import device
from runners.errors import UserError
from runners.measuring.comparison import sums_over_tokens
from runners.measuring.sampling import Prompt, as_of, bounded, decoded, sampled, sampling_of
from runners.measuring.trajectories import Policy
from runners.models import context_length
from runners.start import Tell

_CHUNK = 1024  # tokens whose whole distributions are in fp32 at a time


@dataclass(frozen=True)
class Problems:
    """What the model is asked. name: of the task. key: of its settings. prompts: with the data set's answers. rows: how
    many the data set has. longest: tokens that the model takes.
    """

    name: str
    key: str
    settings: dict[str, Any]
    prompts: list[Prompt]
    rows: int
    longest: int


def problems(spec: RunSpec, tokenizer: Any, parent: Path | None) -> list[Problems]:
    """Load the sets of problems; those problems that leave no room for an answer are left out.

    Raises:
        UserError: the data cannot be used, fewer than two problems fit, a reward cannot be loaded, a bad template.
    """
    return [_loaded(spec, *asked, tokenizer, parent) for asked in fingerprint.problem_sets(spec.config)]


def _loaded(
    spec: RunSpec, name: str, key: str, settings: dict[str, Any], tokenizer: Any, parent: Path | None
) -> Problems:
    evaluation, data = spec.config["evaluation"], settings["dataset"]
    longest = min(context_length(spec.config["model"], parent), evaluation["max_length"] or 2**31)
    try:
        check_template(settings["feedback_template"], data["chat"], f"{key}.feedback_template")
        for place, reward in enumerate(settings["rewards"]):
            load_grader(reward, f"{key}.rewards[{place}]")
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        rows = load_rows(data)
        asked = bounded(settings["problems"], evaluation["limit"], len(rows))
        found = _prompts(rows, data, tokenizer, longest - settings["max_new_tokens"], asked)
    except UserError as error:
        raise as_of(f"{key}.dataset", error) from error
    if len(found) < 2:
        raise UserError(
            f"{key}.dataset: needs at least two problems that fit into {longest} tokens with "
            f"{settings['max_new_tokens']} new ones, got {len(found)}"
        )
    return Problems(name, key, settings, found, len(rows), longest)


def _prompts(rows: Any, data: dict[str, Any], tokenizer: Any, room: int, count: int) -> list[Prompt]:
    """The first problems that fit; unlike the prompts of texts, two may be the same, of different answers."""
    found: list[Prompt] = []
    for number, row in enumerate(rows):
        for (written, _), (text, answer) in zip(
            texts([row], data, tokenizer, number), texts([row], {**data, "chat": False}, tokenizer, number), strict=True
        ):
            (ids,) = prompt_tokens(tokenizer, [written])
            if 0 < len(ids) <= room:
                found.append(Prompt(text, ids, answer))
        if len(found) == count:
            break
    return found


def with_problems(
    measured: Evaluation,
    spec: RunSpec,
    asked: Problems,
    tokenizer: Any,
    model: nn.Module,
    tell: Callable[[str], Tell],
) -> Evaluation:
    """`measured` with the metrics of one task more, named as the set of problems.

    score: mean reward of an answer of the first turn. pass_at_1, pass_at_K: solved in it, of 1 and of K answers.
    solved_by_T: share of samples that are solved by turn T. greedy: share solved by the likeliest answer. length
    (tokens, EOS not counted), finished (share that came to their end), entropy (nats, of a whole answer),
    distinct_responses, distinct_solutions (different solved answers to a problem).

    Args:
        measured: by others.
        spec: the run.
        asked: one of `problems`.
        tokenizer: of the model.
        model: the run's final one, sharded or whole.
        tell: from the name of a phase to a function of (done, total).

    Raises:
        UserError: a reward cannot be computed.
        Preempted: told to stop.
    """
    settings = asked.settings
    count = settings["samples"]
    loop = _Loop(spec, asked, tokenizer, model, tell)
    first = loop.first
    texts_PN = _by_problem(first.texts, count)
    solved_PN = np.array(_by_problem([value >= 1 for value in first.scores], count))
    found = {
        "score": preference.over_prompts(np.array(_by_problem(first.scores, count))),
        "length": preference.over_prompts(np.array(_by_problem(first.lengths, count), dtype=float)),
        "finished": preference.over_prompts(np.array(_by_problem(first.ended, count), dtype=float)),
        "entropy": preference.over_prompts(np.array(_by_problem(loop.entropies().tolist(), count))),
        "distinct_solutions": preference.mean(
            np.array(
                [
                    len({text for text, solved in zip(texts_N, solved_N, strict=True) if solved})
                    for texts_N, solved_N in zip(texts_PN, solved_PN, strict=True)
                ],
                dtype=float,
            )
        ),
    }
    if count > 1:
        found["distinct_responses"] = preference.mean(np.array([len(set(own)) / count for own in texts_PN]))
    for k in sorted({1, *settings["pass_at"]}):
        found[f"pass_at_{k}"] = preference.mean(pass_at_k(count, solved_PN.sum(1), k))
    for turn, solved in enumerate(loop.solved_by_turn(), 1):
        if settings["turns"] > 1:
            found[f"solved_by_{turn}"] = preference.over_prompts(np.array(_by_problem(solved, count), dtype=float))
    if settings["greedy"]:
        found["greedy"] = preference.mean(np.array([value >= 1 for value in loop.greedy()], dtype=float))
    records = [
        {"prompt": one.text, "answer": one.answer, "samples": own, "scores": scores}
        for one, own, scores in zip(asked.prompts, texts_PN, _by_problem(first.scores, count), strict=True)
    ]
    return dataclasses.replace(
        measured,
        metrics={**measured.metrics, asked.name: preference.named(found)},
        n_samples={**measured.n_samples, asked.name: {"original": asked.rows, "effective": len(asked.prompts)}},
        higher_is_better={**measured.higher_is_better, asked.name: {name: _higher(name) for name in found}},
        samples={**measured.samples, asked.name: records},
    )


def _higher(name: str) -> bool | None:
    """Of lengths, entropy and diversity, neither direction is better."""
    return True if name.startswith(("score", "pass_at", "solved_by", "greedy", "finished")) else None


@dataclass(frozen=True)
class _Answers:
    """Answers to some prompts: texts, tokens with EOS, what they are worth, feedback, lengths without EOS, ends.

    entropies: of actions, where an environment allows some; else none, and tokens have them.
    """

    texts: list[str]
    tokens: list[list[int]]
    scores: list[float]
    feedback: list[str]
    lengths: list[int]
    ended: list[bool]
    entropies: list[float]


class _Loop:
    """Attempts, feedback, attempts."""

    def __init__(
        self, spec: RunSpec, asked: Problems, tokenizer: Any, model: nn.Module, tell: Callable[[str], Tell]
    ) -> None:
        self._spec, self._asked, self._tokenizer, self._model, self._tell = spec, asked, tokenizer, model, tell
        self._settings = settings = asked.settings
        self._graders = [
            load_grader(reward, f"{asked.key}.rewards[{place}]", device())
            for place, reward in enumerate(settings["rewards"])
        ]
        self._shown = (
            load_grader(settings["feedback"], f"{asked.key}.feedback", device()) if settings["feedback"] else None
        )
        kind = spec.config["model"]["kind"]
        self._policy = (
            Policy(model, kind, asked.prompts, settings, asked.key, tokenizer) if settings["environment"] else None
        )
        self._of = [number for number in range(len(asked.prompts)) for _ in range(settings["samples"])]
        self.first = self._answered([asked.prompts[number].ids for number in self._of], self._of, turn=0)

    def _answered(
        self, prompts: Sequence[Sequence[int]], of: Sequence[int], turn: int, temperature: float | None = None
    ) -> _Answers:
        """Answers to prompts, each to a problem `of` the list."""
        settings, tokenizer = self._settings, self._tokenizer
        asked = settings if temperature is None else {**settings, "temperature": temperature, "top_p": 1.0}
        sampling = sampling_of(asked, tokenizer)
        what = f"answers, turn {turn + 1}" if turn >= 0 else "greedy answers"
        seed = settings["seed"] * 1000 + turn + 1
        entropies: list[float] = []
        if self._policy is not None:
            drawn = self._policy.answers(of, asked["temperature"], seed, self._asked.longest, what, self._tell(what))
            found, written = [one.text for one in drawn], [one.tokens for one in drawn]
            ended, entropies = [True] * len(drawn), [one.entropy for one in drawn]
        else:
            written = sampled(
                self._model, prompts, sampling, settings["batch_size"], seed, what, self._tell(what), tokenizer
            )
            found = decoded(written, tokenizer)
            ended = [tokens[-1:] == [sampling.eos] or len(tokens) < settings["max_new_tokens"] for tokens in written]
        told = Sampled(
            prompts=[self._asked.prompts[number].text for number in of],
            responses=found,
            answers=[self._asked.prompts[number].answer for number in of],
            tokens=[len(tokens) for tokens in written],
            ended=ended,
            groups=list(of),
            seed=seed,
        )

        def graded() -> tuple[list[float], list[str]]:
            rows = list(zip(*(grader(told) for grader in self._graders), strict=True))
            weights = [reward.get("weight", 1.0) for reward in settings["rewards"]]
            scores = [sum(w * _number(one) for w, one in zip(weights, row, strict=True)) for row in rows]
            shown = self._shown(told) if self._shown else [row[0] for row in rows]
            return scores, [one.feedback for one in shown]

        try:
            scores, feedback = processes.first_decides(graded)
        except ValueError as error:
            raise UserError(str(error)) from error
        lengths = [len(tokens) - (tokens[-1:] == [sampling.eos]) for tokens in written]
        return _Answers(found, written, scores, feedback, lengths, ended, entropies)

    def solved_by_turn(self) -> list[list[bool]]:
        """For each turn whether each sample is solved by then."""
        settings, data = self._settings, self._settings["dataset"]
        dialogue = Dialogue(template=settings["feedback_template"], chat=data["chat"], history=settings["history"])
        solved = [value >= 1 for value in self.first.scores]
        attempts: list[list[Attempt]] = [[] for _ in solved]
        turns, answers, places = [list(solved)], self.first, list(range(len(solved)))
        for turn in range(1, settings["turns"]):
            again, prompts = [], []
            for at, place in enumerate(places):
                if solved[place]:
                    continue
                attempts[place].append(Attempt(answers.texts[at], answers.feedback[at][: settings["max_feedback"]]))
                problem = self._asked.prompts[self._of[place]].text
                ids = dialogue.prompt(self._tokenizer, problem, attempts[place])
                if len(ids) + settings["max_new_tokens"] <= self._asked.longest:  # else there is no room: not solved
                    again.append(place)
                    prompts.append(ids)
            if again:
                answers = self._answered(prompts, [self._of[place] for place in again], turn)
                for place, value in zip(again, answers.scores, strict=True):
                    solved[place] = value >= 1
            places = again
            turns.append(list(solved))
        return turns

    def greedy(self) -> list[float]:
        """What the likeliest answers are worth."""
        prompts = [prompt.ids for prompt in self._asked.prompts]
        return self._answered(prompts, range(len(prompts)), turn=-1, temperature=0.0).scores

    def entropies(self) -> NDArray[np.float64]:
        """Of the answers of the first turn, by the chain rule on themselves. Shape [samples]."""
        if self._policy is not None:
            return np.array(self.first.entropies)
        config, prompts = self._spec.config, self._asked.prompts
        kind = adapter(config["model"]["kind"])
        sequences = [
            [*prompts[number].ids, *tokens] for number, tokens in zip(self._of, self.first.tokens, strict=True)
        ]
        examples = Examples.of(sequences, [len(prompts[number].ids) for number in self._of])
        temperature = self._settings["temperature"] or 1.0

        def values(batch: Batch) -> list[Tensor]:
            logits = kind.target_logits(self._model, batch).split(_CHUNK)
            logps = [(logits_CV.float() / temperature).log_softmax(-1) for logits_CV in logits]
            return [torch.cat([-(logps_CV.exp() * logps_CV).sum(-1) for logps_CV in logps])]

        rows = config["evaluation"]["batch_size"]
        pad = self._tokenizer.pad_token_id
        (found,) = sums_over_tokens(
            examples, values, rows=rows, pad=pad, what="entropy of answers", tell=self._tell("entropy of answers")
        )
        return found


def _number(graded: Graded) -> float:
    """A score; 0 where there is none."""
    return 0.0 if graded.score != graded.score else graded.score


def _by_problem(values: Sequence[Any], count: int) -> list[list[Any]]:
    """Values of all samples as a list for each problem, `count` samples each."""
    return [list(values[begin : begin + count]) for begin in range(0, len(values), count)]
