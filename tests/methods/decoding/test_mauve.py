"""MAUVE of decodings: what is drawn has the probabilities it should, n-grams their counts, and scores their order."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from methods.decoding import mauve
from methods.decoding.best_of_n_kl import RandomModel
from methods.decoding.mauve import Language, LanguageConfig, MauveOfDecoding, MauveOfDecodingConfig, Ngram

LOGPS = np.log([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]])


def test_decodings_by_hand() -> None:
    np.testing.assert_allclose(mauve.decoded(LOGPS, 1.0, 1.0), np.exp(LOGPS))
    np.testing.assert_array_equal(mauve.decoded(LOGPS, 0.0, 1.0), [[1, 0, 0, 0], [0, 0, 0, 1]])
    squares = np.exp(2 * LOGPS)
    np.testing.assert_allclose(mauve.decoded(LOGPS, 0.5, 1.0), squares / squares.sum(1, keepdims=True))
    # 0.8 of the first needs two letters, of the second three.
    found = mauve.decoded(LOGPS, 1.0, 0.75)
    np.testing.assert_allclose(found, [[5 / 8, 3 / 8, 0, 0], [0, 2 / 9, 3 / 9, 4 / 9]])
    np.testing.assert_allclose(mauve.decoded(LOGPS, 1.0, 0.01), mauve.decoded(LOGPS, 0.0, 1.0))


def test_letters_are_drawn_as_often_as_they_should() -> None:
    p = np.repeat(np.exp(LOGPS[:1]), 20_000, 0)
    shares = np.bincount(mauve.drawn(p, np.random.default_rng(0)), minlength=4) / len(p)
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.015)


def test_texts_follow_the_language() -> None:
    """Pairs of first letters, against the model's own probabilities."""
    language = RandomModel.draw(3, 4, 1.0, np.random.default_rng(0))
    texts = mauve.written(language, 30_000, 2, np.random.default_rng(1))
    start = np.tanh(language.embedding_TH[:1])
    first = np.exp(language.next_logps(start))[0]
    second = np.exp(language.next_logps(np.tanh(start @ language.recurrent_HH + language.embedding_TH)))
    shares = np.bincount(texts @ [3, 1], minlength=9).reshape(3, 3) / len(texts)
    np.testing.assert_allclose(shares, first[:, None] * second, atol=0.012)


def test_counts_of_ngrams() -> None:
    texts = np.array([[0, 1, 0, 1], [1, 1, 0, 0]])
    first, second = Ngram.count(texts, 2, 2).tables
    np.testing.assert_allclose(first, [[1.1, 1.1]])  # how the texts begin
    np.testing.assert_allclose(second, [[1.1, 2.1], [2.1, 1.1]])
    (unigram,) = Ngram.count(texts, 1, 2).tables
    np.testing.assert_allclose(unigram, [[4.1, 4.1]])
    three = Ngram.count(texts, 3, 2).tables[2]
    assert three.shape == (4, 2) and three.sum() == pytest.approx(4 + 8 * 0.1)


def test_an_ngram_model_writes_what_it_counted() -> None:
    texts = np.tile([[0, 1, 2, 0, 1, 2], [2, 1, 0, 2, 1, 0]], (500, 1))
    found = Ngram.count(texts, 3, 3).write(400, 6, np.random.default_rng(0))
    same = [(text == texts[:2]).all(1).any() for text in found]
    assert np.mean(same) > 0.97


class Context:
    """What a run offers."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.seed = dataset, 1
        self.logged: list[tuple[int, dict[str, float]]] = []

    def steps(self, _: str, total: int) -> Iterator[int]:
        return iter(range(total))

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((step, metrics))


def studied(**settings: Any) -> tuple[Context, dict[str, float]]:
    context = Context(Language(LanguageConfig(letters=6, hidden=8)).load(1))
    config = MauveOfDecodingConfig(**{"texts": 240, "length": 12, "dimensions": 10, "fitted": 500, **settings})
    return context, dict(MauveOfDecoding(config).run(context))  # type: ignore[arg-type]


def test_the_language_itself_scores_best_on_every_estimator() -> None:
    context, right = studied()
    cold, unigram = studied(temperature=0.3)[1], studied(ngram=1)[1]
    assert [step for step, _ in context.logged] == [30, 60, 120, 240]
    assert context.logged[-1][1]["mauve/score"] == right["mauve/score"]
    for name in ("score", "smoothed", "neighbours", "classifier", "gaussian"):
        assert max(cold[f"mauve/{name}"], unigram[f"mauve/{name}"]) < right[f"mauve/{name}"] <= 1, name
    for name in ("integral", "smoothed", "neighbours", "classifier", "gaussian"):
        assert min(cold[f"frontier/{name}"], unigram[f"frontier/{name}"]) > right[f"frontier/{name}"] >= 0, name
    assert all(math.isfinite(value) for value in right.values())
