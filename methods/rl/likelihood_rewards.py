"""Likelihood rewards: a chain of thought is worth what it does to the likelihood of the reference answer; no verifier.

"Likelihood-Based Reward Designs for General LLM Reasoning", 2026, arXiv 2602.03979. The policy writes a thought z after
a prompt p, and the answer a* = a_1 ... a_m of the data is put behind it: P = pi(a* | p, z), p_k = pi(a_k | p, z, a_<k).
Of n thoughts to a prompt:

    reward      R(z)                                     answer term (its gradient)
    verifier    what the rewards of the run say          none
    log_prob    log P                                    grad log P
    avg_log_prob  (1/m) log P                            (1/m) grad log P
    prob        P                                        P grad log P                 VeriFree, arXiv 2505.21493
    avg_prob    (1/m) sum_k p_k                          (1/m) sum_k p_k grad log p_k
    geometric   exp((1/m) log P)                         R (1/m) grad log P
    jepo        log mean_j P_j - log mean_(j != i) P_j   P_i / sum_j P_j grad log P_i          arXiv 2503.19618
    rlpr        clip(avg_prob - avg_prob without a thought, 0, 1)   none              RLPR, arXiv 2506.18254
    nover       rank + efficiency + 1, see `nover_rewards`          none              NOVER, arXiv 2505.16022

    gradient = mean over thoughts of  A grad log pi(z | p) + answer term,    A = R - mean of the group's other R

E_z f(P) has two parts in its gradient, E[f(P) grad log pi(z)] and E[f'(P) grad P]; from them the answer terms follow
(derived here). That of `jepo` is of log mean_j P_j, its R is the change that thought i makes to it, and needs no
baseline; both of its terms are sums over the thoughts there, means here. The paper's abstract and reports give the
families of rewards; which of them keep the answer term in its own experiments is not known to us. It can be left out
(`answer_weight: 0`). The probabilities in the answer terms are the policy's as it is, without gradient; those in R that
of the turn's beginning.

The thought ends where the response has the text `boundary`, or at the response's end; the answer is scored after
`boundary` in any case, with EOS as its last token where `answer_eos` says so. A response without it is malformed.
Policy term and answer term have tokens of their own: those of the thought, its boundary or EOS with it, and those of
the answer, which are rows of their own behind those of the responses. `credit: response` gives the advantage to all
that the policy wrote.

RLPR's filter leaves out groups whose standard deviation of R is below `spread` times its running mean; the mean's decay
is ours. NOVER's scorer is a copy of the start that now and then takes in the policy; here it is the policy or, with
`scorer: reference`, the start as it was.

Legend: N responses of a process, S sequences, K target tokens of answers, G groups.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import NonNegativeFloat
from torch import Tensor

from methods.batch import Batch, continued, mean_by_sequence, sum_by_sequence
from methods.forward import Forward
from methods.generation import most_tokens
from methods.method import Context
from methods.objective import Loss
from methods.rl.advantages import group_stds
from methods.rl.episodes import Episodes
from methods.rl.grpo import Grpo, GrpoConfig
from methods.rl.scoring import Scoring, rows_of

_WITH_ANSWER_TERM = ("log_prob", "avg_log_prob", "prob", "avg_prob", "geometric", "jepo")


@dataclass(frozen=True, kw_only=True)
class LikelihoodRewardsConfig(GrpoConfig):
    """reward: see `methods.rl.likelihood_rewards`; `rewards` are logged, and count with `verifier` alone.

    baseline, scale, ratio: as of `GrpoConfig`; here such that the gradient is that of a mean over responses.

    answer_weight: of the answer term. credit: which tokens the advantage is given to. boundary: text between thought
    and answer. answer_after: the answer is what comes after the last of this text in the data's; null: all of it.
    answer_eos: whether the answer's EOS is one of its tokens. scorer: whose likelihood is the reward.
    format_weight: c of (1 - c) R + c for a response with the boundary, (1 - c) R for one without. malformed: what one
    without is worth; null: its R. spread: see above; null: no filter. spread_decay: of its running mean.
    """

    baseline: Literal["group", "leave_one_out", "batch", "none"] = "leave_one_out"
    scale: Literal["group", "batch", "none"] = "none"
    ratio: Literal["token", "sequence", "sequence_sum"] = "sequence_sum"
    reward: Literal[
        "verifier", "log_prob", "avg_log_prob", "prob", "avg_prob", "geometric", "jepo", "rlpr", "nover"
    ] = "log_prob"
    answer_weight: NonNegativeFloat = 1.0
    credit: Literal["thought", "response"] = "thought"
    boundary: str = "\nAnswer: "
    answer_after: str | None = None
    answer_eos: bool = True
    scorer: Literal["policy", "reference"] = "policy"
    format_weight: Annotated[float, Ge(0.0), Le(1.0)] = 0.0
    malformed: float | None = None
    spread: NonNegativeFloat | None = None
    spread_decay: Annotated[float, Gt(0.0), Lt(1.0)] = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dynamic_sampling:
            raise ValueError(
                f"method.dynamic_sampling={self.dynamic_sampling}: must be 0; likelihoods differ in every group"
            )
        if self.combine != "sum_then_normalise":
            raise ValueError(f"method.combine={self.combine}: must be sum_then_normalise; the likelihood is one reward")
        if self.reward == "jepo" and (self.baseline != "none" or self.scale != "none"):
            raise ValueError("method.reward=jepo: is centred already; needs method.baseline=none and method.scale=none")
        if self.answer_weight and self.reward not in _WITH_ANSWER_TERM:
            raise ValueError(
                f"method.answer_weight={self.answer_weight}: method.reward={self.reward} has no answer term"
            )
        if self.answer_weight and self.aggregation in ("token", "local_token"):
            raise ValueError(
                f"method.aggregation={self.aggregation}: must be sequence, constant or length with an answer term, "
                "which is a mean over responses"
            )


# Rewards of a thought, from the log-probabilities of the answer's tokens ----------------------------------------------

_OF_ONE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "log_prob": lambda logps_K: logps_K.sum(),
    "avg_log_prob": lambda logps_K: logps_K.mean(),
    "prob": lambda logps_K: logps_K.sum().exp(),
    "avg_prob": lambda logps_K: logps_K.exp().mean(),
    "geometric": lambda logps_K: logps_K.mean().exp(),
}


def likelihoods(answer_logps: Sequence[Tensor], of: str) -> Tensor:
    """log_prob | avg_log_prob | prob | avg_prob | geometric of each answer.

    Args:
        answer_logps: log-probabilities of its tokens, at least one [N].

    Returns:
        float64 [N].
    """
    return torch.tensor([float(_OF_ONE[of](logps_K.double())) for logps_K in answer_logps], dtype=torch.float64)


def jepo_rewards(log_prob_N: Tensor, group_N: Tensor) -> Tensor:
    """log mean_j P_j - log mean_(j != i) P_j, over the group; 0 for one alone. Returns [N]."""
    together_NN = group_N[:, None] == group_N[None, :]
    others_NN = together_NN & ~torch.eye(len(group_N), dtype=torch.bool, device=group_N.device)
    means = []
    for held_NN in (together_NN, others_NN):
        masked_NN = torch.where(held_NN, log_prob_N[None, :], -torch.inf)
        means.append(masked_NN.logsumexp(1) - held_NN.sum(1).clamp_min(1).log())
    return torch.where(others_NN.any(1), means[0] - means[1], 0.0)


def jepo_weights(log_prob_N: Tensor, group_N: Tensor) -> Tensor:
    """P_i / sum_j P_j over the group. Returns [N]."""
    held_NN = group_N[:, None] == group_N[None, :]
    return (log_prob_N - torch.where(held_NN, log_prob_N[None, :], -torch.inf).logsumexp(1)).exp()


def marginal_log_prob(log_prob_N: Tensor) -> Tensor:
    """log (1/n) sum_j P_j of n thoughts: the estimate of log pi(a* | p) that is not below the mean of log P."""
    return log_prob_N.logsumexp(0) - math.log(len(log_prob_N))


def debiased(with_N: Tensor, without_N: Tensor) -> Tensor:
    """RLPR: what the thought adds, clip(R_B - R_A, 0, 1). Returns [N]."""
    return (with_N - without_N).clamp(0.0, 1.0)


def formatted(rewards_N: Tensor, is_formed_N: Tensor, weight: float, malformed: float | None = None) -> Tensor:
    """RLPR: (1 - c) r + c format, with format 1 or 0; or `malformed` where it is 0. Returns [N]."""
    mixed_N = (1 - weight) * rewards_N + weight * is_formed_N.to(rewards_N.dtype)
    return mixed_N if malformed is None else torch.where(is_formed_N, mixed_N, malformed)


def enough_spread(std_N: Tensor, running_mean: float, factor: float) -> Tensor:
    """RLPR: whether a group's standard deviation of rewards is at least `factor` times the running mean. Bool [N]."""
    return std_N >= factor * running_mean


def reasoning_perplexity(answer_logps: Sequence[Tensor], thought_tokens_N: Tensor) -> Tensor:
    """NOVER: exp(mean_k(-log p_k) / max(1, 1 + log10 |z|)), |z| tokens of the thought. Returns float64 [N]."""
    by_length_N = 1 + thought_tokens_N.double().clamp_min(1).log10()  # of an empty thought 1
    return (-likelihoods(answer_logps, "avg_log_prob") / by_length_N).exp()


def nover_rewards(perplexity_N: Tensor, thought_tokens_N: Tensor, is_formed_N: Tensor, group_N: Tensor) -> Tensor:
    """NOVER's reward: of a rollout in the right format, among the V of its group that are; else 0.

        (V - rank) / V    rank 0 has the lowest perplexity, equal ones the same (ours)
        the share of the V that are both longer and of a higher perplexity (that it is a share is ours)
        1                 for the format

    Returns:
        float64 [N].
    """
    peers_NN = (group_N[:, None] == group_N[None, :]) & is_formed_N[None, :]
    count_N = peers_NN.sum(1).clamp_min(1).double()
    rank_N = (peers_NN & (perplexity_N[None, :] < perplexity_N[:, None])).sum(1)
    is_worse_NN = perplexity_N[None, :] > perplexity_N[:, None]
    is_longer_NN = thought_tokens_N[None, :] > thought_tokens_N[:, None]
    beaten_N = (peers_NN & is_worse_NN & is_longer_NN).sum(1)
    return torch.where(is_formed_N, (count_N - rank_N) / count_N + beaten_N / count_N + 1.0, 0.0)


def answer_losses(logps_K: Tensor, batch: Batch, of: str, group_S: Tensor) -> Tensor:
    """What the answer after each thought costs: its gradient is minus the answer term. Returns [S].

    Args:
        logps_K: of the answers' tokens, with gradient.
        batch: of prompts, thoughts and answers.
        of: one of the rewards that have such a term.
        group_S: which of them answer one prompt; for `jepo` all of a group must be there.
    """
    total_S, fixed_K = sum_by_sequence(logps_K, batch), logps_K.detach()
    fixed_S = total_S.detach()
    if of == "log_prob":
        return -total_S
    if of == "avg_log_prob":
        return -mean_by_sequence(logps_K, batch)
    if of == "prob":
        return -fixed_S.exp() * total_S
    if of == "avg_prob":
        return -mean_by_sequence(fixed_K.exp() * logps_K, batch)
    if of == "geometric":
        mean_S = mean_by_sequence(logps_K, batch)
        return -mean_S.detach().exp() * mean_S
    if of == "jepo":
        return -jepo_weights(fixed_S, group_S) * total_S
    raise ValueError(f"reward={of}: must be one of {', '.join(_WITH_ANSWER_TERM)}, which have an answer term")


# Where a thought ends -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thought:
    """What of a response comes before the answer.

    tokens: after which the answer is scored, boundary included. count: tokens of the response that are the thought, its
    own boundary or EOS with it. formed: whether the response has the boundary.
    """

    tokens: list[int]
    count: int
    formed: bool


def thought_of(response: list[int], eos: int, boundary: str, boundary_tokens: list[int], decode: Any) -> Thought:
    """The part of a response up to the first `boundary`; all of it, less an EOS, where it has none.

    Args:
        response: token ids.
        boundary_tokens: of the text, put in where the response's own do not end with it.
        decode: from token ids to text.
    """
    if not boundary or boundary not in decode(response):
        body = response[:-1] if response[-1:] == [eos] else response
        return Thought([*body, *boundary_tokens], len(response), not boundary)
    count = _fewest(len(response), lambda end: boundary in decode(response[:end]))
    text = decode(response[:count])
    if text.endswith(boundary):
        return Thought(response[:count], count, True)
    # A token holds the boundary's end and what follows: the answer must not be scored after that.
    before = text[: text.index(boundary)]
    whole = _fewest(count, lambda end: len(decode(response[:end])) > len(before)) - 1
    return Thought([*response[:whole], *boundary_tokens], count, True)


def _fewest(most: int, holds: Callable[[int], bool]) -> int:
    """The smallest number of tokens from 1 to `most` for which something holds that holds for all above it."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


# The method -----------------------------------------------------------------------------------------------------------


class LikelihoodRewards(Scoring, Grpo):
    """Chains of thought rewarded by the likelihood of the reference answer after them (arXiv 2602.03979)."""

    config: LikelihoodRewardsConfig
    whole_groups = True

    def __init__(self, config: LikelihoodRewardsConfig) -> None:
        super().__init__(config)
        if config.scorer == "reference" and "reference" not in self.frozen:
            self.frozen = (*self.frozen, "reference")  # type: ignore[misc]
        self._mean_std: float | None = None  # running, of the groups' standard deviations
        self._of_turn: float | None = None  # what it is after the turn's steps

    def check_room(self, context: Context) -> None:
        """The longest prompt, a response, the boundary and the longest answer fit into the model.

        Raises:
            ValueError: they do not; an answer has no text.
        """
        config, tokenizer = self.config, context.tokenizer
        self._boundary = list(tokenizer(config.boundary, add_special_tokens=False)["input_ids"])
        answers = [self._answer(place, answer) for place, (_, answer) in enumerate(context.texts)]
        encoded = tokenizer(answers, add_special_tokens=False)["input_ids"]
        self._answers = [[*ids, *([tokenizer.eos_token_id] if config.answer_eos else [])] for ids in encoded]
        limit, further = most_tokens(context.role("policy")), len(self._boundary) + max(map(len, self._answers))
        needed = int(context.examples.targets.max()) + config.max_new_tokens + further
        if limit is not None and needed > limit:
            raise ValueError(
                f"method.max_new_tokens={config.max_new_tokens}: with the longest prompt, boundary and answer that is "
                f"{needed} tokens, the model takes at most {limit}"
            )

    def _answer(self, place: int, text: str) -> str:
        after = self.config.answer_after
        answer = (text if after is None else text.rpartition(after)[2]).strip()
        if not answer:
            raise ValueError(f"dataset.completion: the answer of example {place} is empty, which has no likelihood")
        return answer

    # Rewards ----------------------------------------------------------------------------------------------------------

    def episodes(self, batches: Sequence[Batch], turn: int) -> Episodes:
        """Responses that count with the likelihood of the answer after their thoughts."""
        episodes = super().episodes(batches, turn)
        decode = self.context.tokenizer.decode
        self._thoughts = [
            thought_of(
                one.tokens,
                self.context.tokenizer.eos_token_id,
                self.config.boundary,
                self._boundary,
                lambda ids: decode(ids, skip_special_tokens=True),
            )
            for one in episodes.written
        ]
        rewards_N = self._likelihood_rewards(episodes)
        return episodes if rewards_N is None else replace(episodes, reward_N=rewards_N)

    def _likelihood_rewards(self, episodes: Episodes) -> Tensor | None:
        """Of each response [N]; None: that of the run's own rewards."""
        config, group_N = self.config, episodes.group_N
        if config.reward == "verifier":
            return None
        formed_N = torch.tensor([thought.formed for thought in self._thoughts], dtype=torch.bool)
        logps = self._answer_logps(episodes, [thought.tokens for thought in self._thoughts])
        if config.reward == "jepo":
            rewards_N = jepo_rewards(likelihoods(logps, "log_prob"), group_N)
        elif config.reward == "rlpr":
            bare = self._answer_logps(episodes, [self._boundary] * len(episodes))
            rewards_N = debiased(likelihoods(logps, "avg_prob"), likelihoods(bare, "avg_prob"))
        elif config.reward == "nover":
            tokens_N = torch.tensor([thought.count for thought in self._thoughts], dtype=torch.long)
            rewards_N = nover_rewards(reasoning_perplexity(logps, tokens_N), tokens_N, formed_N, group_N)
        else:
            rewards_N = likelihoods(logps, config.reward)
        return formatted(rewards_N, formed_N, config.format_weight, config.malformed)

    def _answer_logps(self, episodes: Episodes, thoughts: Sequence[list[int]]) -> list[Tensor]:
        """Log-probabilities of the answers' tokens after prompts and these thoughts, by the scorer."""
        prompts = [[*prompt, *thought] for prompt, thought in zip(episodes.prompts, thoughts, strict=True)]
        answers = [self._answers[example] for example in episodes.example_N.tolist()]
        return self.asked(self.config.scorer, episodes, prompts=prompts, continuations=answers)

    # Tokens -----------------------------------------------------------------------------------------------------------

    def keep(self, episodes: Episodes, advantages: list[Tensor]) -> list[int]:
        """All responses, or those of groups whose rewards are spread enough."""
        places = super().keep(episodes, advantages)
        if self.config.spread is None:
            return places
        std_N = group_stds(episodes.reward_N, episodes.group_N)
        found = [std for values_N in self.context.gathered(std_N) for std in values_N.tolist()]
        mean_std = sum(found) / max(len(found), 1)
        before = mean_std if self._mean_std is None else self._mean_std
        self._of_turn = self.config.spread_decay * before + (1 - self.config.spread_decay) * mean_std
        kept_N = enough_spread(std_N, before, self.config.spread)
        return [place for place in places if kept_N[place]]

    def after_step(self, step: int) -> None:
        """Take the turn's spread into the running mean."""
        super().after_step(step)
        if self._of_turn is not None:
            self._mean_std, self._of_turn = self._of_turn, None

    def state_dict(self) -> dict[str, Any]:
        """Also the running mean of the groups' standard deviations."""
        return {**super().state_dict(), **({} if self._mean_std is None else {"mean_std": self._mean_std})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with it."""
        super().load_state_dict(state)
        self._mean_std = state.get("mean_std")

    def token_weights(self, episodes: Episodes, advantages: list[Tensor], kept: Sequence[int]) -> list[Tensor]:
        """Of the policy term: the thought's tokens, or all of the response."""
        weights = super().token_weights(episodes, advantages, kept)
        # Whether a response counts at all, for the answer term, which may follow a thought of no tokens.
        self._counted = [float(weight.max()) if len(weight) else 0.0 for weight in weights]
        if self.config.credit == "response":
            return weights
        return [
            weight * (torch.arange(len(weight)) < thought.count)
            for weight, thought in zip(weights, self._thoughts, strict=True)
        ]

    def _batch(self, episodes: Episodes, places: Sequence[int], told: Mapping[str, list[Tensor]]) -> Batch:
        """The responses, and behind them, where there is a loss, as many rows with the answer after each thought."""
        responses = super()._batch(episodes, places, told)
        if not told or not self.config.answer_weight:  # nothing is told of tokens that are only measured
            return responses
        prompts = [[*episodes.prompts[place], *self._thoughts[place].tokens] for place in places]
        answers = [self._answers[int(episodes.example_N[place])] for place in places]
        tokens = [episodes.written[place].tokens for place in places]
        example_S = episodes.example_N[list(places)]
        both = continued(
            [*(episodes.prompts[place] for place in places), *prompts], [*tokens, *answers], torch.cat([example_S] * 2)
        )
        added, rows = sum(map(len, answers)), len(places)
        device = responses.input_ids_BT.device
        counted_S = torch.tensor([self._counted[place] for place in places])
        values_S = {name: torch.cat([values_S] * 2) for name, values_S in responses.values_S.items()}
        return replace(
            both.to(device),
            values_K={
                name: torch.cat([values_K, values_K.new_zeros(added)]) for name, values_K in responses.values_K.items()
            },
            values_S={
                **values_S,
                "counted": torch.cat([counted_S] * 2).to(device),
                "answer": (torch.arange(2 * rows) >= rows).to(device),
            },
        )

    # The loss ---------------------------------------------------------------------------------------------------------

    def count(self, batch: Batch) -> int:
        """As of the responses alone."""
        if "answer" in batch.values_S:
            batch = rows_of(batch, ~batch.values_S["answer"])
        return super().count(batch)

    def loss(self, forward: Forward) -> Loss:
        """The policy's and the answer's term, from one pass."""
        batch, weight = forward.batch, self.config.answer_weight
        if "answer" not in batch.values_S:
            return super().loss(forward)
        logps_K = forward.token_logps("policy", self.config.temperature)
        is_answer_S = batch.values_S["answer"]
        is_answer_K = is_answer_S[batch.sequence_K]
        loss = super().loss(_Part(self.kind, forward, rows_of(batch, ~is_answer_S), logps_K[~is_answer_K]))
        answers, answer_K = rows_of(batch, is_answer_S), logps_K[is_answer_K]
        counted_S = answers.values_S["counted"]
        losses_S = answer_losses(answer_K, answers, self.config.reward, answers.values_S["group"]) * counted_S
        seen_S = sum_by_sequence(answer_K.detach(), answers)
        means = {
            "answer_logp": (seen_S.sum(), counted_S.new_tensor(float(len(counted_S)))),
            "answer_logp_token": (seen_S.sum(), counted_S.new_tensor(float(len(answer_K)))),
        }
        return replace(loss, sum=loss.sum + weight * losses_S.sum(), means={**loss.means, **means})

    def _seen(self, logps_K: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Also what the run's own rewards say."""
        weights = [settings.get("weight", 1.0) for settings in self.config.rewards]
        parts_SF = batch.values_S["parts"]
        graded_S = (parts_SF.nan_to_num(0.0) * parts_SF.new_tensor(weights)).sum(1)
        count = graded_S.new_tensor(float(len(graded_S)))
        return {**super()._seen(logps_K, batch), "graded": (graded_S.sum(), count)}


class _Part(Forward):
    """Some rows of a micro-batch that has been through the policy."""

    def __init__(self, kind: Any, whole: Forward, batch: Batch, logps_K: Tensor) -> None:
        super().__init__(kind, whole.roles, batch)
        self._logps_K = logps_K

    def token_logps(self, role: str = "policy", temperature: float = 1.0) -> Tensor:
        """Of the policy as they are there."""
        return self._logps_K if role == "policy" else super().token_logps(role, temperature)
