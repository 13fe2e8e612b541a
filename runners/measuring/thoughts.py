"""What thoughts that a run's final model writes add to the likelihood of completions (`evaluation.thoughts`).

After each prompt of a data set the model writes `samples` thoughts, up to their closing delimiter, and the data's own
completion is scored after each of them, and after the prompt alone. A thought that was cut off is closed first.

Legend: D documents, N thoughts to each.
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
from methods.batch import Batch
from methods.examples import Examples
from methods.kinds import adapter
from methods.rl.likelihood_rewards import Thought, thought_of
from runners.compose import RunSpec
from runners.data import load_rows, tokenize
from runners.errors import UserError
from runners.measuring.comparison import sums_over_tokens
from runners.measuring.sampling import as_of, bounded, sampled, sampling_of
from runners.models import context_length
from runners.start import Tell

TASK = "thoughts"
_KEY = "evaluation.thoughts"
_CHUNK = 1024  # tokens whose whole distributions are in fp32 at a time


@dataclass(frozen=True)
class Documents:
    """What the model thinks before.

    examples: prompts with their completions. rows: how many the data set has. opening, closing: token ids.
    """

    examples: Examples
    rows: int
    opening: list[int]
    closing: list[int]


def documents(spec: RunSpec, tokenizer: Any, parent: Path | None) -> Documents:
    """Load the documents; those that leave no room for a thought are left out.

    Raises:
        UserError: the data cannot be used, or fewer than two documents fit.
    """
    evaluation = spec.config["evaluation"]
    settings = evaluation["thoughts"]
    longest = min(context_length(spec.config["model"], parent), evaluation["max_length"] or 2**31)
    opening, closing = (
        list(tokenizer(settings[side], add_special_tokens=False)["input_ids"]) for side in ("opening", "closing")
    )
    room = longest - settings["max_new_tokens"] - len(opening) - len(closing)
    try:
        rows = load_rows(settings["dataset"])
        asked = bounded(settings["documents"], evaluation["limit"], len(rows))
        shown = [rows[place] for place in range(asked)]
        examples = tokenize(shown, settings["dataset"], tokenizer, max_length=longest, too_long="drop")
        examples = examples.within(room, cut=False)
    except UserError as error:
        raise as_of(f"{_KEY}.dataset", error) from error
    if len(examples) < 2:
        raise UserError(
            f"{_KEY}.dataset: needs at least two documents that fit into {longest} tokens with a thought of "
            f"{settings['max_new_tokens']}, got {len(examples)}"
        )
    return Documents(examples, len(rows), opening, closing)


def with_thoughts(
    measured: Evaluation,
    spec: RunSpec,
    asked: Documents,
    tokenizer: Any,
    model: nn.Module,
    tell: Callable[[str], Tell],
) -> Evaluation:
    """`measured` with the metrics of one task more, `thoughts`; log-probabilities are those of whole completions.

    nll: mean over thoughts of minus the log-probability after it. nll_mixture: minus the logarithm of the mean
    probability over thoughts, at most nll. nll_without: after the prompt alone. gain: nll_without - nll. accuracy:
    share of thoughts after which every token of the completion is the likeliest; accuracy_without. length: of a thought
    in tokens, with its delimiter. closed: share of thoughts that came to it. Of no thoughts, nll and accuracy are those
    without, and gain is 0.

    Args:
        measured: by others.
        spec: the run.
        asked: of `documents`.
        tokenizer: of the model.
        model: the run's final one, sharded or whole.
        tell: from the name of a phase to a function of (done, total).

    Raises:
        Preempted: told to stop.
    """
    settings, examples = spec.config["evaluation"]["thoughts"], asked.examples
    count, places = settings["samples"], range(len(examples))
    prompts = [examples.prompt(place).tolist() for place in places]
    completions = [examples.response(place).tolist() for place in places]
    bare_2D = _scores(spec, prompts, completions, model, tokenizer, tell("completions"))
    thoughts: list[Thought] = []
    nll_DN, right_DN = bare_2D[0][:, None], bare_2D[1][:, None]
    if count:
        of = [place for place in places for _ in range(count)]
        thoughts = _thoughts(spec, [[*prompts[place], *asked.opening] for place in of], asked, tokenizer, model, tell)
        before = [[*prompts[place], *asked.opening, *own.tokens] for place, own in zip(of, thoughts, strict=True)]
        after = [completions[place] for place in of]
        thought_2S = _scores(spec, before, after, model, tokenizer, tell("completions after thoughts"))
        nll_DN, right_DN = thought_2S.reshape(2, len(examples), count)
    mixture_D = -(np.logaddexp.reduce(-nll_DN, axis=1) - np.log(nll_DN.shape[1]))
    found = {
        "nll": preference.over_prompts(nll_DN),
        "nll_mixture": preference.mean(mixture_D),
        "nll_without": preference.mean(bare_2D[0]),
        "gain": preference.mean(bare_2D[0] - nll_DN.mean(1)),
        "accuracy": preference.over_prompts(right_DN),
        "accuracy_without": preference.mean(bare_2D[1]),
    }
    told: list[dict[str, Any]] = [{} for _ in places]
    if count:
        length_DN = np.array([len(own.tokens) for own in thoughts], dtype=float).reshape(-1, count)
        closed_DN = np.array([own.formed for own in thoughts], dtype=float).reshape(-1, count)
        found |= {"length": preference.over_prompts(length_DN), "closed": preference.over_prompts(closed_DN)}
        texts = [tokenizer.decode(own.tokens, skip_special_tokens=True) for own in thoughts]
        told = [
            {"thoughts": texts[place * count : (place + 1) * count], "nlls": nll_DN[place].tolist()} for place in places
        ]
    records = [
        {
            "prompt": tokenizer.decode(prompts[place], skip_special_tokens=True),
            "completion": tokenizer.decode(completions[place], skip_special_tokens=True),
            "nll_without": float(bare_2D[0][place]),
            **told[place],
        }
        for place in places
    ]
    return dataclasses.replace(
        measured,
        metrics={**measured.metrics, TASK: preference.named(found)},
        n_samples={**measured.n_samples, TASK: {"original": asked.rows, "effective": len(examples)}},
        higher_is_better={**measured.higher_is_better, TASK: {name: _higher(name) for name in found}},
        samples={**measured.samples, TASK: records},
    )


def _higher(name: str) -> bool | None:
    """Of lengths neither direction is better."""
    return None if name == "length" else not name.startswith("nll")


def _thoughts(
    spec: RunSpec,
    prompts: Sequence[list[int]],
    asked: Documents,
    tokenizer: Any,
    model: nn.Module,
    tell: Callable[[str], Tell],
) -> list[Thought]:
    """One thought after each prompt."""
    settings = spec.config["evaluation"]["thoughts"]
    sampling = sampling_of({**settings, "stop": [settings["closing"]]}, tokenizer)
    seed = settings["seed"]
    written = sampled(model, prompts, sampling, settings["batch_size"], seed, TASK, tell(TASK), tokenizer)

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return [
        thought_of(tokens, tokenizer.eos_token_id, settings["closing"], asked.closing, decode) for tokens in written
    ]


def _scores(
    spec: RunSpec,
    before: Sequence[list[int]],
    after: Sequence[list[int]],
    model: nn.Module,
    tokenizer: Any,
    tell: Tell,
) -> NDArray[np.float64]:
    """Of each continuation minus its log-probability, and 1 where all of its tokens are the likeliest. Shape [2, S]."""
    kind = adapter(spec.config["model"]["kind"])
    sequences = [[*own, *then] for own, then in zip(before, after, strict=True)]
    examples = Examples.of(sequences, [len(own) for own in before])

    def values(batch: Batch) -> list[Tensor]:
        negative, missed = [], []
        logits_KV = kind.target_logits(model, batch)
        for logits_CV, targets_C in zip(logits_KV.split(_CHUNK), batch.targets_K.split(_CHUNK), strict=True):
            logps_CV = logits_CV.float().log_softmax(-1)
            negative.append(-logps_CV.gather(-1, targets_C[:, None]).squeeze(-1))
            missed.append((logps_CV.argmax(-1) != targets_C).float())
        return [torch.cat(negative), torch.cat(missed)]

    rows = spec.config["evaluation"]["batch_size"]
    nll_S, missed_S = sums_over_tokens(
        examples, values, rows=rows, pad=tokenizer.pad_token_id, what="completions", tell=tell
    )
    return np.stack([nll_S, (missed_S == 0).astype(np.float64)])
