"""Deviation: how much a response differs from the other responses to its prompt, and the weight of a pair made of it.

Of "Modifying Large Language Model Post-Training for Diverse Creative Writing", arXiv 2503.17126; what DDPO and DORPO
have in common. For each prompt, over the n distinct texts that occur in its pairs, chosen and rejected:

    1. raw_i   = mean over j != i of 1 - cos(e_i, e_j)                      for each of A embeddings e
    2. v_ai    = 2 (raw_i - min) / (max - min) - 1,   0 where all are equal
    3. g_i     = 2 prod_a ((v_ai + 1) / 2)^(1/A) - 1                        geometric mean on [0, 1]
    4. delta_i = n (1 + g_i) / (n + sum_j g_j),       1 + g_i where all are equal

The deltas of a prompt have the mean 1. A pair's weight is the delta of its chosen text, so the mean over pairs is near
1 and not 1. The text that deviates least in one embedding has delta 0, and pairs that it wins say nothing;
`weight_min` raises such weights (the authors' ablation raises to 0.2, in their code for the rejected text). A prompt
with two texts has delta 1 for both: with one pair for each prompt DDPO is DPO.

The authors' code compares all texts of a prompt's pairs in step 1, one that occurs in several pairs as often as it
does; here each text counts once.
"""

import importlib
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor

from methods.examples import Examples
from methods.method import Context
from methods.objective import Loss
from methods.preference.base import Paired, Responses, Side, pairs

log = logging.getLogger(__name__)

Vectors = NDArray[np.floating[Any]]
Embedding = Callable[[Sequence[str]], Vectors]

_NGRAMS = (1, 2, 3)  # lengths, in characters
_BUCKETS = 4096
_AT_A_TIME = 4096  # texts embedded at a time, so that only their vectors are held


@dataclass(frozen=True, kw_only=True)
class DeviationConfig:
    """embedding: one or several: `ngrams`, `model:HUB_ID`, or the dotted path of a function from texts to vectors.

    weight_min: smallest weight of a pair.
    """

    embedding: str | list[str] = field(
        default_factory=lambda: ["model:jinaai/jina-embeddings-v3", "model:AnnaWegmann/Style-Embedding"]
    )
    weight_min: Annotated[float, Ge(0.0), Le(1.0)] = 0.0

    def __post_init__(self) -> None:
        if not self.embedding:
            raise ValueError(f"method.embedding={self.embedding!r}: must name at least one embedding")


def mean_distances(vectors: Vectors) -> NDArray[np.float64]:
    """Step 1: mean cosine distance of each of n >= 2 texts to the others. A zero vector is at distance 1 of all.

    Args:
        vectors: [n, d].

    Returns:
        [n].
    """
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
    distances = 1 - unit @ unit.T
    np.fill_diagonal(distances, 0.0)
    total: NDArray[np.float64] = distances.sum(1) / (len(wide) - 1)
    return total


def scaled(raw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Step 2: to [-1, 1] by the smallest and the largest; 0 where all are equal (to rounding). Shape as given."""
    low, high = raw.min(), raw.max()
    if high - low <= 1e-9:
        return np.zeros_like(raw)
    return 2 * (raw - low) / (high - low) - 1


def combined(scores_An: NDArray[np.float64]) -> NDArray[np.float64]:
    """Step 3: geometric mean over the embeddings, of scores [A, n] in [-1, 1]. Returns [n], in [-1, 1]."""
    shares = (scores_An + 1) / 2
    mean: NDArray[np.float64] = np.prod(shares ** (1 / len(shares)), axis=0)
    return 2 * mean - 1


def mean_one(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Step 4: the weights delta of a prompt's texts, of their scores [n] in [-1, 1]. Returns [n], >= 0, mean 1."""
    if scores.min() == scores.max():
        return 1 + scores
    count = len(scores)
    return count * (1 + scores) / (count + scores.sum())


def deviations(vectors: Sequence[Vectors]) -> NDArray[np.float64]:
    """Steps 1 to 4: the weights delta of the distinct texts of one prompt.

    Args:
        vectors: of each embedding, the texts' vectors [n, d]; d may differ.

    Returns:
        [n], >= 0; 1 for a single text.
    """
    if len(vectors[0]) < 2:
        return np.ones(len(vectors[0]))
    return mean_one(combined(np.stack([scaled(mean_distances(each)) for each in vectors])))


# Embeddings --------------------------------------------------------------------------------------------------


def ngram_vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """Counts of character n-grams (1 to 3), hashed into 4096 places: ours, for miniatures. Returns [n, 4096].

    The same on every machine (CRC-32). It sees spelling, not meaning.
    """
    vectors = np.zeros((len(texts), _BUCKETS), dtype=np.float32)
    for row, text in enumerate(texts):
        for size in _NGRAMS:
            for at in range(len(text) - size + 1):
                vectors[row, zlib.crc32(text[at : at + size].encode()) % _BUCKETS] += 1
    return vectors


def embedding(name: str) -> Embedding:
    """The function from texts to vectors [n, d] that a name says; it must embed each text by itself.

    Raises:
        ValueError: there is none of that name, or what it needs is not installed.
    """
    if name == "ngrams":
        return ngram_vectors
    if name.startswith("model:"):
        return _sentence_transformer(name)
    module, _, function = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"method.embedding={name}: must be ngrams, model:HUB_ID or the dotted path of a function ({error})"
        ) from error
    if not callable(found):
        raise ValueError(f"method.embedding={name}: must be a function from a list of texts to vectors")
    return found


def _sentence_transformer(name: str) -> Embedding:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(
            f"method.embedding={name}: needs sentence-transformers (pip install sentence-transformers); "
            "or give ngrams, or a function of yours"
        ) from error
    try:
        model = SentenceTransformer(name.removeprefix("model:"))
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"method.embedding={name}: must be a model that sentence-transformers loads without code of its own; load "
            f"others in a function of yours ({reason})"
        ) from error

    def embed(texts: Sequence[str]) -> Vectors:
        vectors: Vectors = model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return vectors

    return embed


# Pairs -------------------------------------------------------------------------------------------------------


def of_responses(examples: Examples, texts: Sequence[str], embeddings: Sequence[Embedding]) -> NDArray[np.float64]:
    """Delta of every response; pairs with the same prompt tokens share a prompt.

    Args:
        examples: groups of responses.
        texts: of the responses, in their order.
        embeddings: at least one.

    Returns:
        [n].

    Raises:
        ValueError: an embedding does not give one finite vector for each text.
    """
    delta_n = np.ones(len(examples))
    for prompts in _chunks(list(_by_prompt(examples).values())):
        distinct = [list(dict.fromkeys(texts[index] for index in members)) for members in prompts]
        flat = [text for of_prompt in distinct for text in of_prompt]
        vectors = [_checked(embed(flat), len(flat)) for embed in embeddings]
        begin = 0
        for members, of_prompt in zip(prompts, distinct, strict=True):
            end = begin + len(of_prompt)
            delta = dict(zip(of_prompt, deviations([each[begin:end] for each in vectors]), strict=True))
            for index in members:
                delta_n[index] = delta[texts[index]]
            begin = end
    return delta_n


def _by_prompt(examples: Examples) -> dict[bytes, list[int]]:
    """Responses by their prompt; all of a group have that of its first."""
    found: dict[bytes, list[int]] = {}
    groups = examples.groups
    for begin, end in zip(groups[:-1].tolist(), groups[1:].tolist(), strict=True):
        found.setdefault(examples.prompt(begin).tobytes(), []).extend(range(begin, end))
    return found


def _chunks(prompts: list[list[int]]) -> Iterator[list[list[int]]]:
    """Whole prompts, of some thousand responses at a time."""
    chunk: list[list[int]] = []
    for members in prompts:
        chunk.append(members)
        if sum(map(len, chunk)) >= _AT_A_TIME:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _checked(vectors: Vectors, count: int) -> Vectors:
    array = np.asarray(vectors)
    if array.ndim != 2 or len(array) != count or not np.isfinite(array).all():
        raise ValueError(f"method.embedding: must give a finite vector for each of {count} texts, got {array.shape}")
    return array


class Deviating(Paired):
    """Base of the methods that weigh a pair by the deviation of its chosen response."""

    _delta_n: Tensor | None = None  # of every response of the data set

    @property
    def _deviation(self) -> DeviationConfig:
        assert isinstance(self.config, DeviationConfig)
        return self.config

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Measure the reference, where there is one, and the deviations of all responses.

        Raises:
            ValueError: an embedding cannot be had, or does not give a vector for each text.
        """
        reported = super().prepare(context)
        labels = context.examples.labels
        assert labels is not None, "pairs have labels"
        if self._delta_n is None:  # else: restored from a checkpoint
            names = self._deviation.embedding
            embeddings = [embedding(name) for name in ([names] if isinstance(names, str) else names)]
            texts = responses_of(context.examples, context.tokenizer)
            self._delta_n = torch.from_numpy(of_responses(context.examples, texts, embeddings)).float()
        weights = self._delta_n.cpu().clamp_min(self._deviation.weight_min)[torch.from_numpy(labels > 0.5)]
        if (weights == weights[0]).all():
            log.warning("deviation: all %d pairs have the weight %.3g; it changes nothing", len(weights), weights[0])
        return {
            **reported,
            "deviation/weight_mean": float(weights.mean()),
            "deviation/weight_max": float(weights.max()),
            "deviation/zero_share": float((weights == 0).float().mean()),
        }

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the pairs, each with the weight of its chosen response."""
        chosen, rejected = pairs(responses)
        assert self._delta_n is not None, "prepare comes first"
        batch = responses.batch
        assert batch.label_S is not None, "pairs have labels"
        self._delta_n = self._delta_n.to(batch.example_S.device)  # moved once
        weights_P = self._delta_n[batch.example_S[batch.label_S > 0.5]].clamp_min(self._deviation.weight_min)
        losses_P = self.weighted_losses(chosen, rejected, weights_P)
        return Loss(losses_P.sum(), {**self.metrics(chosen, rejected), "weight": weights_P.sum()})

    def weighted_losses(self, chosen: Side, rejected: Side, weights_P: Tensor) -> Tensor:
        """The loss of each pair, with its weight in it. Returns [P]."""
        raise NotImplementedError(f"{type(self).__name__} must implement weighted_losses")

    def state_dict(self) -> dict[str, Any]:
        """The deviations, which take an embedding of all texts."""
        return {"deltas": self._delta_n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the deviations from before the run was interrupted."""
        self._delta_n = state["deltas"]


def responses_of(examples: Examples, tokenizer: Any) -> list[str]:
    """The responses as text, without special tokens. Returns n strings."""
    found: list[str] = tokenizer.batch_decode(
        [examples.response(index).tolist() for index in range(len(examples))], skip_special_tokens=True
    )
    return found
