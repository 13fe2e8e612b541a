"""KL(base || tuned) of a run: its final model against the one that training started from (`evaluation.kl_to_base`)."""

import dataclasses
from collections.abc import Callable
from typing import Any

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
from runners.compose import RunSpec
from runners.measuring.comparison import started_from, sums_over_tokens
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
    settings = spec.config["evaluation"]["kl_to_base"]
    limit = spec.config["evaluation"]["limit"] or settings["samples"]
    count = max(min(settings["samples"], limit), 2)
    with started_from(spec, tokenizer, tuned, dtype) as base:
        prompt = [token_to_start_from(tokenizer, settings["start_token"], "evaluation.kl_to_base")]
        samples = Start(spec, lambda: base, tell, rank, world).generate(
            f"kl-to-base-{settings['seed']}",
            [prompt] * count,
            Sampling(max_new_tokens=settings["max_length"] - 1, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id),
            settings["batch_size"],
        )
        whole, sampled = _compare(spec, samples, base, tuned, tokenizer.pad_token_id, tell(TASK))
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
    spec: RunSpec, samples: Examples, base: nn.Module, tuned: nn.Module, pad: int, tell: Tell
) -> tuple[Divergence, Divergence]:
    """The divergence by the chain rule, and by the log-ratio of whole sequences."""
    kind = adapter(spec.config["model"]["kind"])

    def values(batch: Batch) -> list[Tensor]:
        """KL by the chain rule, log p, log q of each token."""
        p_KV, q_KV = (kind.target_logits(model, batch).float().log_softmax(-1) for model in (base, tuned))
        drawn_K1 = batch.targets_K.unsqueeze(-1)
        return [kl(p_KV, q_KV), *(logps_KV.gather(-1, drawn_K1).squeeze(-1) for logps_KV in (p_KV, q_KV))]

    rows = spec.config["evaluation"]["batch_size"]
    found = sums_over_tokens(samples, values, rows=rows, pad=pad, what="KL to the base model", tell=tell)
    kl_S, base_S, tuned_S = found
    tokens_S = (samples.lengths - samples.targets).astype(np.int64)
    return chain_rule(kl_S, tokens_S), log_ratio(base_S, tuned_S, tokens_S)
