"""OnMC-PO, online MC-PO: the policy writes all responses, and prefers the one that a reward says is best.

"Preference Optimization via Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator", 2025,
arXiv 2502.04567. Loss and kernels: `methods/preference/mc_po.py`.

In every step `samples` responses to each prompt are drawn from the policy as it is. That with the largest reward (of
equal ones the first) is y_0; the others are the candidates of which the negatives are drawn by their implicit reward.
Where no negative has a smaller reward than y_0, none is preferred, and the prompt's loss is 0.

Defaults: ours (the authors published no code).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from methods.batch import Batch
from methods.objective import Loss
from methods.preference.base import Responses
from methods.preference.mc_po import preferred_loss, with_negatives
from methods.preference.online import Online, OnlineConfig
from methods.writing import sampling_of


@dataclass(frozen=True, kw_only=True)
class OnMcPoConfig(OnlineConfig):
    """kernel: how negatives are drawn. negatives: M, or all candidates. samples: responses to each prompt."""

    beta: PositiveFloat = 0.01
    kernel: Literal["mc", "random", "max", "min"] = "mc"
    negatives: PositiveInt | Literal["all"] = 1
    samples: Annotated[int, Ge(2)] = 4


def has_worse(rewards: Tensor, group: Tensor) -> Tensor:
    """1 for a group in which some reward is smaller than the first, which none exceeds, else 0.

    Args:
        rewards: group by group [S].
        group: long [S], from 0.

    Returns:
        [G], of the rewards' type.
    """
    size = group.bincount()
    first = rewards[size.cumsum(0) - size]
    worse = (rewards < first[group]).to(rewards.dtype)
    return worse.new_zeros(len(size)).index_add(0, group, worse).clamp_max(1.0)


class OnMcPo(Online):
    """OnMC-PO: the policy's best response by a reward against others, drawn by implicit reward (arXiv 2502.04567)."""

    config: OnMcPoConfig
    best_first = True

    def responses_to(self, batch: Batch, step: int) -> list[list[list[int]]]:
        """Several to each prompt, all by the policy."""
        config = self.config
        sampling = sampling_of(self.context.tokenizer, config.max_new_tokens, config.temperature, config.top_p)
        return self.write("policy", batch, step, config.samples, sampling)

    def rollout(self, batch: Batch, step: int) -> Batch:
        """The best response to each prompt with the negatives of this step."""
        config = self.config
        written = super().rollout(batch, step)
        return with_negatives(self, written, step, config.beta, config.kernel, config.negatives)

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the prompts."""
        batch = responses.batch
        assert batch.label_S is not None and batch.group_S is not None, "responses have been graded"
        decided_G = has_worse(batch.label_S, batch.group_S)
        found = preferred_loss(responses, self.config.beta, decided_G)
        return Loss(found.sum, {**self.written_metrics(responses), "decided": decided_G.sum(), **found.metrics})
