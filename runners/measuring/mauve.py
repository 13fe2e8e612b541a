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
from runners import fingerprint, processes
from runners.compose import RunSpec
from runners.engine import device
from runners.errors import UserError
from runners.measuring.sampling import Questions, decoded, sampled, sampling_of
from runners.start import Tell

TASK = "mauve"
_KEY = "evaluation.mauve"
TERMS = "terms"  # in place of a model's name


def with_mauve(
    measured: Evaluation,
    spec: RunSpec,
    asked: Questions,
    tokenizer: Any,
    model: nn.Module,
    tell: Callable[[str], Tell],
) -> Evaluation:
    """`measured` with the metrics of one task more, `mauve`.

    score and frontier_integral, score_star and frontier_integral_star (of smoothed histograms).

    Args:
        measured: by others.
        spec: the run.
        asked: of `sampling.questions`.
        tokenizer: of the model.
        model: the run's final one, sharded or whole.
        tell: from the name of a phase to a function of (done, total).

    Raises:
        UserError: the texts cannot be embedded or compared.
        Preempted: told to stop.
    """
    settings = spec.config["evaluation"]["mauve"]
    sampling = sampling_of(settings, tokenizer)
    prompts = asked.prompts
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
        n_samples={**measured.n_samples, TASK: {"original": asked.rows, "effective": len(prompts)}},
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
