"""TAB-PO: DPO on weighted averages over tokens, with a barrier under the chosen response's unlikely tokens.

"TAB-PO: Preference Optimization with a Token-Level Adaptive Barrier for Token-Critical Structured Generation",
arXiv 2603.00025.

    lbar(y) = (1/N) sum_t w_t log p(y_t | s_t)                              of N tokens; sum_t w_t = N
    z       = [lbar(y_w) - lbar(y_l)] under the policy, less the same under the reference
    g_t     = 1 where log pi(y_w,t | s_t) < log tau, else 0                 no gradient through it
    barrier = sum_t g_t w_t (-log pi(y_w,t | s_t)) / max(sum_t g_t w_t, 1)  of the chosen response
    L       = -log sigmoid(beta z) + lambda barrier                         mean over pairs

It is meant for responses like JSON, of which a pair differs in one to three tokens: in DPO's sum these are diluted, and
their likelihoods move together. A token weighs 1; where it overlaps a value of a named key (`key_weights`), the largest
of the keys' weights; at a place where chosen and rejected response have different tokens, `difference_weight` times as
much. Places are counted from the beginning up to the shorter length: after one token more, all later ones differ. A
value counts wherever its text occurs in the response, inside other values too. The weights of a response are divided by
their mean. The average, not the sum, makes margins of order 0.1, which beta 0.5 has to be seen against.

Defaults: of the authors' code (SarielMa/TAB-PO), but for the keys, which belong to its data: Code 1.1, Sub-code 1.2,
Span 1.1. What a value is where it is neither a string, a number, true, false nor null (it has no weight) is ours.

Legend: n responses of the data set, M their target tokens; of a batch: K target tokens, S responses, P pairs.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from methods.batch import Batch, place_in_sequence, sum_by_sequence
from methods.examples import Examples
from methods.method import Context
from methods.objective import Loss
from methods.preference.base import BetaConfig, Paired, Responses, Side, pairs
from methods.preference.dpo import dpo_loss

Span = tuple[int, int]  # first character, and the one after the last
Weights = NDArray[np.float64]

# A JSON scalar after a key: a string (group 1 without its quotes), or a number, true, false, null (group 2).
_VALUE = r"""\s*:\s*(?:"((?:[^"\\]|\\.)*)"|(-?[\w.+-]+))"""


@dataclass(frozen=True, kw_only=True)
class TabPoConfig(BetaConfig):
    """difference_weight: of tokens at places where the two responses differ. key_weights: of the values of JSON keys.

    tau: the probability under which a chosen token is lifted. barrier: lambda, weight of that term.
    """

    beta: PositiveFloat = 0.5
    difference_weight: PositiveFloat = 1.2
    key_weights: Mapping[str, PositiveFloat] | None = None
    tau: Annotated[float, Ge(0.0), Le(1.0)] = 0.66
    barrier: NonNegativeFloat = 0.5


# The weights of tokens -----------------------------------------------------------------------------------------


def value_spans(text: str, key: str) -> list[Span]:
    """Where the values of a JSON key occur in a text, every occurrence of each."""
    found = re.finditer(re.escape(f'"{key}"') + _VALUE, text)
    values = {match[1] if match[1] is not None else match[2] for match in found} - {""}
    return [match.span() for value in sorted(values) for match in re.finditer(re.escape(value), text)]


def value_weights(text: str, spans: Sequence[Span], key_weights: Mapping[str, float]) -> Weights:
    """The weights of tokens by the values that they overlap: the largest, or 1 where they overlap none.

    Args:
        text: a response.
        spans: of its tokens in it; an empty one overlaps nothing.
        key_weights: by JSON key.
    """
    weights = np.full(len(spans), -np.inf)
    begins, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    for key, weight in key_weights.items():
        for begin, end in value_spans(text, key):
            touched = (begins < end) & (ends > begin) & (begins < ends)
            weights[touched] = np.maximum(weights[touched], weight)
    return np.where(np.isinf(weights), 1.0, weights)


def difference_weights(
    chosen: Sequence[int] | NDArray[np.int32], rejected: Sequence[int] | NDArray[np.int32], weight: float
) -> tuple[Weights, Weights]:
    """`weight` for the tokens at the same place of two responses that differ, 1 for all others."""
    shorter = min(len(chosen), len(rejected))
    differ = np.asarray(chosen[:shorter]) != np.asarray(rejected[:shorter])
    found = np.ones(len(chosen)), np.ones(len(rejected))
    for weights in found:
        weights[:shorter][differ] = weight
    return found


def normalised(weights: Weights) -> Weights:
    """Divided by their mean."""
    return weights * len(weights) / weights.sum() if len(weights) else weights


def token_spans(tokenizer: Any, tokens: Sequence[int], first: int) -> tuple[str, list[Span]]:
    """The text of a response, and where in it each of its tokens stands.

    Args:
        tokenizer: of `transformers`.
        tokens: of prompt and response.
        first: the response's first.
    """
    text = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if again["input_ids"] == list(tokens):
        spans = again["offset_mapping"][first:]
        begin = spans[0][0] if spans else len(text)
        return text[begin:], [(start - begin, end - begin) for start, end in spans]
    # Tokens that their own text would be split into otherwise: by what each adds to the text of those before it.
    text, end, spans = "", 0, []
    for count in range(first + 1, len(tokens) + 1):
        text = tokenizer.decode(tokens[first:count], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        # A character of which a part is there yet belongs to this token, and to those that bring the rest.
        whole = max(len(text.rstrip("\N{REPLACEMENT CHARACTER}")), end)
        spans.append((end, whole + (len(text) > whole)))
        end = whole
    return text, spans


def tab_po_weights(
    examples: Examples, difference_weight: float, key_weights: Mapping[str, float], tokenizer: Any
) -> Weights:
    """The weights of all target tokens of pairs, one response after the other, before they are normalised. Returns [M].

    Raises:
        ValueError: no response has a value of one of the keys.
    """
    counts_n = examples.lengths - examples.targets
    first_n = np.cumsum(counts_n) - counts_n
    weights_M = np.ones(int(counts_n.sum()))

    def of(index: int) -> Weights:
        return weights_M[first_n[index] : first_n[index] + counts_n[index]]

    if key_weights:
        unseen = set(key_weights)
        for index in range(len(examples)):
            text, spans = token_spans(tokenizer, examples.sequence(index).tolist(), int(examples.targets[index]))
            of(index)[:] = value_weights(text, spans, key_weights)
            unseen -= {key for key in unseen if value_spans(text, key)}
        if unseen:
            raise ValueError(f"method.key_weights: no response has a value of the JSON key {min(unseen)!r}")
    for one, other in _pairs_of(examples):
        found = difference_weights(examples.response(one), examples.response(other), difference_weight)
        for index, weights in zip((one, other), found, strict=True):
            of(index)[:] *= weights
    return weights_M


def _pairs_of(examples: Examples) -> Iterator[tuple[int, int]]:
    for first, end in zip(examples.groups[:-1], examples.groups[1:], strict=True):
        assert end - first == 2, "a pair has two responses"
        yield int(first), int(first) + 1


# The loss --------------------------------------------------------------------------------------------------------


def gated(logps_K: Tensor, tau: float) -> Tensor:
    """1 where a token is less likely than tau, else 0. Returns [K], no gradient."""
    below = math.log(tau) if tau > 0 else -math.inf
    return (logps_K.detach() < below).to(logps_K.dtype)


def token_barrier(logps_K: Tensor, weights_K: Tensor, batch: Batch, tau: float) -> Tensor:
    """Weighted mean of -log pi over the gated tokens of each response; of weights that sum to less than 1, their sum.

    Args:
        logps_K: of the target tokens under the policy.
        weights_K: with mean 1 over each response.
        batch: says which response each token belongs to.
        tau: in [0, 1].

    Returns:
        [S]; 0 where nothing is gated.
    """
    gated_K = gated(logps_K, tau) * weights_K
    return sum_by_sequence(gated_K * -logps_K, batch) / sum_by_sequence(gated_K, batch).clamp_min(1.0)


class TabPo(Paired):
    """TAB-PO: token-weighted, averaged DPO with a barrier under unlikely chosen tokens (arXiv 2603.00025)."""

    config: TabPoConfig
    _weights_M: Tensor | None = None  # of every target token of the data set, with mean 1 over each response
    _begin_n: Tensor | None = None  # where each response's begin in it

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Weigh every token of the data set; a run that is continued does it again."""
        reported = super().prepare(context)
        examples, config = context.examples, self.config
        raw_M = tab_po_weights(examples, config.difference_weight, config.key_weights or {}, context.tokenizer)
        counts_n = examples.lengths - examples.targets
        begin_n = np.cumsum(counts_n) - counts_n
        weights_M = [normalised(raw_M[begin : begin + count]) for begin, count in zip(begin_n, counts_n, strict=True)]
        self._weights_M = torch.from_numpy(np.concatenate(weights_M)).float()
        self._begin_n = torch.from_numpy(begin_n)
        return {**reported, "tab_po/weighted_tokens": float((raw_M != 1).mean())}

    def _weights(self, batch: Batch) -> Tensor:
        """The weight of every target token. Returns [K]."""
        assert self._weights_M is not None and self._begin_n is not None, "prepare comes first"
        device = batch.input_ids_BT.device
        self._weights_M, self._begin_n = self._weights_M.to(device), self._begin_n.to(device)  # moved once
        return self._weights_M[self._begin_n[batch.example_K] + place_in_sequence(batch)]

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the pairs."""
        batch, logps_K, config = responses.batch, responses.logps_K, self.config
        weights_K = self._weights(batch)
        tokens_S = torch.bincount(batch.sequence_K, minlength=len(batch.example_S)).clamp_min(1)
        chosen, rejected = pairs(replace(responses, weights_K=weights_K / tokens_S[batch.sequence_K]))
        assert batch.label_S is not None, "pairs have labels"
        is_chosen_S = batch.label_S > 0.5
        barrier_P = token_barrier(logps_K, weights_K, batch, config.tau)[is_chosen_S]
        gated_S = sum_by_sequence(gated(logps_K, config.tau), batch) / tokens_S
        # Log-probabilities are logged whole, rewards as they are compared.
        whole, compared = self.metrics(*pairs(responses)), self.metrics(chosen, rejected)
        rewards = {name: compared[name] for name in ("reward_margin", "reward_accuracy")}
        gate = {"barrier": barrier_P.detach().sum(), "gated_share": gated_S[is_chosen_S].sum()}
        losses_P = self.losses(chosen, rejected) + config.barrier * barrier_P
        return Loss(losses_P.sum(), {**whole, **rewards, **gate})

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """-log sigmoid(beta z) of weighted averages, without the barrier. Returns [P]."""
        return dpo_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta)
