"""MAUVE of two sets of texts, from embeddings of our own: by quantisation, as published, and by three other estimators.

Pillutla et al., arXiv 2102.01454 and 2212.14578; what is computed from histograms and ratios is in `evals.frontier`.
The published score embeds each text (the hidden state at its last token), scales embeddings to length 1, keeps the
principal components that hold 90% of the variance, makes clusters of all embeddings together (k-means, a tenth as many
as texts) and compares how often each cluster is met. PCA and k-means are those of the authors' package, mauve-text;
the histograms that it returns are scored here, since its own sort of tied points gives 0.75 for equal histograms.

The later paper also estimates without clusters, from the log-ratio log p/q at the samples: by nearest neighbours, a
classifier, or two Gaussians. Their settings are not in our sources: those here are guesses.

Scores compare only where all settings, the embedding and the numbers of texts are the same; of few texts they are too
high and noisy. Legend: N texts of P, M texts of Q, D features, K clusters, S texts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evals import frontier

if TYPE_CHECKING:
    import torch
    import transformers

Floats = NDArray[np.float64]
Estimator = Literal["neighbours", "classifier", "gaussian"]

_RIDGE = 1e-6  # added to covariances, relative to their mean variance


@dataclass(frozen=True)
class Scores:
    """What two sets of texts score; `*_star` of smoothed histograms, None where there are none.

    mauve: in (0, 1], higher is closer. frontier_integral: in [0, 1], lower is closer. curve: the frontier [L + 2, 2].
    """

    mauve: float
    frontier_integral: float
    curve: Floats
    mauve_star: float | None = None
    frontier_integral_star: float | None = None
    p_counts_K: NDArray[np.int64] | None = None
    q_counts_K: NDArray[np.int64] | None = None


def quantised(
    p_ND: ArrayLike,
    q_MD: ArrayLike,
    *,
    clusters: int | None = None,
    scaling: float = frontier.SCALING,
    points: int = frontier.POINTS,
    variance: float = 0.9,
    restarts: int = 5,
    iterations: int = 500,
    seed: int = 25,
) -> Scores:
    """The published score, from embeddings of the texts of P and of Q.

    Args:
        clusters: K; None for a tenth of the smaller set, at least 2.
        scaling, points: of the frontier.
        variance: share that the principal components keep.
        restarts, iterations, seed: of k-means; the defaults are the authors' code's.

    Raises:
        ValueError: embeddings that do not fit together, hold no variance or are fewer than the clusters; mauve-text is
            not installed.
    """
    p_ND, q_MD = _pair(p_ND, q_MD)
    k = max(2, round(min(len(p_ND), len(q_MD)) / 10)) if clusters is None else clusters
    if not 1 < k <= len(p_ND) + len(q_MD):
        raise ValueError(f"clusters={k}: must be from 2 to the number of texts, {len(p_ND) + len(q_MD)}")
    _check_variance(variance)
    for name, value in (("restarts", restarts), ("iterations", iterations)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise ValueError("MAUVE by clusters needs the package mauve-text: pip install 'retable[mauve]'") from error

    found = compute_mauve(
        p_features=p_ND, q_features=q_MD, num_buckets=k, kmeans_explained_var=variance, kmeans_num_redo=restarts,
        kmeans_max_iter=iterations, seed=seed,
    )  # fmt: skip
    return of_counts(np.rint(found.p_hist * len(p_ND)), np.rint(found.q_hist * len(q_MD)), scaling, points)


def of_counts(
    p_counts_K: ArrayLike, q_counts_K: ArrayLike, scaling: float = frontier.SCALING, points: int = frontier.POINTS
) -> Scores:
    """The scores of two histograms of counts, plain and smoothed.

    Raises:
        ValueError: no counts, or not of the same bins.
    """
    p_K, q_K = np.asarray(p_counts_K, np.int64), np.asarray(q_counts_K, np.int64)
    smooth = frontier.smoothed(p_K), frontier.smoothed(q_K)
    if not p_K.sum() or not q_K.sum():
        raise ValueError("counts must hold at least one text of each set")
    plain = p_K / p_K.sum(), q_K / q_K.sum()
    curve = frontier.frontier(*plain, scaling, points)
    return Scores(
        mauve=frontier.area(curve),
        frontier_integral=frontier.frontier_integral(*plain),
        curve=curve,
        mauve_star=frontier.mauve(*smooth, scaling, points),
        frontier_integral_star=frontier.frontier_integral(*smooth),
        p_counts_K=p_K,
        q_counts_K=q_K,
    )


# Without clusters --------------------------------------------------------------------------------------------


def of_ratios(
    p_ND: ArrayLike,
    q_MD: ArrayLike,
    estimator: Estimator,
    *,
    scaling: float = frontier.SCALING,
    points: int = frontier.POINTS,
    variance: float = 0.9,
    seed: int = 0,
) -> Scores:
    """The scores from log-ratios that one of the estimators below gives, on the same principal components.

    Raises:
        ValueError: an unknown estimator, or embeddings that do not fit together, hold no variance or are too few.
    """
    p_ND, q_MD = principal_components(p_ND, q_MD, variance)
    if estimator == "neighbours":
        ratios = neighbour_logratios(p_ND, q_MD)
    elif estimator == "classifier":
        ratios = classifier_logratios(p_ND, q_MD, seed=seed)
    elif estimator == "gaussian":
        ratios = gaussian_logratios(p_ND, q_MD, seed=seed)
    else:
        raise ValueError(f"estimator={estimator}: must be neighbours, classifier or gaussian")
    curve = frontier.frontier_of_ratios(*ratios, scaling, points)
    return Scores(frontier.area(curve), frontier.frontier_integral_of_ratios(*ratios), curve)


def principal_components(p_ND: ArrayLike, q_MD: ArrayLike, variance: float = 0.9) -> tuple[Floats, Floats]:
    """Embeddings of length 1, on the first components of all of them together that hold a share of the variance.

    The component with which the share is reached is among them, as in the authors' code.

    Raises:
        ValueError: as `quantised`.
    """
    p_ND, q_MD = _pair(p_ND, q_MD)
    _check_variance(variance)
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    rows = normalize(np.concatenate([q_MD, p_ND]))
    pca = PCA(random_state=0).fit(rows)
    kept = int(np.argmax(np.cumsum(pca.explained_variance_ratio_) >= variance)) + 1
    reduced = pca.transform(rows)[:, :kept]
    return reduced[len(q_MD) :], reduced[: len(q_MD)]


def neighbour_logratios(p_ND: ArrayLike, q_MD: ArrayLike, neighbours: int | None = None) -> tuple[Floats, Floats]:
    """log p/q at the samples: how many of the nearest samples are of P, how many of Q, over how many there are of each.

    A sample is no neighbour of itself, and 1/2 is added to both counts.

    Args:
        neighbours: that are counted; None for the root of the smaller number of samples.

    Returns:
        [N] and [M].

    Raises:
        ValueError: fewer samples than neighbours, or samples that do not fit together.
    """
    p_ND, q_MD = _pair(p_ND, q_MD)
    n, m = len(p_ND), len(q_MD)
    k = round(min(n, m) ** 0.5) if neighbours is None else neighbours
    if not 1 <= k < n + m:
        raise ValueError(f"neighbours={k}: must be from 1 to less than the number of texts, {n + m}")
    from sklearn.neighbors import NearestNeighbors

    together = np.concatenate([p_ND, q_MD])
    near = NearestNeighbors(n_neighbors=k).fit(together).kneighbors(return_distance=False)  # not those themselves
    of_p = (near < n).sum(1)
    # A sample of P has one of P less around it.
    others_p, others_q = n - (np.arange(n + m) < n), m - (np.arange(n + m) >= n)
    logratios = np.log((of_p + 0.5) / others_p) - np.log((k - of_p + 0.5) / others_q)
    return logratios[:n], logratios[n:]


def classifier_logratios(p_ND: ArrayLike, q_MD: ArrayLike, *, folds: int = 5, seed: int = 0) -> tuple[Floats, Floats]:
    """log p/q at the samples: the logit of a logistic regression that tells P from Q, less the log of their numbers.

    Each sample is judged by a classifier that was fitted to the other folds. Returns [N] and [M].

    Raises:
        ValueError: fewer samples than folds, or samples that do not fit together.
    """
    p_ND, q_MD = _pair(p_ND, q_MD)
    if not 2 <= folds <= min(len(p_ND), len(q_MD)):
        raise ValueError(f"folds={folds}: must be from 2 to the number of texts, {min(len(p_ND), len(q_MD))}")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    of_p = np.r_[np.ones(len(p_ND), int), np.zeros(len(q_MD), int)]
    logits = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        np.concatenate([p_ND, q_MD]),
        of_p,
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        method="decision_function",
    )
    logratios = logits - np.log(len(p_ND) / len(q_MD))
    return logratios[: len(p_ND)], logratios[len(p_ND) :]


def gaussian_logratios(
    p_ND: ArrayLike, q_MD: ArrayLike, *, draws: int = 10_000, seed: int = 0
) -> tuple[Floats, Floats]:
    """log p/q at draws from a Gaussian that is fitted to P and from one fitted to Q. Returns [draws] twice.

    Raises:
        ValueError: no draws, or samples that do not fit together.
    """
    p_ND, q_MD = _pair(p_ND, q_MD)
    if draws < 1:
        raise ValueError(f"draws={draws}: must be at least 1")
    from scipy.stats import multivariate_normal

    fitted, spread = [], _RIDGE * float(np.concatenate([p_ND, q_MD]).var(0).sum())
    for samples in (p_ND, q_MD):
        covariance = np.atleast_2d(np.cov(samples, rowvar=False))
        # Of samples that are all the same, as greedy decoding writes them, the spread of both sets counts.
        ridge = _RIDGE * max(np.trace(covariance), spread) / len(covariance)
        fitted.append(multivariate_normal(samples.mean(0), covariance + ridge * np.eye(len(covariance))))
    p, q = fitted
    random = np.random.default_rng(seed)
    drawn = [one.rvs(draws, random_state=random).reshape(draws, -1) for one in fitted]
    of_p, of_q = (np.atleast_1d(p.logpdf(x) - q.logpdf(x)) for x in drawn)
    return of_p, of_q


def _check_variance(variance: float) -> None:
    if not 0 < variance < 1:
        raise ValueError(f"variance={variance}: must be above 0 and below 1")


def _pair(p_ND: ArrayLike, q_MD: ArrayLike) -> tuple[Floats, Floats]:
    p, q = np.asarray(p_ND, float), np.asarray(q_MD, float)
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1] or min(len(p), len(q)) < 2:
        raise ValueError(
            f"embeddings must be two or more for P and for Q, all of one width, got shapes {p.shape} and {q.shape}"
        )
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        raise ValueError("embeddings must be finite numbers")
    if not np.ptp(np.concatenate([p, q]), axis=0).any():
        raise ValueError("embeddings must differ, got the same one everywhere")
    return p, q


# Embeddings --------------------------------------------------------------------------------------------------


def hidden_states(
    model: torch.nn.Module,
    tokenizer: transformers.PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    pooling: Literal["last", "mean"] = "last",
    max_length: int = 1024,
    batch_size: int = 16,
) -> Floats:
    """A model's last hidden states of each text, at its last token (published) or their mean over its tokens.

    Padding is to the right and never looked at. Texts should hold their prompts for both sets, or for neither.

    Args:
        model: of transformers, in evaluation mode.
        max_length: tokens of a text; more are cut.

    Returns:
        [S, D] in fp32 accuracy.

    Raises:
        ValueError: no texts, or one without a token.
    """
    import torch

    if pooling not in ("last", "mean"):
        raise ValueError(f"pooling={pooling}: must be last or mean")
    encoded = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    if not encoded or not all(encoded) or not all(texts):
        raise ValueError("texts must be at least one, each with at least one token: leave empty ones out")
    device = next(model.parameters()).device
    found: list[torch.Tensor] = []
    for start in range(0, len(encoded), batch_size):
        tokens = [torch.tensor(each) for each in encoded[start : start + batch_size]]
        tokens_BT = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(device)
        lengths_B = torch.tensor([len(each) for each in tokens], device=device)
        mask_BT = torch.arange(tokens_BT.shape[1], device=device) < lengths_B[:, None]
        with torch.no_grad():
            output = model(input_ids=tokens_BT, attention_mask=mask_BT.long(), output_hidden_states=True)
        hidden_BTD = output.hidden_states[-1].float()
        if pooling == "last":
            found.append(hidden_BTD[torch.arange(len(tokens), device=device), lengths_B - 1].cpu())
        else:
            weights_BT1 = (mask_BT / lengths_B[:, None]).unsqueeze(-1)
            found.append((hidden_BTD * weights_BT1).sum(1).cpu())
    return torch.cat(found).numpy().astype(np.float64)


def term_features(
    p_texts: Sequence[str], q_texts: Sequence[str], *, dimensions: int = 50, longest: int = 3, seed: int = 0
) -> tuple[Floats, Floats]:
    """Embeddings without a model (ours): TF-IDF of strings of 1 to `longest` characters, the first singular vectors.

    Both sets are embedded together. Returns [N, D] and [M, D].

    Raises:
        ValueError: no text, or texts with fewer different strings of characters than dimensions.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not p_texts or not q_texts:
        raise ValueError("texts must be at least one of each set")
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, longest), lowercase=False, sublinear_tf=True)
    weights = vectorizer.fit_transform([*p_texts, *q_texts])
    if weights.shape[1] <= dimensions:
        raise ValueError(
            f"dimensions={dimensions}: must be fewer than the different strings of the texts, {weights.shape[1]}"
        )
    features = TruncatedSVD(dimensions, random_state=seed).fit_transform(weights)
    return features[: len(p_texts)], features[len(p_texts) :]


def cached_features(
    folder: Path, decides: Mapping[str, Any], texts: Sequence[str], make: Callable[[Sequence[str]], ArrayLike]
) -> Floats:
    """Embeddings of texts, made once and kept in `folder`.

    Args:
        decides: what else they depend on, such as the model's identity and the settings; plain data.
        make: from the texts to [S, D].

    Returns:
        [S, D], in the order of the texts.

    Raises:
        ValueError: `make` did not return a row for each text.
    """
    said = json.dumps([dict(decides), list(texts)], sort_keys=True, ensure_ascii=True)
    path = Path(folder) / f"features-{hashlib.sha256(said.encode()).hexdigest()[:32]}.npy"
    with contextlib.suppress(FileNotFoundError, ValueError, EOFError):  # not made yet, or damaged
        return np.asarray(np.load(path, allow_pickle=False))
    features = np.asarray(make(texts), float)
    if features.ndim != 2 or len(features) != len(texts):
        raise ValueError(f"features must be a row for each of {len(texts)} texts, got shape {features.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with aside.open("wb") as file:
        np.save(file, features)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    return features
