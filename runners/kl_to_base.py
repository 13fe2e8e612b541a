"""KL(base || tuned) of a run: its final model against the one that training started from (`evaluation.kl_to_base`)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import deepspeed
import numpy as np
import torch
from torch import Tensor, nn

from evals.harness import Evaluation
from evals.kl_to_base import Divergence, chain_rule, log_ratio
from methods.batch import Batch
from methods.context_free import token_to_start_from
from methods.divergences import kl
from methods.examples import Examples
from methods.generation import Sampling
from methods.kinds import adapter
from runners import preemption, processes, record
from runners.batches import Batches
from runners.compose import RunSpec
from runners.engine import close_frozen, device, frozen_engine, sum_over_processes
from runners.models import load_model
from runners.progress import progress
from runners.start import Start, Tell

TASK = "kl_to_base"


def with_kl_to_base(
    measured: Evaluation,
    spec: RunSpec,
    tokenizer: Any,
    tuned: nn.Module,
    dtype: str,
    tell: Callable[[str], Tell],
) -> Evaluation:
    """`measured` with the metrics of one task more, `kl_to_base`, in nats: per_sequence, per_token, their stderr.

    The samples are drawn once for a base model; they are never those that a mix trains on.

    Args:
        measured: by lm-eval.
        spec: the run.
        tokenizer: of both models.
        tuned: the run's final model, sharded or whole.
        dtype: in which the base model is loaded.
        tell: from the name of a phase to a function of (done, total).
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    settings, start = spec.config["evaluation"]["kl_to_base"], spec.start
    limit = spec.config["evaluation"]["limit"] or settings["samples"]
    folder = record.weights(start.parent)[0] if start.parent else None
    loaded = load_model(start.config["model"], folder, len(tokenizer), dtype)
    # As the tuned one is placed: where nothing was learned the divergence is 0.
    sharded = isinstance(tuned, deepspeed.DeepSpeedEngine)
    base: nn.Module = frozen_engine(loaded, spec.config["engine"]) if sharded else loaded.to(device()).eval()
    try:
        prompt = [token_to_start_from(tokenizer, settings["start_token"], "evaluation.kl_to_base")]
        count = max(min(settings["samples"], limit), 2)
        samples = Start(spec, lambda: base, tell, rank, world).generate(
            f"kl-to-base-{settings['seed']}",
            [prompt] * count,
            Sampling(max_new_tokens=settings["max_length"] - 1, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id),
            settings["batch_size"],
        )
        whole, sampled = _compare(spec, samples, base, tuned, tokenizer.pad_token_id, tell(TASK), rank, world)
    finally:
        close_frozen(base)
    return dataclasses.replace(
        measured,
        metrics={**measured.metrics, TASK: {**_named(whole), **_named(sampled, "log_ratio_")}},
        n_samples={**measured.n_samples, TASK: {"original": settings["samples"], "effective": count}},
        higher_is_better={
            **measured.higher_is_better,
            TASK: {name.partition(",")[0]: False for name in (*_named(whole), *_named(sampled, "log_ratio_"))},
        },
    )


def _named(found: Divergence, prefix: str = "") -> dict[str, float]:
    return {
        f"{prefix}per_sequence,none": found.per_sequence.mean,
        f"{prefix}per_sequence_stderr,none": found.per_sequence.standard_error,
        f"{prefix}per_token,none": found.per_token.mean,
        f"{prefix}per_token_stderr,none": found.per_token.standard_error,
    }


def _compare(
    spec: RunSpec, samples: Examples, base: nn.Module, tuned: nn.Module, pad: int, tell: Tell, rank: int, world: int
) -> tuple[Divergence, Divergence]:
    """The divergence by the chain rule, and by the log-ratio of whole sequences."""
    kind = adapter(spec.config["model"]["kind"])
    rows = spec.config["evaluation"]["batch_size"]
    batches = Batches(samples, rows, rows, False, int(samples.lengths.max()), pad, 0, rank, world)
    sums_3S = torch.zeros(3, len(samples), dtype=torch.float64)  # KL by the chain rule, log p, log q of each sequence
    seen_S = torch.zeros(len(samples), dtype=torch.float64)
    with torch.no_grad(), progress("KL to the base model", len(samples)) as advance:
        done = 0
        for batch in batches.once():
            if processes.any_rank(preemption.requested()):
                raise processes.stop("in its evaluation")
            batch = batch.to(device())
            p_KV, q_KV = (kind.target_logits(model, batch).float().log_softmax(-1) for model in (base, tuned))
            drawn_K1 = batch.targets_K.unsqueeze(-1)
            values = [kl(p_KV, q_KV), *(logps_KV.gather(-1, drawn_K1).squeeze(-1) for logps_KV in (p_KV, q_KV))]
            places = batch.example_S.cpu()
            for number, value_K in enumerate(values):
                sums_3S[number, places] = _by_sequence(value_K, batch)
            seen_S[places] = 1.0
            done = min(done + world * len(places), len(samples))
            advance(world * len(places))
            tell(done, len(samples))
    if world > 1:  # the last of an uneven share was seen twice
        for tensor in (sums_3S, seen_S):
            sum_over_processes(tensor)
    kl_S, base_S, tuned_S = (sums_3S / seen_S).numpy()
    tokens_S = (samples.lengths - samples.targets).astype(np.int64)
    return chain_rule(kl_S, tokens_S), log_ratio(base_S, tuned_S, tokens_S)


def _by_sequence(values_K: Tensor, batch: Batch) -> Tensor:
    summed_S = torch.zeros(len(batch.example_S), dtype=torch.float64, device=values_K.device)
    return summed_S.index_add(0, batch.sequence_K, values_K.double()).cpu()
