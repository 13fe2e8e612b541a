"""SamPO: DPO on equally many tokens of both responses, drawn at random from the longer one.

Lu et al.: "Eliminating Biased Length Reliance of Direct Preference Optimization via Down-Sampled KL Divergence",
arXiv 2406.10957.

    T = min(n_w, n_l);   S_w, S_l: T of the tokens of each response, without replacement, drawn anew in every step
    d_t = log pi(y_t) - log ref(y_t)
    L = -log sigmoid(beta [sum_{t in S_w} d_t - sum_{t in S_l} d_t])        mean over pairs

DPO's implicit reward is a sum over tokens and grows with the length of a response, whatever the tokens say. Of two
responses of one length nothing is drawn, and this is DPO.

In the formula policy and reference are summed over the same tokens. In the authors' code (LuJunru/SamPO) each of the
two draws its own (`independent_draws`), which adds the noise of different tokens to the margin. `average` is the code's
alternative without draws, (sum_t d_t / n) (n_w + n_l) / 2 for each response.

What is drawn for a pair follows from the run's seed, the step, and the numbers of its two responses in the data set:
neither from the layout of the batch nor from the number of processes, and a run that is continued draws what it would
have drawn.

Defaults: beta 0.1 of the authors' code for 8B models (0.5 for Pythia 2.8B).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.batch import Batch, place_in_sequence, sum_by_sequence
from methods.objective import Loss
from methods.preference.base import BetaConfig, Paired, Responses, Side, pairs
from methods.preference.dpo import dpo_loss


@dataclass(frozen=True, kw_only=True)
class SamPoConfig(BetaConfig):
    """independent_draws: tokens of the reference's sum are others than of the policy's.

    average: no draws, the mean over the tokens times the mean length of the two responses.
    """

    independent_draws: bool = False
    average: bool = False

    def __post_init__(self) -> None:
        if self.average and self.independent_draws:
            raise ValueError("method.independent_draws=true: must be false with method.average, which draws nothing")


def drawn(tokens: int, kept: int, seed: Sequence[int]) -> NDArray[np.bool_]:
    """Which tokens of a response are summed: `kept` of them, without replacement. Returns [tokens].

    seed: non-negative numbers that decide the draw.
    """
    mask = np.ones(tokens, dtype=bool)
    if kept < tokens:
        generator = np.random.Generator(np.random.PCG64(list(seed)))
        mask[generator.permutation(tokens)[kept:]] = False
    return mask


def sampled_weights(batch: Batch, seed: Sequence[int]) -> Tensor:
    """1 for the tokens that are drawn, 0 for the others. Returns [K], fp32.

    Args:
        batch: of pairs.
        seed: decides the draws, together with the numbers of a pair's examples in the data set.
    """
    chosen, rejected = _members(batch)
    tokens_S = _token_counts(batch).tolist()
    example_S = batch.example_S.tolist()
    masks: list[NDArray[np.bool_]] = [np.zeros(0, dtype=bool)] * len(tokens_S)
    for pair in zip(chosen.tolist(), rejected.tolist(), strict=True):
        kept = min(tokens_S[sequence] for sequence in pair)
        of_pair = [*seed, *(example_S[sequence] for sequence in pair)]
        for sequence in pair:
            masks[sequence] = drawn(tokens_S[sequence], kept, of_pair)
    flat = torch.from_numpy(np.concatenate(masks)).float().to(batch.input_ids_BT.device)
    return flat[_places(batch)]


def average_weights(batch: Batch) -> Tensor:
    """(n_w + n_l) / 2 over the number of tokens of the response that a token belongs to. Returns [K], fp32."""
    chosen, rejected = _members(batch)
    tokens_S = _token_counts(batch).float()
    mean_S = torch.zeros_like(tokens_S)
    mean_S[chosen] = mean_S[rejected] = (tokens_S[chosen] + tokens_S[rejected]) / 2
    return (mean_S / tokens_S)[batch.sequence_K]


def _members(batch: Batch) -> tuple[Tensor, Tensor]:
    """The sequences that are chosen and rejected, pair by pair. Two of [P]."""
    assert batch.label_S is not None, "pairs have labels"
    is_chosen_S = batch.label_S > 0.5
    return is_chosen_S.nonzero()[:, 0], (~is_chosen_S).nonzero()[:, 0]


def _token_counts(batch: Batch) -> Tensor:
    return torch.bincount(batch.sequence_K, minlength=len(batch.example_S))


def _places(batch: Batch) -> Tensor:
    """For each target token, its place when the target tokens lie one sequence after the other. Returns [K]."""
    tokens_S = _token_counts(batch)
    return (tokens_S.cumsum(0) - tokens_S)[batch.sequence_K] + place_in_sequence(batch)


class SamPo(Paired):
    """SamPO: DPO on equally many, randomly drawn tokens of both responses (arXiv 2406.10957)."""

    config: SamPoConfig
    _step = 0  # the one under way

    def rollout(self, batch: Batch, step: int) -> Batch:
        """The batch as it is; the step decides what is drawn."""
        self._step = step
        return batch

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the pairs."""
        batch = responses.batch
        policy_K, reference_K = self._weights(batch)
        policy_S = sum_by_sequence(policy_K * responses.logps_K, batch)
        reference_S = sum_by_sequence(reference_K * responses.reference_K, batch)
        tokens_S = sum_by_sequence(policy_K, batch)
        chosen, rejected = (
            Side(policy_S[members], reference_S[members], tokens_S[members]) for members in _members(batch)
        )
        # Log-probabilities are logged whole, rewards as they are compared.
        whole, compared = self.metrics(*pairs(responses)), self.metrics(chosen, rejected)
        rewards = {name: compared[name] for name in ("reward_margin", "reward_accuracy")}
        return Loss(self.losses(chosen, rejected).sum(), {**whole, **rewards})

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """DPO's loss of each pair. Returns [P]."""
        return dpo_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta)

    def _weights(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The weight of every target token in the sums of policy and reference. Two of [K]."""
        if self.config.average:
            weights_K = average_weights(batch)
            return weights_K, weights_K
        seed = (self.context.seed, self._step)
        policy_K = sampled_weights(batch, (*seed, 0))
        if not self.config.independent_draws:
            return policy_K, policy_K
        return policy_K, sampled_weights(batch, (*seed, 1))
