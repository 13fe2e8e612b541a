"""What reinforcement learning on text has in common: episodes -> rewards -> advantages -> loss.

In each turn the policy writes `group_size` responses to every prompt of the batch, rewards grade them, advantages say
which are better than was to be expected, and one or more optimizer steps follow (`epochs` x `minibatches`). Every step
of that is a method of `PolicyGradient` that a paper's method replaces alone:

    episodes        what is written and what it earned; one turn here, a tree of them in Murphy
    returns         the reward a response counts with
    advantages      how much better than its baseline
    keep            which responses are trained on
    token_weights   which of their tokens, and how much
    token_losses    what a token costs; `aggregation` says what the sum is divided by

Where the ratios to the sampling policy need its log-probabilities, they are those of the engine that trains. Those of
the sampler are kept beside them: how far they differ is logged (`train/sampler_gap`, mean absolute difference), and a
step in which it is over `max_sampler_gap` is refused, since rewards would then be credited to another policy.

Of the data set, prompts are used, and its answers by rewards. One seed draws the responses of a micro-batch, by (seed,
turn, examples): which prompts are in it is part of the run's identity, and a continued run draws the same.
`training.batch_size` counts prompts, `training.steps` optimizer steps.

Legend: G prompts, N responses of a process, K target tokens of a micro-batch, S its sequences, V vocabulary.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from evals.rewards.load import Grader, Sampled, load_grader
from methods.batch import Batch, continued, sum_by_sequence
from methods.forward import Forward
from methods.generation import Sampling, Written
from methods.kinds.causal import frozen, without_dropout
from methods.method import Context
from methods.objective import Loss, Objective
from methods.rl.advantages import group_stds, weighted_sum
from methods.rl.episodes import Episodes, joined
from methods.rl.losses import aggregated, kl_estimates, units
from methods.writing import check_room, draw_seed, prompt_places, sampling_of

_CHUNK = 2048  # target tokens whose whole distributions are in fp32 at a time


@dataclass(frozen=True, kw_only=True)
class RlConfig:
    """rewards: each {function: module.function, weight, options} or {model: hub id or folder, weight}; see
        `evals.rewards.load`.
    group_size: responses to a prompt. max_new_tokens, temperature, top_p, stop: of a response.
    epochs, minibatches: optimizer steps on the responses of a turn are their product.
    responses_per_pass: of one forward and backward pass; null: those of a micro-batch of prompts.
    beta: weight of KL(policy || reference); 0: no reference. kl: its estimator. kl_in: the loss, or (k1) the reward.
    aggregation: what the sum over tokens is divided by, see `methods.rl.losses.aggregated`.
    mask_truncated: responses cut by max_new_tokens carry no loss.
    dynamic_sampling: how often prompts whose responses all earn the same are replaced by others.
    max_sampler_gap: largest mean difference of log-probabilities between sampler and trainer.
    """

    rewards: list[dict[str, Any]]
    group_size: PositiveInt = 8
    max_new_tokens: PositiveInt = 512
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Gt(0.0), Le(1.0)] = 1.0
    stop: list[str] | None = None
    epochs: PositiveInt = 1
    minibatches: PositiveInt = 1
    responses_per_pass: Annotated[int, Ge(1)] | None = None
    beta: NonNegativeFloat = 0.0
    kl: Literal["k1", "k2", "k3"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    aggregation: Literal["sequence", "token", "constant", "local_token", "length"] = "sequence"
    mask_truncated: bool = False
    dynamic_sampling: NonNegativeInt = 0
    max_sampler_gap: PositiveFloat = 0.1


class PolicyGradient(Objective):
    """Base of the methods whose policy writes, is rewarded, and is moved along advantage times grad log pi."""

    config: RlConfig
    kinds = ("causal",)
    data = ("problem", "completion")
    couples = "micro-batch"
    prompted = True
    watched = ("sampler_gap",)
    whole_groups: ClassVar[bool] = False  # whether a micro-batch must hold all responses of a group
    entropic: ClassVar[bool] = False  # whether it asks for the entropy of every token's distribution
    critical: ClassVar[bool] = False  # whether `measures` tells values of a critic

    def __init__(self, config: RlConfig) -> None:
        super().__init__(config)
        if config.beta > 0:
            self.frozen = (*self.frozen, "reference")  # type: ignore[misc]
        self._seconds = {"generation": 0.0, "reward": 0.0, "update": 0.0}
        self._since = 0.0
        self._written_tokens = self._tokens_of_turn = 0  # in all turns before, and in this one

    def run(self, context: Context) -> Mapping[str, float]:
        """Train; also reports how many tokens have been written in all, by all processes."""
        return {**super().run(context), "train/written_tokens": self._written_tokens}

    def state_dict(self) -> dict[str, Any]:
        """How many tokens have been written."""
        return {"written_tokens": self._written_tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with it."""
        self._written_tokens = state["written_tokens"]

    # Before training -------------------------------------------------------------------------------------------------

    def shape(self, model: nn.Module) -> None:
        """Without dropout: ratios to the policy that wrote are 1 at the start (an adapter's own dropout stays)."""
        without_dropout(model)

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Load the rewards and the answers.

        Raises:
            ValueError: the longest prompt and response do not fit into the model; a reward cannot be loaded.
        """
        self.check_room(context)
        self.load_rewards(context)
        return {}

    def load_rewards(self, context: Context) -> None:
        """The rewards, and the texts of all examples.

        Raises:
            ValueError: a reward cannot be loaded.
        """
        device = next(context.role("policy").parameters()).device
        self._graders: list[Grader] = [
            load_grader(settings, f"method.rewards[{place}]", device)
            for place, settings in enumerate(self.config.rewards)
        ]
        self._texts = context.plain_texts

    def check_room(self, context: Context) -> None:
        """The longest prompt and a response fit into the model.

        Raises:
            ValueError: they do not.
        """
        check_room(context, self.config.max_new_tokens)

    @cached_property
    def sampling(self) -> Sampling:
        """How responses are drawn."""
        config = self.config
        return sampling_of(
            self.context.tokenizer, config.max_new_tokens, config.temperature, config.top_p, config.stop or ()
        )

    @property
    def updates(self) -> int:
        """Optimizer steps on the responses of a turn."""
        return self.config.epochs * self.config.minibatches

    # Episodes --------------------------------------------------------------------------------------------------------

    def rollouts(self, batches: Sequence[Batch], turn: int) -> Sequence[Sequence[Batch]]:
        """Episodes of a turn, as the micro-batches of its optimizer steps."""
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        self.turn, self._tokens_of_turn = turn, 0
        episodes = self.episodes(batches, turn)
        if self.config.dynamic_sampling:
            episodes = self._with_signal(episodes, turn)
        self._tokens_of_turn = sum(self.context.gathered(self._tokens_of_turn))
        company = replace(batches[0], target_mask_BT=torch.zeros_like(batches[0].target_mask_BT))
        self._since = time.perf_counter()
        if self.updates > 1 or self.entropic or self.critical or self._kl_in_reward:
            episodes = self._measured(episodes, company)
        advantages = self.token_advantages(episodes, self.advantages(episodes))
        kept = self.keep(episodes, advantages)
        weights = self.token_weights(episodes, advantages, kept)
        return self._laid_out(episodes, advantages, weights, kept, company)

    def episodes(self, batches: Sequence[Batch], turn: int) -> Episodes:
        """Responses to the prompts of this process's micro-batches, with their rewards.

        A batch that is there for company takes part in the sampling, and adds nothing.
        """
        pieces = []
        for batch in batches:
            examples = batch.example_S[prompt_places(batch)].tolist()
            prompts = [self.context.examples.prompt(index).tolist() for index in examples]
            if not batch.target_count:
                self.write(prompts, draw_seed(self.context.seed, turn, 0, *examples))
                continue
            pieces.append(self.answered(prompts, examples, draw_seed(self.context.seed, turn, 0, *examples)))
        return joined(pieces) if pieces else _none(len(self._graders))

    def answered(
        self,
        prompts: Sequence[list[int]],
        examples: Sequence[int],
        seed: int,
        parents: Sequence[int] | None = None,
        at: int = 0,
    ) -> Episodes:
        """`group_size` responses to each prompt, graded.

        Args:
            prompts: token ids.
            examples: whose problem each is.
            seed: of the draw.
            parents: of each prompt's responses, the place of the one they are to improve; None: they have none.
            at: which turn of the conversation it is.
        """
        size = self.config.group_size
        written = self.write(prompts, seed)
        self._tokens_of_turn += sum(len(one.tokens) for one in written)
        group_N = torch.arange(len(prompts)).repeat_interleave(size)
        example_N = torch.tensor(list(examples)).repeat_interleave(size)
        parts_NF, feedback = self.graded(written, example_N, group_N, seed)
        parent_G = torch.full((len(prompts),), -1) if parents is None else torch.tensor(list(parents))
        return Episodes(
            prompts=[list(prompt) for prompt in prompts for _ in range(size)],
            written=written,
            example_N=example_N,
            group_N=group_N,
            reward_N=weighted_sum(parts_NF, [settings.get("weight", 1.0) for settings in self.config.rewards]),
            parts_NF=parts_NF,
            feedback=feedback,
            parent_N=parent_G.repeat_interleave(size),
            turn_N=torch.full((len(written),), at),
        )

    def write(self, prompts: Sequence[list[int]], seed: int) -> list[Written]:
        """`group_size` responses to each prompt, by the policy as it is, one prompt's after the other's."""
        began = time.perf_counter()
        repeated = [prompt for prompt in prompts for _ in range(self.config.group_size)]
        written = self.context.write("policy", repeated, self.sampling, seed)
        self._seconds["generation"] += time.perf_counter() - began
        return written

    def graded(
        self, written: Sequence[Written], example_N: Tensor, group_N: Tensor, seed: int
    ) -> tuple[Tensor, list[str]]:
        """What each reward says of each response [N, F], and the feedback that the first with any gives [N]."""
        began = time.perf_counter()
        decode, told = self.context.tokenizer.decode, [self._texts[example] for example in example_N.tolist()]
        sampled = Sampled(
            prompts=[prompt for prompt, _ in told],
            responses=[decode(one.tokens, skip_special_tokens=True) for one in written],
            answers=[answer for _, answer in told],
            tokens=[len(one.tokens) for one in written],
            ended=[one.ended for one in written],
            groups=group_N.tolist(),
            seed=seed,
        )
        found = [grader(sampled) for grader in self._graders]
        parts_NF = torch.tensor([[one.score for one in row] for row in zip(*found, strict=True)], dtype=torch.float64)
        feedback = [next((one.feedback for one in row if one.feedback), "") for row in zip(*found, strict=True)]
        self._seconds["reward"] += time.perf_counter() - began
        return parts_NF.reshape(len(written), len(self._graders)), feedback

    def _with_signal(self, episodes: Episodes, turn: int) -> Episodes:
        """Groups whose responses differ in reward; others are replaced by those of other prompts, a few times."""
        wanted = len(episodes.group_N.unique())
        rewarding = [self._informative(episodes)]
        for again in range(1, self.config.dynamic_sampling + 1):
            missing = wanted - sum(len(piece.group_N.unique()) for piece in rewarding)
            if not any(self.context.gathered(missing > 0)):
                break
            seed = draw_seed(self.context.seed, turn, again, *episodes.example_N.tolist())
            drawn = np.random.default_rng(seed).integers(self.context.examples.group_count, size=max(missing, 1))
            examples = [int(self.context.examples.groups[group]) for group in drawn]
            prompts = [self.context.examples.prompt(index).tolist() for index in examples]
            further = self.answered(prompts, examples, seed)
            if missing > 0:
                rewarding.append(self._informative(further))
        return joined(rewarding)

    def _informative(self, episodes: Episodes) -> Episodes:
        differing_N = group_stds(episodes.reward_N, episodes.group_N) > 0
        return episodes.at(differing_N.nonzero().squeeze(-1).tolist())

    # From rewards to advantages --------------------------------------------------------------------------------------

    def returns(self, episodes: Episodes) -> Tensor:
        """The reward that each response counts with: its own. Returns float64 [N]."""
        if not self._kl_in_reward:
            return episodes.reward_N
        kl_N = [float(kl_K.sum()) for kl_K in self._reference_kl]
        return episodes.reward_N - self.config.beta * torch.tensor(kl_N, dtype=torch.float64)

    @property
    def _kl_in_reward(self) -> bool:
        return self.config.beta > 0 and self.config.kl_in == "reward"

    def advantages(self, episodes: Episodes) -> Tensor:
        """Of each response. Returns float64 [N]."""
        raise NotImplementedError(f"{type(self).__name__} must implement advantages")

    def everywhere(self, values_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor, slice]:
        """Values and groups of all processes, one after the other, and which of them are this one's."""
        found = self.context.gathered((values_N, group_N))
        sizes, groups = [len(values) for values, _ in found], 0
        numbers = []
        for _, own in found:
            _, place_N = own.unique(return_inverse=True)
            numbers.append(place_N + groups)
            groups += len(own.unique())
        before = sum(sizes[: self.context.rank])
        own_slice = slice(before, before + len(values_N))
        return torch.cat([values for values, _ in found]), torch.cat(numbers), own_slice

    def token_advantages(self, episodes: Episodes, advantage_N: Tensor) -> list[Tensor]:
        """Of each token of each response: that of the response. Returns [N] of float [tokens]."""
        counts = episodes.tokens_N.tolist()
        return [advantage.expand(count) for advantage, count in zip(advantage_N.float(), counts, strict=True)]

    def keep(self, episodes: Episodes, advantages: list[Tensor]) -> list[int]:
        """Places of the responses that are trained on: all."""
        return list(range(len(episodes)))

    def token_weights(self, episodes: Episodes, advantages: list[Tensor], kept: Sequence[int]) -> list[Tensor]:
        """How much each token counts, 0 for not at all. Returns [N] of float [tokens]."""
        counts, ended = episodes.tokens_N.tolist(), episodes.ended_N.tolist()
        masked = [self.config.mask_truncated and not end for end in ended]
        return [torch.full((count,), 0.0 if mask else 1.0) for count, mask in zip(counts, masked, strict=True)]

    # Micro-batches ---------------------------------------------------------------------------------------------------

    def _laid_out(
        self,
        episodes: Episodes,
        advantages: list[Tensor],
        weights: list[Tensor],
        kept: Sequence[int],
        company: Batch,
    ) -> list[list[Batch]]:
        """The micro-batches of every optimizer step of the turn; equally many in every process."""
        told = {"advantage": advantages, "weight": weights}
        told["sampler_logps"] = [torch.tensor(written.logps) for written in episodes.written]
        if episodes.old_logps:
            told["old_logps"] = episodes.old_logps
        if self._kl_in_reward:
            told["kl"] = self._reference_kl
        steps: list[list[Batch]] = []
        for epoch in range(self.config.epochs):
            parts = self._parts(episodes, kept, epoch)
            for places in parts:
                pieces = self._pieces(episodes, places)
                steps.append([self._batch(episodes, piece, told) if piece else company for piece in pieces])
        return steps

    def _parts(self, episodes: Episodes, kept: Sequence[int], epoch: int) -> list[list[int]]:
        """Which responses belong to each of the minibatches of an epoch, in an order of its own."""
        count = self.config.minibatches
        if count == 1:
            return [list(kept)]
        random = np.random.default_rng(draw_seed(self.context.seed, self.turn, 1, epoch, self.context.rank))
        units_of = self._wholes(episodes, kept)
        order = [units_of[index] for index in random.permutation(len(units_of))]
        cuts = [len(order) * number // count for number in range(count + 1)]
        return [[place for unit in order[begin:end] for place in unit] for begin, end in pairwise(cuts)]

    def _wholes(self, episodes: Episodes, places: Sequence[int]) -> list[list[int]]:
        """What may not be taken apart: groups, or single responses."""
        if not self.whole_groups:
            return [[place] for place in places]
        found: dict[int, list[int]] = {}
        for place in places:
            found.setdefault(int(episodes.group_N[place]), []).append(place)
        return list(found.values())

    def _pieces(self, episodes: Episodes, places: Sequence[int]) -> list[list[int]]:
        """An optimizer step's responses by passes, which have about equally many; in every process as many passes."""
        wholes = self._wholes(episodes, places)
        most = self.config.responses_per_pass or self._prompts_per_pass * self.config.group_size
        needed = max(*self.context.gathered(math.ceil(len(places) / most)), 1)
        cuts = [len(wholes) * number // needed for number in range(needed + 1)]
        return [[place for unit in wholes[begin:end] for place in unit] for begin, end in pairwise(cuts)]

    @property
    def _prompts_per_pass(self) -> int:
        training = self.context.config["training"]
        size: int = training["micro_batch_size"] or training["batch_size"]
        return size

    def _batch(self, episodes: Episodes, places: Sequence[int], told: Mapping[str, list[Tensor]]) -> Batch:
        """Some of the responses as a batch, with what is told of their tokens."""
        device = next(self.context.role("policy").parameters()).device
        batch = continued(
            [episodes.prompts[place] for place in places],
            [episodes.written[place].tokens for place in places],
            episodes.example_N[list(places)],
        )
        index = torch.tensor(list(places))
        std_S = group_stds(episodes.reward_N, episodes.group_N)[index]
        return replace(
            batch,
            values_K={name: torch.cat([values[place] for place in places]) for name, values in told.items()},
            values_S={
                "group": episodes.group_N[index],
                "reward": episodes.reward_N[index].float(),
                "parts": episodes.parts_NF[index].float(),
                "ended": episodes.ended_N[index].float(),
                "reward_std": std_S.float(),
                "turn": episodes.turn_N[index],
            },
        ).to(device)

    def _measured(self, episodes: Episodes, company: Batch) -> Episodes:
        """The episodes with what the engine that trains says of their tokens, before any step."""
        found: dict[str, list[Tensor]] = {}
        for piece in self._pieces(episodes, range(len(episodes))):
            batch = self._batch(episodes, piece, {}) if piece else company
            counts = [len(episodes.written[place].tokens) for place in piece]
            for name, values_K in self.measures(batch).items():
                of_tokens = found.setdefault(name, [torch.zeros(0)] * len(episodes))
                for place, values in zip(piece, values_K.cpu().split(counts), strict=True):
                    of_tokens[place] = values
        self._reference_kl = found.pop("reference_kl", [])
        told: dict[str, Any] = found
        return replace(episodes, **told)

    def measures(self, batch: Batch) -> dict[str, Tensor]:
        """What is asked about the tokens of a micro-batch before any step, without gradient, each [K]: by its name in
        `Episodes`; `reference_kl` where it is in the reward.
        """
        logps_K, entropy_K = self._scored("policy", batch)
        found = {"old_logps": logps_K}
        if entropy_K is not None:
            found["entropies"] = entropy_K
        if self._kl_in_reward:
            found["reference_kl"] = logps_K - self._scored("reference", batch)[0]
        return found

    def _scored(self, role: str, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the target tokens [K] and, if asked for, the entropy of each one's distribution [K]."""
        model, temperature = self.context.role(role), self.config.temperature
        with frozen(model):
            if not (self.entropic and role == "policy"):
                return self.kind.token_logps(model, batch, temperature), None
            logits_KV = self.kind.target_logits(model, batch)
            logps, entropies = [], []
            for logits_CV, targets_C in zip(logits_KV.split(_CHUNK), batch.targets_K.split(_CHUNK), strict=True):
                distribution_CV = (logits_CV.float() / temperature).log_softmax(-1)
                logps.append(distribution_CV.gather(-1, targets_C[:, None]).squeeze(-1))
                entropies.append(-(distribution_CV.exp() * distribution_CV).sum(-1))
            return torch.cat(logps), torch.cat(entropies)

    # The loss --------------------------------------------------------------------------------------------------------

    def count(self, batch: Batch) -> int:
        """What the sum over the micro-batch is divided by, over all of them."""
        return units(batch.values_K["weight"], batch, self.config.aggregation) if batch.target_count else 0

    def loss(self, forward: Forward) -> Loss:
        """Sum over the tokens of a micro-batch, as the aggregation weighs them."""
        config, batch = self.config, forward.batch
        logps_K = forward.token_logps("policy", config.temperature)
        reference_K = None
        if config.beta > 0 and config.kl_in == "loss":
            with frozen(forward.roles["reference"]):
                reference_K = forward.token_logps("reference", config.temperature)
        if not batch.target_count:  # nothing of its own: passes that others wait for, and no loss
            return Loss(logps_K.sum() * 0.0)
        weight_K = batch.values_K["weight"]
        losses_K, means = self.token_losses(logps_K, batch)
        if reference_K is not None:
            losses_K = losses_K + config.beta * kl_estimates(logps_K, reference_K, config.kl)
            means["kl"] = ((kl_estimates(logps_K, reference_K, "k3") * weight_K).sum(), weight_K.sum())
        total = aggregated(losses_K, weight_K, batch, config.aggregation, config.max_new_tokens)
        return Loss(total, means={**means, **self._seen(logps_K.detach(), batch)})

    def token_losses(self, logps_K: Tensor, batch: Batch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The loss of each token [K], and further means to be logged."""
        raise NotImplementedError(f"{type(self).__name__} must implement token_losses")

    @staticmethod
    def old_logps(logps_K: Tensor, batch: Batch) -> Tensor:
        """Log-probabilities under the policy that wrote; before the first step, the policy itself. Returns [K]."""
        return batch.values_K.get("old_logps", logps_K.detach())

    def _seen(self, logps_K: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """What is logged of the responses of a micro-batch, as sums and counts."""
        values, tokens = batch.values_S, logps_K.new_tensor(float(len(logps_K)))
        count = logps_K.new_tensor(float(len(batch.example_S)))
        scored_S = ~values["reward"].isnan()
        reward_S = values["reward"].nan_to_num(0.0)
        length_S = sum_by_sequence(torch.ones_like(logps_K), batch)
        gap_K = (self.old_logps(logps_K, batch) - batch.values_K["sampler_logps"]).abs()
        seen = {
            "reward": (reward_S.sum(), scored_S.sum()),
            "reward_std": (values["reward_std"].sum(), count),  # inside groups
            "informative": ((values["reward_std"] > 0).sum(), count),
            "response_tokens": (length_S.sum(), count),
            "ended": (values["ended"].sum(), count),
            "negative_logp": (-logps_K.sum(), tokens),  # on own samples its mean is the entropy
            "sampler_gap": (gap_K.sum(), tokens),
        }
        if "kl" in batch.values_K:
            seen["kl"] = (batch.values_K["kl"].sum(), tokens)
        if values["parts"].shape[1] > 1:
            for place, part_S in enumerate(values["parts"].unbind(1)):
                seen[f"reward_{place}"] = (part_S.nan_to_num(0.0).sum(), (~part_S.isnan()).sum())
        return seen

    def check(self, means: Mapping[str, float], where: str) -> None:
        """Refuse to train on what another policy wrote.

        Raises:
            ValueError: sampler and trainer differ by more than `max_sampler_gap`.
        """
        gap = means.get("sampler_gap", 0.0)
        if gap > self.config.max_sampler_gap:
            raise ValueError(
                f"method.max_sampler_gap={self.config.max_sampler_gap}: log-probabilities of sampler and trainer "
                f"differ by {gap:.3g} a token {where}; the sampler may have old weights or another precision"
            )

    def report(self) -> Mapping[str, float]:
        """Seconds spent on each part of the last turn."""
        seconds = {f"{name}_seconds": seconds for name, seconds in self._seconds.items()}
        return {**seconds, "written_tokens": self._written_tokens}

    def after_step(self, step: int) -> None:
        """Note how long the update took, and what the turn took that it belongs to."""
        self._written_tokens, self._tokens_of_turn = self._written_tokens + self._tokens_of_turn, 0
        now = time.perf_counter()
        self._seconds["update"] += now - self._since
        self._since = now


def _none(functions: int) -> Episodes:
    """No episodes: of a process whose batches are all there for company."""
    empty = torch.zeros(0, dtype=torch.long)
    scores_N = torch.zeros(0, dtype=torch.float64)
    return Episodes(
        prompts=[],
        written=[],
        example_N=empty,
        group_N=empty,
        reward_N=scores_N,
        parts_NF=scores_N.reshape(0, functions),
        feedback=[],
        parent_N=empty,
        turn_N=empty,
    )
