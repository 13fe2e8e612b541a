"""TDPO, token-level DPO: DPO with the forward KL of every token, which balances the drift on the two responses.

"Token-level Direct Preference Optimization", arXiv 2404.11999.

    m(y)     = sum_t log pi(y_t | s_t) - log ref(y_t | s_t)                 the log-ratio
    KL(y)    = sum_t sum_v ref(v | s_t) [log ref(v | s_t) - log pi(v | s_t)]
    version 1   L = -log sigmoid(beta [m_w - m_l - (KL_l - KL_w)])          mean over pairs
    version 2   L = -log sigmoid(beta [m_w - m_l - alpha (KL_l - sg KL_w)])     sg: no gradient

DPO holds the policy near its reference by whole responses, and the KL grows faster on the rejected one. In version 1
KL_w enters with a plus: its gradient makes the policy leave the reference on the chosen response. Version 2 takes none
through it; with alpha = 0 it is DPO. The reward that is logged is the authors', beta (m + KL).

The KL needs the whole next-token distributions, so the reference is asked at every step.

Defaults: beta 0.1 and alpha 0.5 of the authors' code (Vance0124/Token-level-Direct-Preference-Optimization). Its
configuration begins with version 1, its README recommends version 2, which is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from methods.batch import Batch, sum_by_sequence
from methods.divergences import kl
from methods.forward import Forward
from methods.kinds.causal import frozen
from methods.objective import Loss
from methods.preference.base import BetaConfig, Paired, Side
from methods.token_divergences import PerToken, per_token


@dataclass(frozen=True, kw_only=True)
class TdpoConfig(BetaConfig):
    """version: 1 or 2. alpha: weight of the KL terms in version 2. reference: always the live model."""

    reference: Literal["live"] = "live"
    version: Literal[1, 2] = 2
    alpha: NonNegativeFloat = 0.5


def tdpo_loss(
    chosen_log_ratio: Tensor,
    rejected_log_ratio: Tensor,
    chosen_divergence: Tensor,
    rejected_divergence: Tensor,
    beta: float,
    alpha: float,
    version: Literal[1, 2],
) -> Tensor:
    """-log sigmoid(beta [m_w - m_l - drift]).

    Args:
        chosen_log_ratio, rejected_log_ratio: m, summed over a response's tokens [P].
        chosen_divergence, rejected_divergence: of the policy from its reference, summed over the tokens [P].
        beta: > 0.
        alpha: >= 0; version 1 has none.
        version: 1: drift = D_l - D_w. 2: alpha (D_l - D_w), without gradient through D_w.

    Returns:
        [P].
    """
    if version == 1:
        drift = rejected_divergence - chosen_divergence
    else:
        drift = alpha * (rejected_divergence - chosen_divergence.detach())
    return -F.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio - drift))


class Tdpo(Paired):
    """TDPO: DPO with a forward-KL term of every token (arXiv 2404.11999)."""

    config: TdpoConfig
    frozen = ("reference",)

    def divergence(self, policy_logps_CV: Tensor, reference_logps_CV: Tensor) -> Tensor:
        """How far the policy is from its reference at each position: KL(ref || pi). Returns [C]."""
        return kl(reference_logps_CV, policy_logps_CV)

    def loss(self, forward: Forward) -> Loss:
        """Sum over the pairs of a micro-batch."""
        batch, reference = forward.batch, forward.roles["reference"]
        # Both models also where the batch holds nothing: with sharded weights the other processes wait for the passes.
        with frozen(reference):
            reference_KV = self.kind.target_logits(reference, batch)
        policy_KV = self.kind.target_logits(forward.roles["policy"], batch)
        if not batch.target_count:
            return Loss(policy_KV.sum() * 0.0)
        found = per_token(policy_KV, reference_KV, batch.targets_K, self.divergence, self.kind.logits_chunk)
        return self._loss_of(found, batch)

    def _loss_of(self, found: PerToken, batch: Batch) -> Loss:
        assert batch.label_S is not None, "pairs have labels"
        policy_S, reference_S, divergence_S = (sum_by_sequence(values_K, batch) for values_K in found)
        tokens_S = torch.bincount(batch.sequence_K, minlength=len(batch.example_S)).to(policy_S.dtype)
        is_chosen_S = batch.label_S > 0.5
        chosen, rejected = (
            Side(policy_S[mask_S], reference_S[mask_S], tokens_S[mask_S]) for mask_S in (is_chosen_S, ~is_chosen_S)
        )
        chosen_divergence, rejected_divergence = divergence_S[is_chosen_S], divergence_S[~is_chosen_S]
        config = self.config
        losses_P = tdpo_loss(
            chosen.log_ratio,
            rejected.log_ratio,
            chosen_divergence,
            rejected_divergence,
            config.beta,
            config.alpha,
            config.version,
        )
        return Loss(losses_P.sum(), self._metrics(chosen, rejected, chosen_divergence, rejected_divergence))

    @torch.no_grad()
    def _metrics(
        self, chosen: Side, rejected: Side, chosen_divergence: Tensor, rejected_divergence: Tensor
    ) -> Mapping[str, Tensor]:
        chosen_P = self.config.beta * (chosen.log_ratio + chosen_divergence)
        rejected_P = self.config.beta * (rejected.log_ratio + rejected_divergence)
        return {
            **self.metrics(chosen, rejected),
            "reward_margin": (chosen_P - rejected_P).sum(),
            "reward_accuracy": (chosen_P > rejected_P).sum(),
            "chosen_divergence": chosen_divergence.sum(),
            "rejected_divergence": rejected_divergence.sum(),
        }
