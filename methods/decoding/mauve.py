"""How near what a decoding writes is to a language: MAUVE and its estimators, on a language that is made up.

Pillutla et al., arXiv 2102.01454 and 2212.14578, who compare decodings of GPT-2 with human texts. Here the language is
a random recurrent model over letters (`methods.decoding.best_of_n_kl.RandomModel`), so that what is right is known:
sampling at temperature 1 writes the language itself. Others sharpen or flatten it (temperature), cut its tail (nucleus:
of the likeliest letters as few as hold the given share) or are n-gram models that were fitted to its texts. Texts of
both sides are embedded without a model (`evals.mauve.term_features`).

Measured with 1/8, 1/4, 1/2 of the texts and all of them, and a tenth as many clusters each, since with few texts the
score is too high; the other estimators with all.

Legend: N texts, T letters, L letters of a text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveInt

from evals.mauve import Estimator, of_ratios, quantised, term_features
from methods.dataset import Dataset
from methods.decoding.best_of_n_kl import RandomModel
from methods.method import Context
from methods.simulation import Simulation

Floats = NDArray[np.float64]
Texts = NDArray[np.int64]  # [N, L]

_PSEUDOCOUNT = 0.1  # of a letter after a context, in an n-gram model
_ESTIMATORS: tuple[Estimator, ...] = ("neighbours", "classifier", "gaussian")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """letters: T. hidden: of the random model."""

    letters: Annotated[int, Ge(2), Le(26)] = 12
    hidden: PositiveInt = 16


class Language(Dataset):
    """A random recurrent model over letters."""

    config: LanguageConfig
    type = "language"

    def load(self, seed: int) -> RandomModel:
        """Draw its weights."""
        return RandomModel.draw(self.config.letters, self.config.hidden, 1.0, np.random.default_rng([seed, 19]))


@dataclass(frozen=True, kw_only=True)
class MauveOfDecodingConfig:
    """temperature: of the decoding; 0 is greedy. nucleus: share of the probability that is kept.

    ngram: letters that an n-gram model in place of the language looks at, the next one included; null: the language
    itself. fitted: texts it is fitted to. texts: N of each side. length: L. dimensions: of an embedding.
    """

    temperature: NonNegativeFloat = 1.0
    nucleus: Annotated[float, Gt(0.0), Le(1.0)] = 1.0
    ngram: Annotated[int, Ge(1), Le(4)] | None = None
    fitted: PositiveInt = 2000
    texts: Annotated[int, Ge(160)] = 1000
    length: Annotated[int, Ge(4)] = 24
    dimensions: PositiveInt = 30


class MauveOfDecoding(Simulation):
    """MAUVE of texts that a decoding writes, against texts of the language (arXiv 2102.01454)."""

    config: MauveOfDecodingConfig
    data: ClassVar[tuple[str, ...]] = ("language",)

    def run(self, context: Context) -> Mapping[str, float]:
        """Write texts of both sides, embed them together, compare."""
        config, language = self.config, context.dataset
        random = np.random.default_rng([context.seed, 23])
        true = written(language, config.texts, config.length, random)
        if config.ngram is None:
            found = written(language, config.texts, config.length, random, config.temperature, config.nucleus)
        else:
            letters = len(language.embedding_TH)
            counted = Ngram.count(written(language, config.fitted, config.length, random), config.ngram, letters)
            found = counted.write(config.texts, config.length, random, config.temperature, config.nucleus)
        features = term_features(spelled(true), spelled(found), dimensions=config.dimensions, seed=context.seed)
        for part in (8, 4, 2, 1):
            p, q = (each[: config.texts // part] for each in features)
            scores = quantised(p, q)
            context.log({"mauve/score": scores.mauve, "frontier/integral": scores.frontier_integral}, len(p))
        assert scores.mauve_star is not None and scores.frontier_integral_star is not None
        measured = {
            "mauve/score": scores.mauve,
            "mauve/smoothed": scores.mauve_star,
            "frontier/integral": scores.frontier_integral,
            "frontier/smoothed": scores.frontier_integral_star,
        }
        for estimator in _ESTIMATORS:
            other = of_ratios(*features, estimator, seed=context.seed)
            measured |= {f"mauve/{estimator}": other.mauve, f"frontier/{estimator}": other.frontier_integral}
        return measured


def written(
    language: RandomModel,
    texts: int,
    length: int,
    random: np.random.Generator,
    temperature: float = 1.0,
    nucleus: float = 1.0,
) -> Texts:
    """Texts of the language, letter by letter. Returns [N, L]."""
    state_NH = np.tanh(np.broadcast_to(language.embedding_TH[0], (texts, language.embedding_TH.shape[1])))
    letters = np.zeros((texts, length), np.int64)
    for place in range(length):
        letters[:, place] = drawn(decoded(language.next_logps(state_NH), temperature, nucleus), random)
        state_NH = np.tanh(state_NH @ language.recurrent_HH + language.embedding_TH[letters[:, place]])
    return letters


def decoded(logps_NT: Floats, temperature: float, nucleus: float) -> Floats:
    """What a decoding makes of the probabilities of the next letter. Returns probabilities [N, T].

    Temperature 0 leaves the likeliest letter; of the others the nucleus is taken after the temperature.
    """
    if temperature == 0:
        return np.eye(logps_NT.shape[1])[logps_NT.argmax(1)]
    scaled_NT = logps_NT / temperature
    p_NT = np.exp(scaled_NT - np.logaddexp.reduce(scaled_NT, axis=1, keepdims=True))
    order_NT = np.argsort(-p_NT, axis=1, kind="stable")
    sorted_NT = np.take_along_axis(p_NT, order_NT, 1)
    before_NT = np.cumsum(sorted_NT, axis=1) - sorted_NT  # what likelier letters hold
    kept_NT = np.where(before_NT < nucleus, sorted_NT, 0.0)
    np.put_along_axis(p_NT, order_NT, kept_NT / kept_NT.sum(1, keepdims=True), 1)
    return p_NT


def drawn(p_NT: Floats, random: np.random.Generator) -> NDArray[np.int64]:
    """One letter from each row of probabilities. Returns [N]."""
    passed_NT = np.cumsum(p_NT, axis=1) < random.random((len(p_NT), 1)) * p_NT.sum(1, keepdims=True)
    return np.asarray(np.minimum(passed_NT.sum(1), p_NT.shape[1] - 1))


class Ngram:
    """counts of every letter after every context of up to n - 1 letters; a text begins with shorter ones."""

    def __init__(self, tables: list[Floats], letters: int) -> None:
        self.tables, self.letters = tables, letters

    @classmethod
    def count(cls, texts: Texts, n: int, letters: int) -> "Ngram":
        """Count texts [N, L]; each table [letters ** context, letters] has a pseudo-count everywhere."""
        tables = []
        for context in range(n):
            table = np.full((letters**context, letters), _PSEUDOCOUNT)
            # The longest context is met everywhere, a shorter one only where a text begins.
            places = range(context, texts.shape[1]) if context == n - 1 else range(context, context + 1)
            for place in places:
                np.add.at(table, (cls._number(texts[:, place - context : place], letters), texts[:, place]), 1)
            tables.append(table)
        return cls(tables, letters)

    def write(
        self, texts: int, length: int, random: np.random.Generator, temperature: float = 1.0, nucleus: float = 1.0
    ) -> Texts:
        """Texts, letter by letter. Returns [N, L]."""
        written_NL = np.zeros((texts, length), np.int64)
        for place in range(length):
            context = min(place, len(self.tables) - 1)
            rows_NT = self.tables[context][self._number(written_NL[:, place - context : place], self.letters)]
            logps_NT = np.log(rows_NT / rows_NT.sum(1, keepdims=True))
            written_NL[:, place] = drawn(decoded(logps_NT, temperature, nucleus), random)
        return written_NL

    @staticmethod
    def _number(context_NC: Texts, letters: int) -> NDArray[np.int64]:
        return np.asarray(context_NC @ (letters ** np.arange(context_NC.shape[1])), np.int64)


def spelled(texts_NL: Texts) -> list[str]:
    """Texts as strings of a, b, c, ..."""
    return ["".join(chr(97 + letter) for letter in text) for text in texts_NL.tolist()]
