"""MAUVE of what a run's model writes, against the texts of a data set (`evaluation.mauve`).

Both sides have the prompts before them (Pillutla et al., arXiv 2102.01454). They are embedded by a model of their own,
which is not the one that is measured; embeddings are kept in `<outputs>/cache/mauve`, so that those of the data set are
made once for all runs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from evals import mauve
from evals.harness import Evaluation
from methods.generation import Sampling
from runners import fingerprint, processes
from runners.compose import RunSpec
from runners.data import load_rows
from runners.engine import device
from runners.errors import UserError
from runners.measuring.sampling import Prompt, as_of, bounded, decoded, different_prompts, sampled
from runners.models import context_length
from runners.start import Tell

TASK = "mauve"
_KEY = "evaluation.mauve"
TERMS = "terms"  # in place of a model's name


def continued(spec: RunSpec, tokenizer: Any, parent: Path | None) -> list[Prompt]:
    """Load the prompts, with the data set's own texts after them; those that leave no room are left out.

    Args:
        spec: the run.
        tokenizer: of the model.
        parent: folder of the run that the model comes from.

    Raises:
        UserError: the data cannot be used, or fewer than two prompts fit.
    """
    evaluation = spec.config["evaluation"]
    settings = evaluation["mauve"]
    longest = min(context_length(spec.config["model"], parent), evaluation["max_length"] or 2**31)
    try:
        rows = load_rows(settings["dataset"])
        asked = bounded(settings["prompts"], evaluation["limit"], len(rows))
        prompts = different_prompts(rows, settings["dataset"], tokenizer, longest - settings["max_new_tokens"], asked)
    except UserError as error:
        raise as_of(f"{_KEY}.dataset", error) from error
    if len(prompts) < 2:
        raise UserError(
            f"{_KEY}.dataset: needs at least two prompts that fit into {longest} tokens with "
            f"{settings['max_new_tokens']} new ones, got {len(prompts)}"
        )
    return prompts


def with_mauve(
    measured: Evaluation,
    spec: RunSpec,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    model: nn.Module,
    tell: Callable[[str], Tell],
) -> Evaluation:
    """`measured` with the metrics of one task more, `mauve`.

    score and frontier_integral, score_star and frontier_integral_star (of smoothed histograms).

    Args:
        measured: by others.
        spec: the run.
        prompts: of `continued`.
        tokenizer: of the model.
        model: the run's final one, sharded or whole.
        tell: from the name of a phase to a function of (done, total).

    Raises:
        UserError: the texts cannot be embedded or compared.
        Preempted: told to stop.
    """
    settings = spec.config["evaluation"]["mauve"]
    sampling = Sampling(
        max_new_tokens=settings["max_new_tokens"],
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        temperature=settings["temperature"],
        top_p=settings["top_p"],
    )
    ids = [prompt.ids for prompt in prompts]
    seed = settings["seed"]
    written = decoded(sampled(model, ids, sampling, settings["batch_size"], seed, "texts", tell("texts")), tokenizer)
    theirs = [prompt.text + prompt.answer for prompt in prompts]
    own = [prompt.text + text for prompt, text in zip(prompts, written, strict=True)]

    def scored() -> dict[str, float]:
        found = mauve.quantised(
            *_features(spec, theirs, own), clusters=settings["clusters"], scaling=settings["scaling"]
        )
        assert found.mauve_star is not None and found.frontier_integral_star is not None
        return {
            "score": found.mauve,
            "score_star": found.mauve_star,
            "frontier_integral": found.frontier_integral,
            "frontier_integral_star": found.frontier_integral_star,
        }

    try:
        found = processes.first_decides(scored)
    except ValueError as error:
        raise UserError(f"{_KEY}: {error}") from error
    columns = [{"prompt": p.text, "text": p.answer, "written": w} for p, w in zip(prompts, written, strict=True)]
    return dataclasses.replace(
        measured,
        metrics={**measured.metrics, TASK: {f"{name},none": value for name, value in found.items()}},
        n_samples={**measured.n_samples, TASK: {"original": len(prompts), "effective": len(prompts)}},
        higher_is_better={**measured.higher_is_better, TASK: {name: name.startswith("score") for name in found}},
        samples={**measured.samples, TASK: columns},
    )


def _features(spec: RunSpec, theirs: Sequence[str], own: Sequence[str]) -> tuple[mauve.Floats, mauve.Floats]:
    """Embeddings of both sides."""
    settings = spec.config["evaluation"]["mauve"]
    name, longest = settings["embedding"], settings["embedded_tokens"]
    if name == TERMS:
        return mauve.term_features(theirs, own)
    loaded: list[Any] = []

    def embed(texts: Sequence[str]) -> mauve.Floats:
        if not loaded:
            try:
                words = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
                embedding = AutoModel.from_pretrained(name, trust_remote_code=False).to(device()).eval()
            except (OSError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(f"{_KEY}.embedding={name}: cannot be loaded: {reason}") from error
            loaded.extend((embedding, words))
        return mauve.hidden_states(loaded[0], loaded[1], texts, max_length=longest)

    folder = Path(spec.config["outputs"]).expanduser() / "cache" / "mauve"
    content = fingerprint.of_inputs(spec.config).get(f"{_KEY}.embedding")
    decides = {"model": content or name, "max_length": longest, "versions": [torch.__version__]}
    p, q = (mauve.cached_features(folder, decides, texts, embed) for texts in (theirs, own))
    loaded.clear()
    return p, q
