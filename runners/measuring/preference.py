"""What a run's final model prefers and writes, against what its training started from (`evaluation.preference`).

The reference of every number is the model that training started from, as for KL(base || tuned), also where the method's
own reference is another one (`model.reference_run`).
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evals import preference
from evals.harness import Evaluation
from evals.kl_to_base import Estimate
from evals.rewards.load import check_model, load_reward
from methods.batch import Batch
from methods.divergences import kl
from methods.examples import Examples
from methods.kinds import Kind, adapter
from runners import processes
from runners.compose import RunSpec
from runners.data import load_rows, tokenize
from runners.engine import device, sum_over_processes
from runners.errors import UserError
from runners.measuring.comparison import started_from, sums_over_tokens
from runners.measuring.sampling import Prompt, as_of, bounded, decoded, different_prompts, sampled, sampling_of
from runners.models import context_length
from runners.start import Start, Tell

log = logging.getLogger(__name__)

TASK = "preference"
_KEY = "evaluation.preference"
_CHUNK = 1024  # tokens whose whole distributions are in fp32 at a time

# Of the others, neither direction is better: how far a response has moved, how long samples are, how much they differ.
_HIGHER_IS_BETTER = {
    "accuracy": True,
    "margin": True,
    "likelihood_accuracy": True,
    "reward": True,
    "reward_greedy": True,
    "win_rate": True,
    "finished": True,
    "kl": False,
}


@dataclass(frozen=True)
class HeldOut:
    """What the model is asked for.

    pairs: a chosen and a rejected response after one another, each with its prompt. rows: how many the data set has.
    prompts: what is sampled from.
    """

    pairs: Examples
    rows: int
    prompts: list[Prompt]


def held_out(spec: RunSpec, tokenizer: Any, parent: Path | None) -> HeldOut:
    """Load and tokenise what is measured on; what the model cannot take is left out.

    Args:
        spec: the run.
        tokenizer: of the model.
        parent: folder of the run that the model comes from.

    Raises:
        UserError: the data cannot be used, too little of it fits into the model, the reward cannot be loaded.
    """
    evaluation = spec.config["evaluation"]
    settings, limit = evaluation["preference"], evaluation["limit"]
    longest = min(context_length(spec.config["model"], parent), evaluation["max_length"] or 2**31)
    if settings["reward"]:
        _check_reward(settings)
    try:
        rows: Any = load_rows(settings["dataset"])
        wanted = bounded(settings["max_pairs"], limit, len(rows))
        first = rows[:wanted] if isinstance(rows, list) else rows.select(range(wanted))
        pairs = tokenize(first, settings["dataset"], tokenizer, max_length=longest, too_long="drop", dropped=Counter())
        room, asked = longest - settings["max_new_tokens"], bounded(settings["prompts"], limit, len(rows))
        found = different_prompts(rows, settings["dataset"], tokenizer, room, asked)
    except UserError as error:
        raise as_of(f"{_KEY}.dataset", error) from error
    if len(pairs) < 4 or len(found) < 2:
        raise UserError(
            f"{_KEY}.dataset: needs at least two pairs, and two prompts with {settings['max_new_tokens']} new tokens, "
            f"that fit into {longest} tokens; got {len(pairs) // 2} and {len(found)}"
        )
    if len(found) < settings["prompts"] and not limit:
        log.warning("%s.prompts=%d: there are only %d", _KEY, settings["prompts"], len(found))
    return HeldOut(pairs, len(rows), found)


def with_preference(
    measured: Evaluation,
    spec: RunSpec,
    held: HeldOut,
    tokenizer: Any,
    policy: nn.Module,
    dtype: str,
    tell: Callable[[str], Tell],
) -> Evaluation:
    """`measured` with the metrics of one task more, `preference`.

    On held-out pairs (`evals/preference.py`): accuracy, margin, log-ratios and log-probabilities, likelihood_accuracy.

    On samples of the policy for the data's prompts: length (tokens, EOS not counted), finished (share that came to an
    EOS), distinct_1, distinct_2, self_bleu, distinct_responses, kl and entropy. kl is KL(policy || start) and entropy
    that of the policy, per sequence of up to `max_new_tokens` tokens, in nats: by the chain rule on the policy's own
    samples, with the whole distribution at every place of them.

    With a reward: reward, reward_greedy (of the likeliest tokens), win_rate against samples of the start, which are
    drawn once for all runs that start there.

    Args:
        measured: by lm-eval.
        spec: the run.
        held: of `held_out`.
        tokenizer: of both models.
        policy: the run's final model, sharded or whole.
        dtype: in which the model that training started from is loaded.
        tell: from the name of a phase to a function of (done, total).

    Raises:
        UserError: the reward cannot be loaded or refuses a response; a log-probability is no number.
        Preempted: told to stop.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    settings = spec.config["evaluation"]["preference"]
    count, batch_size = settings["samples_per_prompt"], settings["batch_size"]
    sampling = sampling_of(settings, tokenizer)
    asked = [prompt.ids for prompt in held.prompts for _ in range(count)]
    drawn = sampled(policy, asked, sampling, batch_size, settings["seed"], "sampling", tell("preference samples"))
    with started_from(spec, tokenizer, policy, dtype) as start:
        found = _on_pairs(spec, held.pairs, policy, start, tokenizer.pad_token_id, tell("preference pairs"))
        found |= _of_samples(drawn, sampling.eos, count)
        if settings["kl"]:
            examples = Examples.of([p + c for p, c in zip(asked, drawn, strict=True)], map(len, asked))
            found |= _divergence(spec, examples, count, policy, start, sampling.pad, tell("preference KL"))
        if settings["reward"]:
            others = Start(spec, lambda: start, tell, rank, world).generate(
                f"preference-{settings['seed']}", asked, sampling, batch_size
            )
    records: list[dict[str, Any]] = [{"prompt": prompt.text} for prompt in held.prompts]
    written = _by_prompt(decoded(drawn, tokenizer), count)
    _note(records, samples=written)
    if settings["reward"]:
        greedy = dataclasses.replace(sampling, temperature=0.0, top_p=1.0)
        likeliest = sampled(
            policy, [prompt.ids for prompt in held.prompts], greedy, batch_size, 0, "greedy", tell("preference greedy")
        )
        best = decoded(likeliest, tokenizer)
        theirs = _by_prompt(decoded([others.response(i).tolist() for i in range(len(others))], tokenizer), count)
        answers = [[*own, *other, one] for own, other, one in zip(written, theirs, best, strict=True)]
        rewards_PA = _rewards(settings, [prompt.text for prompt in held.prompts], answers)
        own_PN, other_PN, greedy_P = rewards_PA[:, :count], rewards_PA[:, count:-1], rewards_PA[:, -1]
        found["reward"] = preference.over_prompts(own_PN)
        found["reward_greedy"] = preference.mean(greedy_P)
        found["win_rate"] = preference.win_rate(own_PN, other_PN)
        _note(records, rewards=own_PN.tolist(), start=theirs, start_rewards=other_PN.tolist())
        _note(records, greedy=best, greedy_reward=greedy_P.tolist())
    return dataclasses.replace(
        measured,
        metrics={**measured.metrics, TASK: preference.named(found)},
        n_samples={**measured.n_samples, TASK: {"original": held.rows, "effective": len(held.pairs) // 2}},
        higher_is_better={**measured.higher_is_better, TASK: {name: _HIGHER_IS_BETTER.get(name) for name in found}},
        samples={**measured.samples, TASK: records},
    )


def _note(records: Sequence[dict[str, Any]], **columns: Sequence[Any]) -> None:
    for name, column in columns.items():
        for record, value in zip(records, column, strict=True):
            record[name] = value


# The pairs -----------------------------------------------------------------------------------------------------


def _on_pairs(
    spec: RunSpec, pairs: Examples, policy: nn.Module, start: nn.Module, pad: int, tell: Tell
) -> dict[str, Estimate]:
    kind = adapter(spec.config["model"]["kind"], spec.config["engine"]["logits_chunk"])

    def values(batch: Batch) -> list[Tensor]:
        return [kind.token_logps(model, batch) for model in (policy, start)]

    rows = spec.config["evaluation"]["batch_size"]
    logps_S, reference_S = sums_over_tokens(pairs, values, rows=rows, pad=pad, what="held-out pairs", tell=tell)
    beta = spec.config["evaluation"]["preference"]["beta"] or spec.config["method"].get("beta")
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not beta > 0:
        beta = 1.0
    try:
        return preference.on_pairs(logps_S[::2], logps_S[1::2], reference_S[::2], reference_S[1::2], beta)
    except ValueError as error:
        raise UserError(f"{_KEY}: {error}") from error


# The samples ---------------------------------------------------------------------------------------------------


def _of_samples(drawn: Sequence[list[int]], eos: int, count: int) -> dict[str, Estimate]:
    """What can be told from the samples' tokens alone. `count`: samples of a prompt."""
    bare = _by_prompt([_without(tokens, eos) for tokens in drawn], count)
    ended = _by_prompt([tokens[-1:] == [eos] for tokens in drawn], count)
    found = {
        "length": preference.over_prompts(np.array([[len(tokens) for tokens in samples] for samples in bare])),
        "finished": preference.over_prompts(np.array(ended, dtype=float)),
    }
    return found | (preference.diversity(bare) if count > 1 else {})


def _divergence(
    spec: RunSpec, examples: Examples, count: int, policy: nn.Module, start: nn.Module, pad: int, tell: Tell
) -> dict[str, Estimate]:
    """KL(policy || start) and the policy's entropy, per sequence, from samples of the policy."""
    values = kl_and_entropy(adapter(spec.config["model"]["kind"]), policy, start)
    rows = spec.config["evaluation"]["batch_size"]
    sums = sums_over_tokens(examples, values, rows=rows, pad=pad, what="KL to the start", tell=tell)
    try:
        return {
            name: preference.over_prompts(values_S.reshape(-1, count))
            for name, values_S in zip(("kl", "entropy"), sums, strict=True)
        }
    except ValueError as error:
        raise UserError(f"{_KEY}: {error}") from error


def kl_and_entropy(kind: Kind, policy: nn.Module, start: nn.Module) -> Callable[[Batch], list[Tensor]]:
    """From a batch to KL(policy || start) and the entropy of the policy at each of its target tokens, two [K]."""

    def values(batch: Batch) -> list[Tensor]:
        pieces = zip(*(kind.target_logits(model, batch).split(_CHUNK) for model in (policy, start)), strict=True)
        found = [_kl_and_entropy(*(logits_CV.float().log_softmax(-1) for logits_CV in piece)) for piece in pieces]
        return [torch.cat(column) for column in zip(*found, strict=True)]

    return values


def _kl_and_entropy(policy_logps_CV: Tensor, start_logps_CV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(policy || start) and the entropy of the policy of C next-token distributions. Returns two [C]."""
    return kl(policy_logps_CV, start_logps_CV), -kl(policy_logps_CV, torch.zeros_like(policy_logps_CV))


def _without(tokens: list[int], eos: int) -> list[int]:
    return tokens[:-1] if tokens[-1:] == [eos] else tokens


def _by_prompt(values: Sequence[Any], count: int) -> list[list[Any]]:
    """Values of all samples as a list for each prompt, `count` samples each."""
    return [list(values[begin : begin + count]) for begin in range(0, len(values), count)]


# The reward ----------------------------------------------------------------------------------------------------


def _rewards(
    settings: Mapping[str, Any], asked: Sequence[str], answers: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    """The reward of every answer, equally many for each prompt, dealt among the processes. Returns [prompts, answers].

    Raises:
        UserError: on every process, where one of them fails.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    width = len(answers[0])
    rewards = torch.zeros(len(asked), width, dtype=torch.float64)
    own = range(rank, len(asked), world)
    problem = ""
    try:
        reward = _reward(settings)
        found = reward(
            [asked[place] for place in own for _ in range(width)], [text for place in own for text in answers[place]]
        )
        rewards[list(own)] = torch.tensor(found, dtype=torch.float64).reshape(len(own), width)
    except (UserError, ValueError) as error:
        problem = str(error)
    if processes.any_rank(bool(problem)):
        raise UserError(problem or f"{_KEY}.reward: another process could not use it")
    if world > 1:
        sum_over_processes(rewards)
    return rewards.numpy()


def _check_reward(settings: Mapping[str, Any]) -> None:
    """It is there: a function as it is, of a model what can be known without its weights."""
    if settings["reward"].get("function"):
        _reward(settings)
        return
    try:
        check_model(settings["reward"], f"{_KEY}.reward")
    except ValueError as error:
        raise UserError(str(error)) from error


def _reward(settings: Mapping[str, Any]) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    try:
        return load_reward(settings["reward"], f"{_KEY}.reward", device())
    except ValueError as error:
        raise UserError(str(error)) from error
