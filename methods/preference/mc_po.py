"""MC-PO: preference optimisation as maximum likelihood of an energy model; its negatives are drawn by their reward.

"Preference Optimization via Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator", 2025,
arXiv 2502.04567.

    p(y|x) = ref(y|x) exp(r(x, y)) / Z(x),    r(x, y) = beta (log pi(y|x) - log ref(y|x))
    -grad log p(y_0|x) = -grad r(x, y_0) + E_{y ~ p}[grad r(x, y)]
    L = -log ( exp r(y_0) / sum_{i=0..M} exp r(y_i) )                       mean over prompts; M = 1 is DPO

y_0 is the preferred response, and whatever estimates Z is what it is preferred to. Samples of ref give a ranking NCE;
one step of a Monte Carlo kernel towards p gives contrastive divergence: of the candidates, the other responses to the
prompt, a negative is drawn with probability softmax(r) under the policy of that very step, without gradient. `kernel:
mc` does so; `random` draws uniformly, `max` and `min` take those with the largest and smallest reward. Several
negatives are drawn without replacement (ours), and go into the ranking form, as all candidates do with `negatives:
all`.

Draws are a function of seed, step and example: how examples are batched, the number of processes, and an interruption
change nothing. The candidates' rewards cost a forward pass of the policy on all of them, without gradient; only y_0 and
the negatives go through the second one.

Ranked data: the response with the best score is y_0. Defaults: ours (the authors published no code), beta 0.01 among
them.

Legend: G prompts of a micro-batch, S responses, L of one prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from methods.batch import Batch, continued
from methods.forward import Forward
from methods.kinds.causal import frozen
from methods.objective import Loss
from methods.preference.base import BetaConfig, Preference, Responses


@dataclass(frozen=True, kw_only=True)
class McPoConfig(BetaConfig):
    """kernel: how negatives are drawn. negatives: how many (M), or all candidates."""

    beta: PositiveFloat = 0.01
    kernel: Literal["mc", "random", "max", "min"] = "mc"
    negatives: PositiveInt | Literal["all"] = 1


def draw(rewards: Sequence[float], kernel: str, count: int, generator: np.random.Generator) -> list[int]:
    """Places of `count` candidates (all, if there are fewer), drawn without replacement.

    Args:
        rewards: of the candidates.
        kernel: mc (each time in proportion to exp(reward)) | random | max | min.
        count: at least 1.
        generator: its draws are the same in number whatever the kernel.
    """
    values = np.asarray(rewards, dtype=np.float64)
    # The largest of r + Gumbel noise is a draw from softmax(r), the next largest one from what is left.
    noise = generator.gumbel(size=len(values))
    order = {"mc": values + noise, "random": noise, "max": values, "min": -values}[kernel]
    return np.argsort(-order, kind="stable")[:count].tolist()


def ranking_losses(rewards: Tensor, group: Tensor) -> Tensor:
    """-log softmax of the first reward of each group, within its group.

    Args:
        rewards: of the responses, group by group, the preferred one first [S].
        group: long [S], from 0.

    Returns:
        [G].
    """
    size = group.bincount()
    first = size.cumsum(0) - size
    table = rewards.new_full((len(size), int(size.max())), -torch.inf)
    place = torch.arange(len(rewards), device=rewards.device) - first[group]
    table = table.index_put((group, place), rewards)
    return table.logsumexp(1) - table[:, 0]


def narrowed(batch: Batch, rewards: Tensor, kernel: str, count: int, seeds: Sequence[Sequence[int]]) -> Batch:
    """The batch with the first response of each group and `count` of the others, drawn by their rewards.

    Args:
        batch: groups of responses, the preferred one first.
        rewards: of all responses [S]; no gradient is taken.
        kernel, count: see `draw`.
        seeds: of each group's draw.
    """
    assert batch.group_S is not None
    values, kept = rewards.tolist(), []
    begin = 0
    for size, seed in zip(batch.group_S.bincount().tolist(), seeds, strict=True):
        generator = np.random.Generator(np.random.PCG64(list(seed)))
        drawn = draw(values[begin + 1 : begin + size], kernel, count, generator)
        kept += [begin, *sorted(begin + 1 + place for place in drawn)]
        begin += size
    prompts, responses = [], []
    here = batch.to("cpu")
    for row in kept:
        is_its_own = here.sequence_BT == row
        tokens, is_target = here.input_ids_BT[is_its_own], here.target_mask_BT[is_its_own]
        prompts.append(tokens[~is_target].tolist())
        responses.append(tokens[is_target].tolist())
    kept_S = torch.tensor(kept, device=batch.group_S.device)
    return replace(
        continued(prompts, responses, batch.example_S[kept_S]),
        group_S=batch.group_S[kept_S],
        label_S=None if batch.label_S is None else batch.label_S[kept_S],
    )


def rewards_now(method: Preference, batch: Batch, beta: float) -> Tensor:
    """beta times the log-ratio of every response of a batch under a method's models as they are. Returns [S]."""
    roles = {name: method.context.role(name) for name in ("policy", *method.frozen)}
    with frozen(roles["policy"]):
        return beta * method.responses(Forward(method.kind, roles, batch)).all.log_ratio


def with_negatives(
    method: Preference, batch: Batch, step: int, beta: float, kernel: str, negatives: int | Literal["all"]
) -> Batch:
    """A batch of groups, the preferred response first, with the negatives of a step in place of all candidates."""
    if negatives == "all":
        return batch
    rewards_S = rewards_now(method, batch, beta)  # by all processes, since the model may be in shares
    if not batch.target_count:
        return batch
    assert batch.group_S is not None
    size_G = batch.group_S.bincount()
    first_G = batch.example_S[size_G.cumsum(0) - size_G]
    seeds = [(method.context.seed, step, index) for index in first_G.tolist()]
    return narrowed(batch, rewards_S, kernel, negatives, seeds)


def preferred_loss(responses: Responses, beta: float, decided: Tensor | None = None) -> Loss:
    """Sum over the groups of the ranking loss of their first response, and what is logged of it.

    decided: 1 or 0 for each group [G]: whether it counts; None: all do.
    """
    group_S = responses.batch.group_S
    assert group_S is not None, "responses come in groups"
    rewards_S = beta * responses.all.log_ratio
    losses_G = ranking_losses(rewards_S, group_S)
    if decided is not None:
        losses_G = losses_G * decided
    with torch.no_grad():
        size_G = group_S.bincount()
        first_G = size_G.cumsum(0) - size_G
        preferred_G = rewards_S[first_G]
        total_G = torch.zeros_like(preferred_G).index_add(0, group_S, rewards_S)
        margin_G = preferred_G - (total_G - preferred_G) / (size_G - 1)
        metrics = {
            "reward_margin": margin_G.sum(),
            "reward_accuracy": (margin_G > 0).sum(),
            "preferred_log_ratio": preferred_G.sum() / beta,
        }
    return Loss(losses_G.sum(), metrics)


class McPo(Preference):
    """MC-PO: negatives drawn among several responses by their implicit reward (arXiv 2502.04567)."""

    config: McPoConfig
    data = ("ranked",)

    def rollout(self, batch: Batch, step: int) -> Batch:
        """The preferred response of each prompt with the negatives of this step."""
        config = self.config
        return with_negatives(self, batch, step, config.beta, config.kernel, config.negatives)

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the prompts."""
        return preferred_loss(responses, self.config.beta)
