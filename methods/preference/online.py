"""What methods have in common that write responses while they train, and let a reward say which is better.

In each step, for each prompt of the batch: responses are drawn from the policy as it is (or from its reference), a
rule, judge or reward model grades them (`evals/rewards/`; it sees prompt and response as text, without special
tokens), and the loss is taken on them. Of the data set only the prompts are used. The reference is live, since
nothing of new responses can be cached. One seed draws the responses of a micro-batch, by (seed, step, examples):
which prompts are in it is part of the run's identity, and a continued run draws the same.

Legend: G prompts of a micro-batch, S responses.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt, Le
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from evals.rewards.load import Reward, load_reward
from methods.batch import Batch, continued
from methods.generation import Sampling
from methods.method import Context
from methods.objective import Loss
from methods.preference.base import BetaConfig, Preference, Responses, Side
from methods.writing import check_room, draw_seed, prompt_places, prompts_of, sampling_of

Tokens = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(BetaConfig):
    """reward: {function: module.function} or {model: hub id or folder}, see `evals.rewards.load`.

    max_new_tokens, temperature, top_p: of the responses; temperature 1 and top_p 1 draw from the policy itself.
    missing_eos_penalty: taken from the reward of a response that was cut by max_new_tokens; null: nothing.
    """

    reference: Literal["live"] = "live"
    reward: dict[str, str | int | bool | None]
    max_new_tokens: PositiveInt = 64
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Gt(0.0), Le(1.0)] = 1.0
    missing_eos_penalty: NonNegativeFloat | None = None


def grouped(
    prompts: Sequence[Tokens],
    responses: Sequence[Sequence[Tokens]],
    example_G: Tensor,
    labels: Sequence[Sequence[float]],
) -> Batch:
    """A batch of groups of responses to one prompt each, which carry the loss.

    Args:
        prompts: of the G groups.
        responses: of each group, at least one.
        example_G: index in the data set, of each group; the batch is on its device.
        labels: of each response.
    """
    device = example_G.device
    size_G = torch.tensor([len(written) for written in responses], device=device)
    repeated = [prompt for prompt, written in zip(prompts, responses, strict=True) for _ in written]
    flat = [response for written in responses for response in written]
    told = [label for group in labels for label in group]
    return replace(
        continued(repeated, flat, example_G.repeat_interleave(size_G)),
        group_S=torch.arange(len(prompts), device=device).repeat_interleave(size_G),
        label_S=torch.tensor(told, dtype=torch.float32, device=device),
    )


class Writing(Preference):
    """Base of methods that write responses while they train."""

    couples = "micro-batch"
    prompted = True
    _step = 0

    def write(
        self, role: str, batch: Batch, step: int, samples: int, sampling: Sampling, salt: int = 0
    ) -> list[list[list[int]]]:
        """Draw responses to the prompt of each group of a batch from a role's model, as it is now.

        Args:
            salt: tells apart what is drawn for one batch several times: two models of the same weights would write the
                same.

        Returns:
            For each group, its `samples` responses (token ids).
        """
        prompts = prompts_of(self.context.examples, batch)
        seed = draw_seed(self.context.seed, step, salt, *batch.example_S[prompt_places(batch)].tolist())
        repeated = [prompt for prompt in prompts for _ in range(samples)]
        written = self.context.sample(role, repeated, sampling, seed)
        return [written[begin : begin + samples] for begin in range(0, len(written), samples)]

    def epoch(self, step: int) -> int:
        """Which pass over the data a step belongs to, from 0."""
        return step // math.ceil(self.context.examples.group_count / self.context.config["training"]["batch_size"])


class Online(Writing):
    """Base of methods whose responses are written by the policy and graded by a reward."""

    config: OnlineConfig
    data = ("completion", "pair", "labelled", "negative", "ranked", "groups")  # of which only prompts are used
    frozen = ("reference",)
    best_first: ClassVar[bool] = False  # of each group the response with the largest reward, of equal ones the first
    _reward: Reward

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Load the reward."""
        check_room(context, self.config.max_new_tokens)
        device = next(context.role("policy").parameters()).device
        self._reward = load_reward(self.config.reward, device=device)
        return super().prepare(context)

    def responses_to(self, batch: Batch, step: int) -> list[list[list[int]]]:
        """What is written in a step to the prompt of each group of a batch: for each group, its responses."""
        raise NotImplementedError(f"{type(self).__name__} must implement responses_to")

    def rollout(self, batch: Batch, step: int) -> Batch:
        """Responses to the batch's prompts, with their rewards as labels."""
        self._step = step
        written = self.responses_to(batch, step)
        if not batch.target_count:  # company for processes that have more: it has taken part in the sampling
            return batch
        prompts = prompts_of(self.context.examples, batch)
        rewards = self.graded(prompts, written)
        if self.best_first:
            for responses, found in zip(written, rewards, strict=True):
                best = found.index(max(found))
                responses.insert(0, responses.pop(best))
                found.insert(0, found.pop(best))
        return grouped(prompts, written, batch.example_S[prompt_places(batch)], rewards)

    def graded(self, prompts: Sequence[Tokens], responses: Sequence[Sequence[Tokens]]) -> list[list[float]]:
        """The reward of each response, by group, less the penalty where it has no end."""
        tokenizer, penalty = self.context.tokenizer, self.config.missing_eos_penalty or 0.0
        told = [tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts]
        flat = [(text, response) for text, group in zip(told, responses, strict=True) for response in group]
        texts = [tokenizer.decode(response, skip_special_tokens=True) for _, response in flat]
        found = self._reward([text for text, _ in flat], texts)
        ended = [list(response[-1:]) == [tokenizer.eos_token_id] for _, response in flat]
        less = iter([value if end else value - penalty for value, end in zip(found, ended, strict=True)])
        return [[next(less) for _ in group] for group in responses]

    def written_metrics(self, responses: Responses) -> dict[str, Tensor]:
        """To be logged, as sums over the groups: a group's mean reward, log-ratio and length, its share with an end."""
        batch, everything = responses.batch, responses.all
        assert batch.group_S is not None and batch.label_S is not None
        size_S = batch.group_S.bincount()[batch.group_S]
        last_K = F.pad(batch.sequence_K[1:] != batch.sequence_K[:-1], (0, 1), value=True)
        ended_S = batch.targets_K[last_K] == self.context.tokenizer.eos_token_id
        with torch.no_grad():
            return {
                "reward": (batch.label_S / size_S).sum(),
                "log_ratio": (everything.log_ratio / size_S).sum(),
                "response_tokens": (everything.tokens / size_S).sum(),
                "ended": (ended_S / size_S).sum(),
            }


@dataclass(frozen=True, kw_only=True)
class OnlinePairsConfig(OnlineConfig):
    """loss: sigmoid (DPO's) | ipo. ties: of equal rewards the first written is preferred, or the pair is skipped."""

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    ties: Literal["first", "skip"] = "skip"


def pair_loss(margin: Tensor, beta: float, loss: str) -> Tensor:
    """-log sigmoid(beta D), or (D - 1/(2 beta))^2, of the margin D of the chosen log-ratio. From and to [P]."""
    return -F.logsigmoid(beta * margin) if loss == "sigmoid" else (margin - 1 / (2 * beta)) ** 2


class OnlinePairs(Online):
    """Base of methods that write two responses to each prompt: the first by the policy, the second by `second`."""

    config: OnlinePairsConfig
    second: ClassVar[str] = "policy"

    def second_role(self) -> str:
        """Whose the second response is."""
        return self.second

    def responses_to(self, batch: Batch, step: int) -> list[list[list[int]]]:
        """Two to each prompt."""
        config, roles = self.config, ("policy", self.second_role())
        sampling = sampling_of(self.context.tokenizer, config.max_new_tokens, config.temperature, config.top_p)
        drawn = [self.write(role, batch, step, 1, sampling, salt) for salt, role in enumerate(roles)]
        return [first + second for first, second in zip(*drawn, strict=True)]

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the prompts."""
        chosen, rejected, decided_P = self.ordered(responses)
        losses_P = pair_loss(chosen.log_ratio - rejected.log_ratio, self.config.beta, self.config.loss) * decided_P
        return Loss(losses_P.sum(), self.metrics(responses, chosen, rejected, decided_P))

    def ordered(self, responses: Responses) -> tuple[Side, Side, Tensor]:
        """The better and the worse response of each pair, and 1 or 0 [P]: whether it counts."""
        label_S = responses.batch.label_S
        assert label_S is not None, "responses have been graded"
        scores_P2 = label_S.view(-1, 2)
        first_P = scores_P2[:, 0] >= scores_P2[:, 1]
        chosen_S = torch.stack([first_P, ~first_P], dim=1).flatten()
        decided_P = torch.ones_like(scores_P2[:, 0])
        if self.config.ties == "skip":
            decided_P = (scores_P2[:, 0] != scores_P2[:, 1]).to(decided_P.dtype)
        return responses.where(chosen_S), responses.where(~chosen_S), decided_P

    def metrics(self, responses: Responses, chosen: Side, rejected: Side, decided_P: Tensor) -> dict[str, Tensor]:
        """To be logged, as sums over the pairs; of pairs that do not count, margin and accuracy are 0."""
        with torch.no_grad():
            margin_P = self.config.beta * (chosen.log_ratio - rejected.log_ratio)
            return {
                **self.written_metrics(responses),
                "decided": decided_P.sum(),
                "reward_margin": (margin_P * decided_P).sum(),
                "reward_accuracy": ((margin_P > 0) * decided_P).sum(),
            }
