"""A language model as judge: it is asked which of two answers is better, and its verdicts become a win rate.

The judge is whatever answers at an OpenAI-compatible endpoint (`POST <endpoint>/chat/completions`): a server of vLLM, a
local one, a provider's.

Judges prefer long answers. The length-controlled win rate asks what it would be at equal lengths: a logistic regression
of the preference on the difference of the lengths,

    P(preferred) = sigmoid(a + b tanh(d / std(d))),     d = characters of the answer - characters of the baseline's

gives sigmoid(a), its value at d = 0. This is the form of AlpacaEval 2 (Dubois et al., arXiv 2404.04475) without what
needs the results of other models: the difficulty of each instruction, and data of "gamed" baselines that regularise the
fit. So it is comparable between our own runs, not with that leaderboard. A weak prior on a and b (variance 100, ours)
keeps them finite where the lengths tell every preference.

Legend: P prompts.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.kl_to_base import Estimate, Floats

TEMPLATE = """Two assistants were given the same instruction. Decide which of them answers it better: which answer is
more helpful, correct and to the point. Neither the order of the answers nor their length must matter.

[Instruction]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

[End]
Reply with your verdict alone: [[A]] if answer A is better, [[B]] if answer B is better, [[C]] if they are equal."""

_VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}
_PRIOR_VARIANCE = 100.0
_LONGEST_PAUSE = 30.0  # seconds between two attempts


def verdict(reply: str) -> float | None:
    """What a reply says of the first answer: 1 better, 0 worse, 1/2 equally good; None where it does not say.

    The last of [[A]], [[B]], [[C]] counts, so that a judge may argue first; of a reply of one letter that letter.
    """
    found = re.findall(r"\[\[([ABC])\]\]", reply) or re.findall(r"^\W*([ABC])\W*$", reply.strip())
    return _VERDICTS[found[-1]] if found else None


def length_controlled(preferences_P: Floats, lengths_P: Floats, baseline_lengths_P: Floats) -> Estimate:
    """The length-controlled win rate in [0, 1], and its standard error (sandwich estimator, delta method).

    Args:
        preferences_P: in [0, 1], of each answer over the baseline's.
        lengths_P, baseline_lengths_P: of both, in characters.

    Raises:
        ValueError: fewer than two, shapes that differ, a preference that is none.
    """
    preferences_P = np.asarray(preferences_P, float)
    difference_P = np.asarray(lengths_P, float) - np.asarray(baseline_lengths_P, float)
    if preferences_P.ndim != 1 or preferences_P.shape != difference_P.shape or len(preferences_P) < 2:
        raise ValueError(f"needs at least two preferences, each with two lengths, got shape {preferences_P.shape}")
    if not ((preferences_P >= 0) & (preferences_P <= 1)).all():
        raise ValueError("preferences must be between 0 and 1")
    spread = float(difference_P.std(ddof=1)) or 1.0
    features_P2 = np.stack([np.ones_like(difference_P), np.tanh(difference_P / spread)], 1)
    weights_2 = np.zeros(2)
    for _ in range(100):  # Newton's method; the objective is strictly concave
        predicted_P = _sigmoid(features_P2 @ weights_2)
        gradient_2 = features_P2.T @ (preferences_P - predicted_P) - weights_2 / _PRIOR_VARIANCE
        curvature_22 = (features_P2.T * (predicted_P * (1 - predicted_P))) @ features_P2 + np.eye(2) / _PRIOR_VARIANCE
        step_2 = np.linalg.solve(curvature_22, gradient_2)
        weights_2 = weights_2 + step_2 / max(1.0, float(np.abs(step_2).max()))
        if np.abs(step_2).max() < 1e-10:
            break
    residual_P2 = features_P2 * (preferences_P - _sigmoid(features_P2 @ weights_2))[:, None]
    inverse_22 = np.linalg.inv(curvature_22)
    variance = float((inverse_22 @ residual_P2.T @ residual_P2 @ inverse_22)[0, 0])
    rate = float(_sigmoid(weights_2[:1])[0])
    return Estimate(rate, rate * (1 - rate) * math.sqrt(variance))


def _sigmoid(values: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -values))


# The endpoint ------------------------------------------------------------------------------------------------


class JudgeError(ValueError):
    """The judge could not be asked; one line says why."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a judge answers.

    url: up to and without /chat/completions. model: as the endpoint calls it. key_from: the environment variable that
    holds the key, where it wants one. max_tokens: of a reply. timeout: seconds for one reply. retries: further attempts
    where it is busy, down or broken off. connections: questions at the same time.
    """

    url: str
    model: str
    key_from: str | None = None
    max_tokens: int = 512
    timeout: float = 120.0
    retries: int = 5
    connections: int = 8

    def headers(self) -> dict[str, str]:
        """What says who asks.

        Raises:
            JudgeError: the environment variable is not there.
        """
        if self.key_from is None:
            return {}
        key = os.environ.get(self.key_from)
        if not key:
            raise JudgeError(f"the environment variable {self.key_from} must hold the key of {self.url}")
        return {"Authorization": f"Bearer {key}"}

    def ask(self, questions: Sequence[str], wait: Callable[[float], None] = time.sleep) -> Iterator[tuple[int, str]]:
        """Ask all questions; yields the number and the reply of each as they come.

        Raises:
            JudgeError: a question is refused, or not answered in all attempts; what was answered meanwhile comes first.
        """
        import httpx

        with (
            httpx.Client(headers=self.headers(), timeout=self.timeout) as client,
            ThreadPoolExecutor(self.connections) as pool,
        ):
            # Bounded, so that one that gives up leaves nobody waiting for thousands of others.
            for begin in range(0, len(questions), 4 * self.connections):
                chunk = questions[begin : begin + 4 * self.connections]
                asked = {
                    pool.submit(self._ask, client, question, wait): number
                    for number, question in enumerate(chunk, begin)
                }
                problem: JudgeError | None = None
                for future in as_completed(asked):
                    try:
                        reply = future.result()
                    except CancelledError:
                        continue
                    except JudgeError as error:
                        problem = problem or error
                        for other in asked:  # not begun yet
                            other.cancel()
                        continue
                    yield asked[future], reply
                if problem is not None:
                    raise problem

    def _ask(self, client: Any, question: str, wait: Callable[[float], None]) -> str:
        import httpx

        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                wait(min(2.0 ** (attempt - 1), _LONGEST_PAUSE))
            try:
                response = client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            except (httpx.InvalidURL, httpx.HTTPError) as error:
                raise JudgeError(f"{self.url}: {error}") from error
            if response.status_code == 429 or response.status_code >= 500:
                problem = f"status {response.status_code}"
                continue
            if response.status_code != 200:
                told = " ".join(response.text.split())[:200]
                raise JudgeError(f"{self.url}: status {response.status_code}: {told}")
            try:
                return str(response.json()["choices"][0]["message"]["content"] or "")
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise JudgeError(f"{self.url}: its reply is not that of a chat completion: {error!r}") from error
        raise JudgeError(f"{self.url}: no reply in {self.retries + 1} attempts: {problem}")
