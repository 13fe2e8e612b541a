"""How far best of n moves a distribution: the usual formula, an estimator and the exact divergence, for growing n.

Beirami et al.: "Theoretical guarantees on the best-of-n alignment policy", 2024, arXiv 2401.01879; the formulas are in
`evals.best_of_n`. Everything is finite, so that KL and win rate are exact: distributions made by hand, and a small
random language model whose sequences are all enumerated. The estimator sees `draws` outcomes that were kept and their
probabilities.

The language model is recurrent with random weights, h' = tanh(W h + e(symbol)), p(symbol) = softmax(U h / temperature).
A sequence ends with an end symbol or at its greatest length.

Legend: L outcomes, T symbols, P prefixes, H hidden.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Gt, Lt
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from evals import best_of_n
from methods.dataset import Dataset
from methods.method import Context
from methods.simulation import Simulation

Floats = NDArray[np.float64]

_MOST_SEQUENCES = 100_000
_SPREAD = 2.0  # of the random model's logits at temperature 1, about

# The data --------------------------------------------------------------------------------------------------------


class Distribution(NamedTuple):
    """logps_L of all outcomes, and their rewards_L."""

    logps_L: Floats
    rewards_L: Floats


@dataclass(frozen=True, kw_only=True)
class FiniteOutcomesConfig:
    """source: uniform, rare (two outcomes, the better one rare) or model, the random language model.

    size: outcomes of uniform. top: probability of the better one of rare.

    Of the model: symbols: besides the end. length: the greatest. hidden: H. temperature: of its softmax. reward: a
    random number for each sequence, its log-likelihood, or minus its length, which many share.
    """

    source: Literal["uniform", "rare", "model"] = "model"
    size: PositiveInt = 10
    top: Annotated[float, Gt(0.0), Lt(1.0)] = 0.1
    symbols: PositiveInt = 5
    length: PositiveInt = 4
    hidden: PositiveInt = 16
    temperature: PositiveFloat = 1.0
    reward: Literal["random", "likelihood", "length"] = "random"

    def __post_init__(self) -> None:
        if self.source == "model" and self.symbols**self.length > _MOST_SEQUENCES:
            raise ValueError(
                f"dataset.symbols={self.symbols}: to the power of dataset.length={self.length} must be at most "
                f"{_MOST_SEQUENCES}, as all sequences are enumerated"
            )


class FiniteOutcomes(Dataset):
    """Outcomes that can all be enumerated, with probabilities and rewards."""

    config: FiniteOutcomesConfig
    type = "outcomes"

    def load(self, seed: int) -> Distribution:
        """Make the distribution; those made by hand have no randomness."""
        config = self.config
        if config.source == "uniform":
            return Distribution(np.full(config.size, -np.log(config.size)), np.arange(config.size, dtype=float))
        if config.source == "rare":
            return Distribution(np.log([1 - config.top, config.top]), np.array([0.0, 1.0]))
        random = np.random.default_rng([seed, 13])
        model = RandomModel.draw(config.symbols + 1, config.hidden, config.temperature, random)
        logps_L, lengths_L = enumerated(model, config.length)
        if config.reward == "random":
            return Distribution(logps_L, random.standard_normal(len(logps_L)))
        return Distribution(logps_L, logps_L if config.reward == "likelihood" else -lengths_L.astype(float))


class RandomModel(NamedTuple):
    """recurrent_HH, embedding_TH, output_HT and the temperature of a recurrent language model; symbol 0 is the end."""

    recurrent_HH: Floats
    embedding_TH: Floats
    output_HT: Floats
    temperature: float

    @classmethod
    def draw(cls, symbols: int, hidden: int, temperature: float, random: np.random.Generator) -> "RandomModel":
        """Random weights; symbols: T, the end included."""
        return cls(
            random.standard_normal((hidden, hidden)) / np.sqrt(hidden),
            random.standard_normal((symbols, hidden)),
            _SPREAD * random.standard_normal((hidden, symbols)) / np.sqrt(hidden),
            temperature,
        )

    def next_logps(self, state_PH: Floats) -> Floats:
        """log p(next symbol) after each prefix. Returns [P, T]."""
        logits_PT = state_PH @ self.output_HT / self.temperature
        return np.asarray(logits_PT - np.logaddexp.reduce(logits_PT, axis=1, keepdims=True))


def enumerated(model: RandomModel, length: int) -> tuple[Floats, NDArray[np.int64]]:
    """Log-probability of every sequence of at most `length` symbols, and how many it has, without the end. Each [L]."""
    state_PH = np.tanh(model.embedding_TH[:1])  # the end is also what a sequence begins after
    logps_P = np.zeros(1)
    ended, lengths = [], []
    for step in range(length):
        next_PT = logps_P[:, None] + model.next_logps(state_PH)
        ended.append(next_PT[:, 0])
        lengths.append(np.full(len(next_PT), step))
        state_PTH = (state_PH @ model.recurrent_HH)[:, None] + model.embedding_TH[1:]
        state_PH = np.tanh(state_PTH.reshape(-1, state_PH.shape[1]))
        logps_P = next_PT[:, 1:].reshape(-1)
    return np.concatenate([*ended, logps_P]), np.concatenate([*lengths, np.full(len(logps_P), length)])


# The study -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BestOfNKlConfig:
    """largest: n is 1, 2, 4, ... up to this. draws: outcomes that were kept, which the estimator sees."""

    largest: PositiveInt = 256
    draws: PositiveInt = 200


class BestOfNKl(Simulation):
    """Best of n on a finite distribution: exact KL and win rate, formula, estimator (arXiv 2401.01879)."""

    config: BestOfNKlConfig
    data: ClassVar[tuple[str, ...]] = ("outcomes",)

    def run(self, context: Context) -> Mapping[str, float]:
        """Measure every n; logs it as its step, returns it by its number and how far formula and estimate are off."""
        given: Distribution = context.dataset
        of = best_of_n.outcomes(np.exp(given.logps_L), given.rewards_L)
        random = np.random.default_rng([context.seed, 17])
        numbers = [2**power for power in range(self.config.largest.bit_length())]
        found: dict[str, float] = {}
        errors: dict[str, list[float]] = {"estimator": [], "formula": []}
        for place in context.steps("best of n", len(numbers)):
            n = numbers[place]
            kept_M = best_of_n.keep_best(of, n, self.config.draws, random)
            kl, formula, win_rate = best_of_n.kl(of, n), best_of_n.kl_bound(n), best_of_n.win_rate(of, n)
            estimate = float(best_of_n.kl_estimate(given.logps_L[kept_M], n).mean())
            expected = best_of_n.expected_kl_estimate(of, n)
            errors["estimator"].append(abs(estimate - kl))
            errors["formula"].append(formula - kl)
            logged = {
                "kl/exact": kl,
                "kl/formula": formula,
                "kl/estimate": estimate,
                "kl/expected_estimate": expected,
                # The theorem is of outcomes of different rewards, and says nothing where it is negative.
                "kl/lower_bound": max(0.0, formula - best_of_n.kl_gap_bound(of, n)),
                "win_rate/exact": win_rate,
                "win_rate/upper_bound": best_of_n.win_rate_bound(n),
                **{f"error/{name}": gaps[-1] for name, gaps in errors.items()},
            }
            context.log(logged, n)
            found[f"kl/{n}"], found[f"formula/{n}"], found[f"win_rate/{n}"] = kl, formula, win_rate
            found[f"estimate/{n}"], found[f"expected_estimate/{n}"] = estimate, expected
        return {
            **found,
            **{f"error/{name}_mean": float(np.mean(gaps)) for name, gaps in errors.items()},
            **{f"error/{name}_largest": max(gaps) for name, gaps in errors.items()},
            "outcomes/count": float(len(given.logps_L)),
            "outcomes/collision": float(of.p_L @ of.p_L),
        }
