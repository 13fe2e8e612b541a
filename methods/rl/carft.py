"""CARFT: PPO with a contrastive term between the annotated and the sampled chain of thought.

"CARFT: Boosting LLM Reasoning via Contrastive Learning with Annotated Chain-of-Thought-based Reinforced Fine-Tuning",
2025, arXiv 2508.15868; formulas of the authors' code (github.com/WNQzhu/CARFT). After supervised fine-tuning on the
annotated chains comes PPO (`methods/rl/ppo.py`), whose critic has u_t = W h_t (64 features of the hidden state) and
v_t = w u_t + b. A chain of thought is one vector,

    z = sum_t a_t u_t,    a = softmax of v_t over the tokens of the chain

z1 of the annotated one, without gradient, once a turn; z2 of the sampled one, with gradient, in every pass. With
s(i, j) = cos(z1_i, z2_j), c_i = 1 where the sampled answer is right, and j over all samples of all processes,

    L_cl = sum_i c_i [ -log( exp(min(s(i, i), 0.9) / tau) / sum_j exp(s(i, j) / tau) ) ] / sum_i c_i
    L    = L_ppo + cl_coef L_cl

cl_coef = 0 is ReFT (arXiv 2401.08967): PPO from a supervised start with rewards of the final answer.

In the released code a loss of shape (B,) meets a mask of shape (B, 1), so that in effect it is the sum of all losses
wherever one sample is right (derived here); `compat_broadcast` does that. Samples of other processes are there without
their gradient. L_cl is that of a micro-batch, as in the code, whose size is thus a part of the method; over the global
batch they are averaged by the units of their policy losses (ours). The code's variant with negatives from the tokens
that both chains do not share is not here, and no partial reward by embeddings, of which we know no formula.

Legend: S sequences of a micro-batch, J those of all processes, N responses, B rows, T tokens, K target tokens,
E features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from methods.batch import Batch, continued
from methods.generation import most_tokens
from methods.kinds.causal import beside_head, frozen
from methods.method import Context
from methods.rl.episodes import Episodes
from methods.rl.ppo import Ppo, PpoConfig

_CLOSEST = 0.9  # cosine of a positive pair above which it is not drawn closer
_CORRECT = 0.5  # reward above which a response is right


@dataclass(frozen=True, kw_only=True)
class CarftConfig(PpoConfig):
    """cl_coef: of the contrastive term. tau: its temperature. compat_broadcast: the released code's sum."""

    max_new_tokens: PositiveInt = 700
    value_weight: NonNegativeFloat = 5.0
    head_features: PositiveInt | None = 64
    head_dropout: Annotated[float, Ge(0.0), Lt(1.0)] = 0.1
    cl_coef: NonNegativeFloat = 1.0
    tau: PositiveFloat = 0.2
    compat_broadcast: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cl_coef and self.head_features is None:
            raise ValueError(f"method.head_features=null: with method.cl_coef={self.cl_coef} it must be a number >= 1")


def chain_vectors(values_K: Tensor, features_KE: Tensor, sequence_K: Tensor, count: int) -> Tensor:
    """Of each sequence the mean of its tokens' features, weighed by the softmax of their values. Returns [S, E].

    Args:
        sequence_K: which sequence a token belongs to.
        count: S; one without tokens has zeros.
    """
    top_S = values_K.new_full((count,), -torch.inf).scatter_reduce(0, sequence_K, values_K.detach(), "amax")
    weight_K = (values_K - top_S[sequence_K]).exp()
    total_S = weight_K.new_zeros(count).index_add(0, sequence_K, weight_K)
    share_K = weight_K / total_S[sequence_K]
    return features_KE.new_zeros(count, features_KE.shape[1]).index_add(0, sequence_K, share_K[:, None] * features_KE)


def contrastive_loss(
    cosine_SJ: Tensor, positive_S: Tensor, correct_S: Tensor, tau: float, compat_broadcast: bool = False
) -> Tensor:
    """L_cl: how much closer each annotated chain is to its own sample than to all. A scalar, 0 if none is right.

    Args:
        cosine_SJ: of annotated chains with sampled ones.
        positive_S: long, which of the J is the annotated chain's own.
        correct_S: 1 for right samples, else 0.
    """
    own_S = cosine_SJ.gather(1, positive_S[:, None]).squeeze(1).clamp_max(_CLOSEST)
    losses_S = (cosine_SJ / tau).logsumexp(1) - own_S / tau
    count = correct_S.sum()
    if compat_broadcast:
        return losses_S.sum() * (count / (count + 1e-8))
    return (correct_S * losses_S).sum() / (count + 1e-8)


class Carft(Ppo):
    """CARFT: PPO and an InfoNCE loss between annotated and sampled chains of thought (arXiv 2508.15868)."""

    config: CarftConfig

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Also the annotated chains of thought: the answers of the data set.

        Raises:
            ValueError: a prompt with its chain is longer than the model takes; a chain is empty.
        """
        report = super().prepare(context)
        if self.config.cl_coef:
            end = [context.tokenizer.eos_token_id] if context.config["dataset"]["add_eos"] else []
            encoded = context.tokenizer([text for _, text in self._texts], add_special_tokens=False)["input_ids"]
            for place, ids in enumerate(encoded):
                if not ids:
                    raise ValueError(f"dataset.completion: the answer of example {place} is empty, which is no chain")
            self._annotated = [[*ids, *end] for ids in encoded]
            limit = most_tokens(context.role("policy"))
            needed = max(
                len(context.examples.prompt(index)) + len(chain) for index, chain in enumerate(self._annotated)
            )
            if limit is not None and needed > limit:
                raise ValueError(
                    f"method.cl_coef={self.config.cl_coef}: the longest prompt with its annotated chain of thought is "
                    f"{needed} tokens, the model takes at most {limit}"
                )
        return report

    def _measured(self, episodes: Episodes, company: Batch) -> Episodes:
        """Also the vectors of the annotated chains, by the policy that wrote."""
        episodes = super()._measured(episodes, company)
        if self.config.cl_coef:
            self._anchors = self._annotated_vectors(episodes, company)
        return episodes

    @torch.no_grad()
    def _annotated_vectors(self, episodes: Episodes, company: Batch) -> Tensor:
        """z1 of every response's problem. Returns float [N, E], on the CPU."""
        model, device = self.context.role("policy"), company.input_ids_BT.device
        found = torch.zeros(len(episodes), self.config.head_features or 0)
        for piece in self._pieces(episodes, range(len(episodes))):
            batch = company
            if piece:
                example_S = episodes.example_N[list(piece)]
                chains = [self._annotated[example] for example in example_S.tolist()]
                batch = continued([episodes.prompts[place] for place in piece], chains, example_S).to(device)
            with beside_head(model, "critic") as said, frozen(model):
                self.kind.embed(model, batch)
            if piece:
                found[list(piece)] = _vectors(batch, *said[-1]).cpu()
        return found

    def _batch(self, episodes: Episodes, places: Sequence[int], told: Mapping[str, list[Tensor]]) -> Batch:
        """Also the vectors of the annotated chains, where it is one of the loss."""
        batch = super()._batch(episodes, places, told)
        if not (told and self.config.cl_coef):
            return batch
        anchors_SE = self._anchors[list(places)].to(batch.input_ids_BT.device)
        return replace(batch, values_S={**batch.values_S, "anchor": anchors_SE})

    def critic_loss(
        self, batch: Batch, values_BT: Tensor, features_BTE: Tensor
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The value loss and the contrastive one."""
        added, means = super().critic_loss(batch, values_BT, features_BTE)
        if not self.config.cl_coef:
            return added, means
        sampled_SE = _vectors(batch, values_BT, features_BTE)[: len(batch.example_S) if batch.target_count else 0]
        before, everywhere_JE = self._from_all(sampled_SE)
        if not batch.target_count:
            return added, means
        cosine_SJ = F.normalize(batch.values_S["anchor"], dim=1) @ F.normalize(everywhere_JE, dim=1).T
        positive_S = before + torch.arange(len(sampled_SE), device=sampled_SE.device)
        correct_S = (batch.values_S["reward"] > _CORRECT).float()  # not where a reward is NaN
        contrast = contrastive_loss(cosine_SJ, positive_S, correct_S, self.config.tau, self.config.compat_broadcast)
        own_S = cosine_SJ.detach().gather(1, positive_S[:, None]).squeeze(1)
        one = contrast.new_ones(())
        means |= {
            "contrastive": (contrast.detach(), one),
            "cosine_right": ((own_S * correct_S).sum(), correct_S.sum()),
            "cosine_wrong": ((own_S * (1 - correct_S)).sum(), (1 - correct_S).sum()),
        }
        return added + self.config.cl_coef * self.count(batch) * contrast, means

    def _from_all(self, own_SE: Tensor) -> tuple[int, Tensor]:
        """Where this process's vectors begin among those of all [J, E], and these; its own have a gradient."""
        found = self.context.gathered(own_SE.detach().cpu())
        parts = [part.to(own_SE.device) for part in found]
        rank = self.context.rank
        return sum(len(part) for part in parts[:rank]), torch.cat([*parts[:rank], own_SE, *parts[rank + 1 :]])


def _vectors(batch: Batch, values_BT: Tensor, features_BTE: Tensor) -> Tensor:
    """z of each sequence of a batch, over its target tokens, at the places of the tokens themselves. Returns [S, E]."""
    mask_BT = batch.target_mask_BT
    return chain_vectors(
        values_BT[mask_BT].float(), features_BTE[mask_BT].float(), batch.sequence_K, len(batch.example_S)
    )
