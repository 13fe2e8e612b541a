"""DPH-RL: GRPO on the prompts that are hard, and on those the start solved a divergence to it that covers its mass.

"The Choice of Divergence: A Neglected Key to Mitigating Diversity Collapse in Reinforcement Learning with Verifiable
Reward", 2025, arXiv 2509.07430.

Once, before training, the starting model answers every prompt `presamples` times. A prompt with at least `near_perfect`
correct responses (a reward of 1 or more) is solved: one of them is kept, with its log-probabilities under the start.
All others are explored. A step then is

    explored prompts   the clipped policy gradient of `methods/rl/grpo.py`
    solved prompts     coefficient x mean over the tokens of the kept responses of f(u)

with d = log pi - log pi_start of a token and u = e^d; no reference is asked for in training:

    forward_kl    u - d - 1                                  KL(start || policy); d within 20, f up to 10
    js            u log u - (u + 1) log((u + 1)/2)           2 JSD
    alpha         (u^(1-a) - (1-a) u - a)/(a (a-1))          between the two KLs
    js_mixture    k3 of KL(start || M), M the mean of both; and in a share of the passes on explored prompts k3 of
                  KL(policy || M) on their responses, for which a reference is asked

All is as in the authors' code, where a comment says 6 of 8 and the code 4. Where f of `forward_kl` is bounded it has no
gradient: of tokens that have become less than e^-11 times as likely. Ours: the mean over tokens is over all of the
step; the rows of a turn are the next of an order that is drawn anew after each pass through them; that `alpha` has rows
too; the first correct response is the one that is kept.

With `near_perfect: null` all is explored: GRPO with the KL of `beta`, reverse and on all prompts, is the baseline.

Legend: N responses, G prompts, P responses of the start to each, K target tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from methods.batch import Batch, continued
from methods.divergences import f_value
from methods.examples import Examples
from methods.forward import Forward
from methods.generation import Written
from methods.kinds.causal import frozen
from methods.method import Context
from methods.objective import Loss
from methods.rl.advantages import weighted_sum
from methods.rl.grpo import Grpo, GrpoConfig
from methods.rl.losses import aggregated, kl_estimates
from methods.writing import draw_seed, sampling_of

Divergence = Literal["forward_kl", "js", "alpha", "js_mixture"]


@dataclass(frozen=True, kw_only=True)
class DphRlConfig(GrpoConfig):
    """divergence: of solved prompts. coefficient: its weight. alpha: of the alpha divergence.

    mixture_share: of the passes on explored prompts that have the other half of js_mixture.
    presamples, presample_temperature, presample_top_p, presample_batch_size: of the starting model's responses.
    near_perfect: correct ones among them from which on a prompt is solved; null: none is, and nothing is sampled.
    rehearsal_size: solved prompts in a turn.
    """

    group_size: PositiveInt = 16
    max_new_tokens: PositiveInt = 4096
    minibatches: PositiveInt = 2
    aggregation: Literal["sequence", "token", "constant", "local_token", "length"] = "token"
    clip_high: PositiveFloat = 0.28
    divergence: Literal["forward_kl", "js", "alpha", "js_mixture"] = "forward_kl"
    coefficient: NonNegativeFloat = 0.01
    alpha: Annotated[float, Gt(0.0), Lt(1.0)] = 0.2
    mixture_share: Annotated[float, Ge(0.0), Le(1.0)] = 0.1
    presamples: PositiveInt = 8
    presample_temperature: PositiveFloat = 1.0
    presample_top_p: Annotated[float, Gt(0.0), Le(1.0)] = 0.95
    presample_batch_size: PositiveInt = 64
    near_perfect: Annotated[int, Ge(1)] | None = 4
    rehearsal_size: PositiveInt = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.near_perfect is not None and self.near_perfect > self.presamples:
            raise ValueError(
                f"method.near_perfect={self.near_perfect}: must be at most method.presamples={self.presamples}, or null"
            )
        if self.near_perfect is not None and self.stop:
            raise ValueError(f"method.stop={self.stop}: must be null, as the pre-sampling knows no stop texts")


def rehearsal_losses(logps_K: Tensor, start_K: Tensor, divergence: Divergence, alpha: float = 0.2) -> Tensor:
    """f(u) of every token, of the table above. Returns [K]; all are 0, with no gradient, where both are equal."""
    d_K = logps_K - start_K
    match divergence:
        case "forward_kl":
            bounded_K = d_K.clamp(-20, 20)
            return (torch.expm1(bounded_K) - bounded_K).clamp(-10, 10)
        case "js_mixture":
            return kl_estimates(start_K, log_mixture(logps_K, start_K), "k3")
        case _:
            return f_value(divergence, d_K, alpha)


def log_mixture(a_logps: Tensor, b_logps: Tensor) -> Tensor:
    """log of the mean of two probabilities. Same shape."""
    return torch.logaddexp(a_logps, b_logps) - math.log(2)


def solved_prompts(is_correct_GP: Tensor, near_perfect: int) -> tuple[Tensor, Tensor]:
    """Whether each prompt has enough correct responses [G], and the place of the first of them [G]."""
    return is_correct_GP.sum(1) >= near_perfect, is_correct_GP.int().argmax(1)


def next_rows(count: int, size: int, turn: int, seed: int) -> list[int]:
    """Rows of a turn: the next `size` of all `count` in an order that is drawn anew after each pass; at most all."""
    size = min(size, count)
    orders: dict[int, list[int]] = {}
    rows = []
    for number in range(turn * size, (turn + 1) * size):
        epoch, place = divmod(number, count)
        if epoch not in orders:
            orders[epoch] = np.random.default_rng(draw_seed(seed, 4, epoch)).permutation(count).tolist()
        rows.append(orders[epoch][place])
    return rows


class DphRl(Grpo):
    """DPH-RL: GRPO on hard prompts, a mass-covering divergence to the start on those it solved (arXiv 2509.07430)."""

    config: DphRlConfig

    def __init__(self, config: DphRlConfig) -> None:
        super().__init__(config)
        if config.divergence == "js_mixture" and "reference" not in self.frozen:
            self.frozen = (*self.frozen, "reference")  # type: ignore[misc]
        self._rehearsal: Examples | None = None  # a correct response to each solved prompt
        self._start_logps: list[Tensor] = []
        self._explored: list[int] | None = None  # which of the data set's examples; None: all

    # Before training -------------------------------------------------------------------------------------------------

    def arrange(self, context: Context, examples: Examples) -> Examples:
        """The prompts that the starting model does not solve.

        Raises:
            ValueError: it solves them all.
        """
        config = self.config
        if config.near_perfect is None:
            return examples
        self.context, self.kind = context, context.kind
        self.load_rewards(context)
        written = self._presampled(examples)
        first = [int(begin) for begin in examples.groups[:-1]]
        is_correct_GP = self._correct(written, first).reshape(len(first), config.presamples)
        is_solved_G, place_G = solved_prompts(is_correct_GP, config.near_perfect)
        if is_solved_G.all():
            raise ValueError(
                f"method.near_perfect={config.near_perfect}: the starting model solves all {len(first)} prompts so "
                "often; none is left to be explored"
            )
        solved = is_solved_G.nonzero().squeeze(-1).tolist()
        kept = [(examples.prompt(first[g]), written[g * config.presamples + int(place_G[g])]) for g in solved]
        sequences = [[*prompt, *one.tokens] for prompt, one in kept]
        self._remember(Examples.of(sequences, [len(prompt) for prompt, _ in kept]))
        explored_K = (~is_solved_G).nonzero().squeeze(-1).numpy()
        self._explored = [
            index for g in explored_K for index in range(int(examples.groups[g]), int(examples.groups[g + 1]))
        ]
        return examples.of_groups(explored_K)

    def _presampled(self, examples: Examples) -> list[Written]:
        """The starting model's responses to each prompt, one prompt's after the other's."""
        config, tokenizer = self.config, self.context.tokenizer
        prompts = [examples.prompt(int(begin)).tolist() for begin in examples.groups[:-1]]
        sampling = sampling_of(tokenizer, config.max_new_tokens, config.presample_temperature, config.presample_top_p)
        asked = [prompt for prompt in prompts for _ in range(config.presamples)]
        found = self.context.generate("responses of the start", asked, sampling, config.presample_batch_size)
        responses = [found.response(index).tolist() for index in range(len(found))]
        return [Written(tokens, tokens[-1:] == [tokenizer.eos_token_id], []) for tokens in responses]

    def _correct(self, written: Sequence[Written], first: Sequence[int]) -> Tensor:
        """Whether each response earns 1 or more, as the first process finds. Returns bool [N]."""
        example_N = torch.tensor(first).repeat_interleave(self.config.presamples)
        group_N = torch.arange(len(first)).repeat_interleave(self.config.presamples)
        parts_NF, _ = self.graded(written, example_N, group_N, draw_seed(self.context.seed))
        reward_N = weighted_sum(parts_NF, [settings.get("weight", 1.0) for settings in self.config.rewards])
        is_correct_N: Tensor = self.context.gathered(reward_N >= 1)[0]
        return is_correct_N

    def _remember(self, rehearsal: Examples) -> None:
        """Keep responses to solved prompts, with what the start says of their tokens."""
        self._rehearsal = rehearsal if len(rehearsal) else None
        if self._rehearsal is None:
            return
        decides = {"sequences": rehearsal.digest(), "temperature": self.config.temperature}
        made = self.context.cached("log-probabilities of solved prompts", decides, self._measure)
        self._start_logps = list(made["logps"].split((rehearsal.lengths - rehearsal.targets).tolist()))

    def _measure(self) -> dict[str, Tensor]:
        """By the model before training, at the temperature of training."""
        assert self._rehearsal is not None
        model, size, found = self.context.role("policy"), self.config.presample_batch_size, []
        device = next(model.parameters()).device
        with frozen(model):
            for begin in range(0, len(self._rehearsal), size):
                rows = range(begin, min(begin + size, len(self._rehearsal)))
                batch = self._rows(rows).to(device)
                found.append(self.kind.token_logps(model, batch, self.config.temperature).float().cpu())
        return {"logps": torch.cat(found)}

    def _rows(self, rows: Sequence[int]) -> Batch:
        """Some of the responses to solved prompts."""
        assert self._rehearsal is not None
        prompts = [self._rehearsal.prompt(row).tolist() for row in rows]
        return continued(prompts, [self._rehearsal.response(row).tolist() for row in rows], torch.tensor(list(rows)))

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Load the rewards; the first look at the data samples and sorts the prompts (`arrange`)."""
        told = dict(super().prepare(context))
        solved = 0 if self._rehearsal is None else len(self._rehearsal)
        if self._explored is not None:
            self._texts = [self._texts[index] for index in self._explored]
        return {**told, "rehearsal/solved": float(solved), "rehearsal/explored": float(context.examples.group_count)}

    # A turn ----------------------------------------------------------------------------------------------------------

    def rollouts(self, batches: Sequence[Batch], turn: int) -> Sequence[Sequence[Batch]]:
        """Those of GRPO, and in each step its part of the turn's solved prompts, in passes of their own."""
        steps = [list(step) for step in super().rollouts(batches, turn)]
        if self.config.divergence == "js_mixture":
            random = np.random.default_rng(draw_seed(self.context.seed, turn, 5))  # one draw for all processes
            steps = [[self._marked(batch, random.random()) for batch in step] for step in steps]
        if self._rehearsal is None:
            return steps
        rows = next_rows(len(self._rehearsal), self.config.rehearsal_size, turn, self.context.seed)
        units = self.context.gathered([sum(self.count(batch) for batch in step) for step in steps])
        for number, step in enumerate(steps):
            own_units = max(sum(of_process[number] for of_process in units), 1)
            step += self._rehearsed(rows[number % self.config.minibatches :: self.config.minibatches], own_units)
        return steps

    def _marked(self, batch: Batch, draw: float) -> Batch:
        """A pass on explored prompts, with a mark where the divergence to the mixture is to be added to it."""
        if draw >= self.config.mixture_share:
            return batch
        return replace(batch, values_S={**batch.values_S, "to_mixture": torch.ones_like(batch.example_S)})

    def _rehearsed(self, rows: Sequence[int], units: int) -> list[Batch]:
        """This process's passes on some solved prompts of a step; equally many in every process.

        units: what the whole step is divided by, and what the mean over these tokens is multiplied with before.
        """
        if not rows:
            return []
        device = next(self.context.role("policy").parameters()).device
        rank, world = self.context.rank, len(self.context.gathered(0))
        most = self.config.responses_per_pass or self._prompts_per_pass * self.config.group_size
        own = rows[rank::world]
        passes = math.ceil(len(rows[::world]) / most)  # of the first process, which has the most
        tokens = sum(len(self._start_logps[row]) for row in rows)
        cuts = [len(own) * number // passes for number in range(passes + 1)]
        found = []
        for begin, end in pairwise(cuts):
            # Without a row of its own, another one without targets: a pass that others wait for.
            batch = self._rows(own[begin:end] or rows[:1])
            if begin == end:
                batch = replace(batch, target_mask_BT=torch.zeros_like(batch.target_mask_BT))
            start_K = torch.cat([self._start_logps[row] for row in own[begin:end]] or [torch.zeros(0)])
            scale_K = torch.full_like(start_K, self.config.coefficient * units / max(tokens, 1))
            found.append(replace(batch, values_K={"start_logps": start_K, "scale": scale_K}).to(device))
        return found

    # The loss --------------------------------------------------------------------------------------------------------

    def count(self, batch: Batch) -> int:
        """Units of GRPO's; solved prompts bring none, as their term is scaled by those of the others."""
        return 0 if "start_logps" in batch.values_K else super().count(batch)

    def loss(self, forward: Forward) -> Loss:
        """GRPO's on explored prompts, the divergence to the start on solved ones."""
        if "start_logps" in forward.batch.values_K:
            return self._divergence(forward)
        loss = super().loss(forward)
        return self._with_mixture(forward, loss) if "to_mixture" in forward.batch.values_S else loss

    def _divergence(self, forward: Forward) -> Loss:
        config, batch = self.config, forward.batch
        logps_K = forward.token_logps("policy", config.temperature)
        if not batch.target_count:
            return Loss(logps_K.sum() * 0.0)
        start_K = batch.values_K["start_logps"]
        losses_K = rehearsal_losses(logps_K, start_K, config.divergence, config.alpha)
        tokens = logps_K.new_tensor(float(len(logps_K)))
        means = {
            "rehearsal": (losses_K.sum(), tokens),
            "rehearsal_log_ratio": ((logps_K - start_K).sum(), tokens),
        }
        return Loss((losses_K * batch.values_K["scale"]).sum(), means=means)

    def _with_mixture(self, forward: Forward, loss: Loss) -> Loss:
        """With k3 of KL(policy || M) on the policy's own responses."""
        config, batch = self.config, forward.batch
        with frozen(forward.roles["reference"]):
            reference_K = forward.token_logps("reference", config.temperature)
        if not batch.target_count:
            return loss
        logps_K, weight_K = forward.token_logps("policy", config.temperature), batch.values_K["weight"]
        losses_K = kl_estimates(logps_K, log_mixture(logps_K, reference_K), "k3")
        added = aggregated(losses_K, weight_K, batch, config.aggregation, config.max_new_tokens)
        means = {**loss.means, "to_mixture": ((losses_K * weight_K).sum(), weight_K.sum())}
        return replace(loss, sum=loss.sum + config.coefficient * added, means=means)
