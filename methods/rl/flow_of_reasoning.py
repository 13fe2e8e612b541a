"""FoR: a policy over reasoning steps as a GFlowNet, so that trajectories are sampled in proportion to their reward.

Yu et al.: "Flow of Reasoning: Efficient Training of LLM Policy with Divergent Thinking", arXiv 2406.05673. Of a
trajectory tau, the actions that an environment allows, log P_F is that of `methods/rl/actions.py`: log pi renormalised
over what is allowed in each state. Trajectory balance asks that Z P_F = R^beta P_B:

    trajectory_balance   (log Z + log P_F - beta log R - log P_B)^2          one learned log Z (Game24 in their code)
    log_partition        (x - mean of x)^2,  x = log P_F - beta log R - log P_B     (VarGrad; BlocksWorld in their code)

The mean is over the trajectories of one problem, so that each problem has a Z of its own. log P_B is left out, or
uniform over the actions that are allowed in the state that a step leads to; for the last step, in the one before it
(their code for BlocksWorld). Where states form a tree, as here, the true P_B is 1.

    R = max(success_reward * r, floor) + likelihood             r of the rewards, 1 for success
    likelihood   none
                 steps    likelihood_weight * sum_t -1 / ll_t,   ll_t = log-likelihood of a step under the base model
                 tokens   exp(mean log-likelihood of its tokens)^(1 / likelihood_temperature)

A turn of a problem:

    with probability replay, if its buffer has any: group_size of these (drawn evenly, a guess)
    else group_size trajectories (tempered and eps-greedy), then from the best of them local_search times: keep a prefix
         (of any length, a guess), sample the end anew; what has a higher reward than the best is trained on as well.
         All these go into the buffer.

P_F of what is trained on is always computed with the weights as they are. The loss of a problem is the mean over its
trajectories, that of a step the mean over problems. beta, the temperature and eps go linearly from their first to their
last value over the share `schedule` of the run (of beta it is their code's; of the others a guess). Their released loss
gives the last sample's log P_B to all samples; here each has its own.

The last action of a trajectory has EOS behind it where the data do (`dataset.add_eos`).

Legend: M trajectories of a micro-batch, S its sequences (an action in its state each), K target tokens.
"""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from evals.rewards.load import Grader, Sampled, dotted_function, load_grader
from methods.batch import Batch, continued, sum_by_sequence
from methods.forward import Forward
from methods.generation import most_tokens
from methods.kinds.causal import frozen, without_dropout
from methods.method import Context
from methods.objective import Loss, Objective
from methods.rl.actions import Row, Steps, Tree, action_logps, drawn, explored, tokeniser
from methods.rl.advantages import weighted_sum
from methods.writing import draw_seed, prompt_places

_LEAST_NLL = 1e-2  # of a step, in -1 / ll (ours: a step that the base is sure of would be worth more than success)


@dataclass(frozen=True, kw_only=True)
class FlowOfReasoningConfig:
    """rewards: each {function: module.function, weight, options} or {model: hub id or folder, weight}; see
        `evals.rewards.load`.
    environment: dotted path of a function (prompt, actions taken) -> allowed actions, all of them texts.
    max_steps: actions of a trajectory at most. group_size: trajectories of a problem in a turn.
    rows_per_pass: sequences that are scored at a time.
    objective, backward: which loss, and log P_B. log_z, log_z_lr: where the learned log Z starts, its learning rate.
    success_reward, floor, likelihood, likelihood_weight, likelihood_temperature: of R.
    exponent, exponent_last: beta, at first and at last. schedule: share of the run in which it changes.
    tempered: share of trajectories that are drawn at a temperature, at first `hot`, at last 1.
    epsilon, epsilon_last: probability that a step is any allowed action.
    replay: probability that a turn of a problem takes its trajectories from the buffer. buffer_size: of each problem.
    local_search: ends that are sampled anew.
    """

    rewards: list[dict[str, Any]]
    environment: str
    max_steps: PositiveInt = 8
    group_size: Annotated[int, Ge(2)] = 4
    rows_per_pass: PositiveInt = 256
    objective: Literal["trajectory_balance", "log_partition"] = "log_partition"
    backward: Literal["none", "uniform"] = "uniform"
    log_z: float = 5.0
    log_z_lr: PositiveFloat = 1e-5
    success_reward: PositiveFloat = 100.0
    floor: PositiveFloat = 1e-3
    likelihood: Literal["none", "steps", "tokens"] = "steps"
    likelihood_weight: PositiveFloat = 1.5
    likelihood_temperature: PositiveFloat = 0.7
    exponent: PositiveFloat = 1.0
    exponent_last: PositiveFloat = 2.0
    schedule: Annotated[float, Gt(0.0), Le(1.0)] = 0.5
    tempered: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    hot: Annotated[float, Ge(1.0)] = 4.0
    epsilon: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    epsilon_last: Annotated[float, Ge(0.0), Le(1.0)] = 0.01
    replay: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    buffer_size: NonNegativeInt = 50
    local_search: NonNegativeInt = 16


# The maths ------------------------------------------------------------------------------------------------------------


def backward_logp(allowed: Sequence[int]) -> float:
    """log P_B of a trajectory, uniform over the actions allowed in the state that each step leads to.

    Args:
        allowed: how many actions are allowed in each state that a step is taken in, from the first on. The state after
            the last step has none: the one before it stands for it.
    """
    return -sum(math.log(count) for count in [*allowed[1:], *allowed[-1:]])


def trajectory_reward(score: float, likelihood: float, success: float, floor: float) -> float:
    """R = max(success * score, floor) + likelihood, which is above 0."""
    return max(success * score, floor) + likelihood


def step_likelihood(logps: Sequence[float], weight: float) -> float:
    """weight * sum_t -1 / ll_t of the log-likelihoods of steps, each taken as -0.01 at most (ours)."""
    return weight * sum(1.0 / max(-logp, _LEAST_NLL) for logp in logps)


def token_likelihood(logps: Sequence[float], tokens: Sequence[int], temperature: float) -> float:
    """exp(mean log-likelihood of all tokens)^(1 / temperature), of the sums and token counts of steps."""
    return math.exp(sum(logps) / sum(tokens) / temperature)


def residuals(logps_M: Tensor, log_rewards_M: Tensor, backward_M: Tensor) -> Tensor:
    """x = log P_F - beta log R - log P_B. Returns [M].

    Args:
        logps_M: log P_F of trajectories. log_rewards_M: beta log R. backward_M: log P_B.
    """
    return logps_M - log_rewards_M - backward_M


def trajectory_balance_losses(residual_M: Tensor, log_z: Tensor | float) -> Tensor:
    """(log Z + x)^2. Returns [M]."""
    return (log_z + residual_M).square()


def log_partition_losses(residual_M: Tensor, problem_M: Tensor) -> Tensor:
    """(x - mean of the problem's x)^2; the mean has a gradient, which changes nothing. Returns [M].

    problem_M: long, from 0 on, whose trajectory each is.
    """
    return (residual_M - mean_by_problem(residual_M, problem_M)[problem_M]).square()


def mean_by_problem(values_M: Tensor, problem_M: Tensor) -> Tensor:
    """Means over the trajectories of each problem. Returns [problems]."""
    count = torch.bincount(problem_M)
    return values_M.new_zeros(len(count)).index_add(0, problem_M, values_M) / count


def scheduled(first: float, last: float, progress: float, share: float) -> float:
    """Linear from `first` to `last` over the part `share` of the run, then `last`. progress: from 0 to 1."""
    return first + (last - first) * min(progress / share, 1.0)


# Trajectories ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """A trajectory, its r and its R; NaN of r counts as 0."""

    steps: Steps
    score: float
    reward: float


def kept(buffer: Sequence[Tried], found: Sequence[Tried], size: int) -> list[Tried]:
    """A buffer with further trajectories, each once; of more than `size` the oldest leave (a guess)."""
    together = {one.steps: one for one in [*buffer, *found]}
    return list(together.values())[max(len(together) - size, 0) :]


def _best(found: Sequence[Tried]) -> Tried:
    """That of the highest reward, of equal ones the first."""
    return max(found, key=lambda one: one.reward)


@dataclass(frozen=True, kw_only=True)
class Trajectories(Batch):
    """Every action that is allowed in the states that some trajectories pass through, one a sequence.

    state_S: long, from 0 on. taken_SM: float, 1 where a trajectory takes an action. log_rewards_M: beta log R.
    backward_M: log P_B. problem_M: long, from 0 on. told_M: by name, what is logged.
    """

    state_S: Tensor
    taken_SM: Tensor
    log_rewards_M: Tensor
    backward_M: Tensor
    problem_M: Tensor
    told_M: Mapping[str, Tensor]


class FlowOfReasoning(Objective):
    """FoR: trajectory balance over the steps that an environment allows (arXiv 2406.05673)."""

    config: FlowOfReasoningConfig
    kinds = ("causal",)
    data = ("problem",)
    couples = "micro-batch"
    prompted = True
    units = "groups"
    watched = ("residual",)

    def __init__(self, config: FlowOfReasoningConfig) -> None:
        super().__init__(config)
        if config.likelihood != "none":
            self.frozen = (*self.frozen, "reference")  # type: ignore[misc]
        self._buffers: dict[int, list[Tried]] = {}
        self._found: list[dict[int, list[tuple[Steps, float, float]]]] = []  # in this turn, by all processes
        self._log_z = nn.Parameter(torch.tensor(config.log_z, dtype=torch.float64))
        self._log_z_optimizer = torch.optim.Adam([self._log_z], lr=config.log_z_lr)
        self._told: dict[str, float] = {}

    def shape(self, model: nn.Module) -> None:
        """Without dropout: what a trajectory is drawn from is what is trained."""
        without_dropout(model)

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Load rewards, environment and texts.

        Raises:
            ValueError: one cannot be loaded.
        """
        device = next(context.role("policy").parameters()).device
        self._graders: list[Grader] = [
            load_grader(settings, f"method.rewards[{place}]", device)
            for place, settings in enumerate(self.config.rewards)
        ]
        name = self.config.environment
        self._environment = dotted_function(name, f"method.environment={name}")
        self._texts = context.plain_texts
        self._ids = tokeniser(context.tokenizer, f"method.environment={name}: ")
        return {}

    # A turn -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _turns(self) -> int:
        training = self.context.config["training"]
        steps = training["steps"]
        if steps is None:
            steps = math.ceil(
                training["epochs"] * math.ceil(self.context.examples.group_count / training["batch_size"])
            )
        return int(steps)

    def at(self, first: float, last: float, turn: int) -> float:
        """What goes from `first` to `last`, in a turn."""
        return scheduled(first, last, turn / max(self._turns - 1, 1), self.config.schedule)

    def rollouts(self, batches: Sequence[Batch], turn: int) -> Sequence[Sequence[Batch]]:
        """The trajectories of a turn, with all that is allowed on their way; a batch there for company stays one."""
        began = time.perf_counter()
        self._device = batches[0].input_ids_BT.device
        self._company = replace(batches[0], target_mask_BT=torch.zeros_like(batches[0].target_mask_BT))
        places = [batch.example_S[prompt_places(batch)].tolist() if batch.target_count else [] for batch in batches]
        pieces = [[self._problem(index) for index in own] for own in places]
        problems = [problem for piece in pieces for problem in piece]
        found, is_replayed = self._tried(problems, turn)
        fresh = {
            one.example: [(of.steps, of.score, of.reward) for of in own]
            for one, own, old in zip(problems, found, is_replayed, strict=True)
            if not old
        }
        self._found = self.context.gathered(fresh)
        beta = self.at(self.config.exponent, self.config.exponent_last, turn)
        told = list(zip(problems, found, is_replayed, strict=True))
        ends = np.cumsum([len(piece) for piece in pieces])
        rolled = [
            self._batch(told[end - len(piece) : end], beta) if piece else batch
            for piece, batch, end in zip(pieces, batches, ends, strict=True)
        ]
        self._told = {"exponent": beta, "rollout_seconds": time.perf_counter() - began}
        return [rolled]

    def _problem(self, example: int) -> Tree:
        name = self.config.environment
        problem = Tree(
            example=example,
            text=self._texts[example][0],
            ids=self.context.examples.prompt(example).tolist(),
            environment=self._environment,
            tokenised=self._ids,
            eos=self.context.tokenizer.eos_token_id if self.context.config["dataset"]["add_eos"] else None,
            max_steps=self.config.max_steps,
        )
        if not problem.actions(()):
            raise ValueError(f"method.environment={name}: must allow an action at first, of {problem.text!r} got none")
        return problem

    def _tried(self, problems: Sequence[Tree], turn: int) -> tuple[list[list[Tried]], list[bool]]:
        """The trajectories of each problem, and whether they are of its buffer."""
        config = self.config
        found: list[list[Tried]] = [[] for _ in problems]
        is_replayed = [False] * len(problems)
        starts: list[tuple[Tree, Steps]] = []
        for place, problem in enumerate(problems):
            random = np.random.default_rng(self._seed(turn, 0, problem.example))
            buffer = self._buffers.get(problem.example, [])
            if random.random() < config.replay and buffer:
                order = random.permutation(len(buffer))[: config.group_size]
                found[place], is_replayed[place] = [buffer[at] for at in sorted(order)], True
            else:
                starts += [(problem, ())] * config.group_size
        size = config.group_size
        tried = self._graded(starts, self._explored(starts, turn, 1), turn)
        fresh = [place for place in range(len(problems)) if not is_replayed[place]]
        again: list[tuple[Tree, Steps]] = []
        for number, place in enumerate(fresh):
            found[place] = tried[number * size : (number + 1) * size]
            best = _best(found[place]).steps
            random = np.random.default_rng(self._seed(turn, 2, problems[place].example))
            for _ in range(config.local_search):
                again.append((problems[place], best[: int(random.random() * len(best))]))
        tried = self._graded(again, self._explored(again, turn, 3), turn)
        for number, place in enumerate(fresh):
            own = tried[number * config.local_search : (number + 1) * config.local_search]
            better = [one for one in own if one.reward > _best(found[place]).reward]
            found[place] = [*found[place], *{one.steps: one for one in better}.values()]
        return found, is_replayed

    def _seed(self, turn: int, part: int, *numbers: int) -> int:
        return draw_seed(self.context.seed, turn, part, *numbers)

    def _explored(self, starts: Sequence[tuple[Tree, Steps]], turn: int, part: int) -> list[Steps]:
        """A trajectory from each state on; what is drawn for a problem does not depend on the others."""
        config = self.config
        epsilon = self.at(config.epsilon, config.epsilon_last, turn)
        hot = self.at(config.hot, 1.0, turn)
        numbers: dict[int, int] = {}
        randoms, temperatures = [], []
        for problem, _ in starts:
            number = numbers[problem.example] = numbers.get(problem.example, -1) + 1
            random = np.random.default_rng(self._seed(turn, part, problem.example, number))
            randoms.append(random)
            temperatures.append(hot if random.random() < config.tempered else 1.0)

        def choose(place: int, scores_A: Tensor) -> int:
            return drawn(scores_A, temperatures[place], epsilon, randoms[place])

        def is_over(own: bool) -> bool:
            return all(self.context.gathered(own))

        return explored(starts, lambda rows: self._asked("policy", rows)[0], choose, is_over)

    def _asked(self, role: str, rows: Sequence[Row]) -> tuple[list[float], list[int]]:
        """Log-probabilities of actions under a role's model, without gradient, and their tokens.

        Raises:
            ValueError: a trajectory is longer than the model takes.
        """
        model, size = self.context.role(role), self.config.rows_per_pass
        limit = most_tokens(model)
        passes = max(self.context.gathered(math.ceil(len(rows) / size)))
        sums, counts = [], []
        with frozen(model):
            for begin in range(0, passes * size, size):
                piece = rows[begin : begin + size]
                batch = self._rows(piece, limit) if piece else self._company
                logps_K = self.context.kind.token_logps(model, batch)
                if piece:
                    sums += sum_by_sequence(logps_K.double(), batch).tolist()
                    counts += torch.bincount(batch.sequence_K).tolist()
        return sums, counts

    def _rows(self, rows: Sequence[Row], limit: int | None = None) -> Batch:
        """Actions in their states, as a batch."""
        ids = [tree.row(state, place) for tree, state, place in rows]
        longest = max(len(before) + len(after) for before, after in ids)
        if limit is not None and longest > limit:
            raise ValueError(
                f"method.max_steps={self.config.max_steps}: a trajectory has {longest} tokens, the model takes at most "
                f"{limit}"
            )
        example_S = torch.tensor([problem.example for problem, _, _ in rows])
        return continued([before for before, _ in ids], [after for _, after in ids], example_S).to(self._device)

    # Rewards ----------------------------------------------------------------------------------------------------------

    def _graded(self, starts: Sequence[tuple[Tree, Steps]], found: Sequence[Steps], turn: int) -> list[Tried]:
        """Each trajectory with its rewards. By all processes at once."""
        written = [problem.taken(steps) for (problem, _), steps in zip(starts, found, strict=True)]
        examples = [problem.example for problem, _ in starts]
        score_N = torch.zeros(0)
        if examples:
            sampled = Sampled(
                prompts=[self._texts[example][0] for example in examples],
                responses=["".join(texts) for texts in written],
                answers=[self._texts[example][1] for example in examples],
                tokens=[sum(len(self._ids(text)) for text in texts) for texts in written],
                ended=[True] * len(written),
                groups=examples,
                seed=self._seed(turn, 4, *examples),
            )
            rows = zip(*(grader(sampled) for grader in self._graders), strict=True)
            parts_NF = torch.tensor([[one.score for one in row] for row in rows], dtype=torch.float64)
            weights = [settings.get("weight", 1.0) for settings in self.config.rewards]
            score_N = weighted_sum(parts_NF, weights).nan_to_num(0.0)
        likelihoods = self._likelihoods([problem for problem, _ in starts], found)
        config = self.config
        return [
            Tried(steps, score, trajectory_reward(score, more, config.success_reward, config.floor))
            for steps, score, more in zip(found, score_N.tolist(), likelihoods, strict=True)
        ]

    def _likelihoods(self, problems: Sequence[Tree], found: Sequence[Steps]) -> list[float]:
        """What the base model's likelihood adds to the reward of each trajectory."""
        config = self.config
        if config.likelihood == "none":
            return [0.0] * len(found)
        each = list(zip(problems, found, strict=True))
        rows = [(problem, steps[:at], steps[at]) for problem, steps in each for at in range(len(steps))]
        sums, counts = self._asked("reference", rows)
        ends = np.cumsum([len(steps) for steps in found])
        slices = [slice(end - len(steps), end) for steps, end in zip(found, ends, strict=True)]
        if config.likelihood == "steps":
            return [step_likelihood(sums[own], config.likelihood_weight) for own in slices]
        return [token_likelihood(sums[own], counts[own], config.likelihood_temperature) for own in slices]

    # The loss ---------------------------------------------------------------------------------------------------------

    def _batch(self, told: Sequence[tuple[Tree, Sequence[Tried], bool]], beta: float) -> Batch:
        """The trajectories of some problems, and whether they are of its buffer, as a batch."""
        rows: dict[tuple[int, Steps, int], int] = {}
        states: list[int] = []
        paths: list[list[int]] = []
        backward: list[float] = []
        for number, (problem, own, _) in enumerate(told):
            for one in own:
                before = [one.steps[:at] for at in range(len(one.steps))]
                allowed = [len(problem.actions(state)) for state in before]
                for state, count in zip(before, allowed, strict=True):
                    if (number, state, 0) not in rows:
                        states += [states[-1] + 1 if states else 0] * count
                        rows |= {(number, state, place): len(rows) + place for place in range(count)}
                paths.append([rows[number, state, place] for state, place in zip(before, one.steps, strict=True)])
                backward.append(backward_logp(allowed) if self.config.backward == "uniform" else 0.0)
        each = [(number, one, old) for number, (_, own, old) in enumerate(told) for one in own]
        taken_SM = torch.zeros(len(rows), len(each))
        for place, path in enumerate(paths):
            taken_SM[path, place] = 1.0
        batch = self._rows([(told[number][0], state, place) for number, state, place in rows])
        return Trajectories(
            **vars(batch),
            state_S=torch.tensor(states),
            taken_SM=taken_SM,
            log_rewards_M=beta * torch.tensor([one.reward for _, one, _ in each]).log(),
            backward_M=torch.tensor(backward),
            problem_M=torch.tensor([number for number, _, _ in each]),
            told_M={
                "reward": torch.tensor([one.score for _, one, _ in each]),
                "replayed": torch.tensor([float(old) for _, _, old in each]),
            },
        ).to(self._device)

    def count(self, batch: Batch) -> int:
        """Problems."""
        return int(batch.problem_M[-1]) + 1 if isinstance(batch, Trajectories) else 0

    def loss(self, forward: Forward) -> Loss:
        """Sum over problems of the mean over their trajectories."""
        batch, logps_K = forward.batch, forward.token_logps()
        if not isinstance(batch, Trajectories):  # nothing of its own: passes that others wait for, and no loss
            return Loss(logps_K.sum() * 0.0)
        action_S = action_logps(sum_by_sequence(logps_K, batch), batch.state_S)
        logps_M = batch.taken_SM.T @ action_S
        residual_M = residuals(logps_M, batch.log_rewards_M, batch.backward_M)
        is_learned = self.config.objective == "trajectory_balance"
        if is_learned:
            losses_M = trajectory_balance_losses(residual_M, self._log_z.item())
        else:
            losses_M = log_partition_losses(residual_M, batch.problem_M)
        total = mean_by_problem(losses_M, batch.problem_M).sum()
        seen = residual_M + self._log_z.item() if is_learned else residual_M  # else its mean is -log Z
        problems = torch.tensor(float(self.count(batch)))
        logged = {"residual": seen, "trajectory_logp": logps_M, **batch.told_M}
        means = {
            name: (mean_by_problem(value.detach(), batch.problem_M).sum(), problems) for name, value in logged.items()
        }
        return Loss(total, means=means)

    def check(self, means: Mapping[str, float], where: str) -> None:
        """Note the slope of the loss on log Z, which is the same in all processes."""
        if self.config.objective == "trajectory_balance" and "residual" in means:
            self._log_z.grad = torch.tensor(2 * means["residual"], dtype=torch.float64)

    def report(self) -> Mapping[str, float]:
        """Also log Z, where it is learned."""
        learned = {"log_z": self._log_z.item()} if self.config.objective == "trajectory_balance" else {}
        return {**self._told, **learned}

    # What goes on -----------------------------------------------------------------------------------------------------

    def after_step(self, step: int) -> None:
        """Move log Z; put what the turn found into the buffers."""
        if self._log_z.grad is not None:
            self._log_z_optimizer.step()
            self._log_z.grad = None
        for of_process in self._found:
            for example, found in of_process.items():
                tried = [Tried(*one) for one in found]
                self._buffers[example] = kept(self._buffers.get(example, []), tried, self.config.buffer_size)
        self._found = []

    def state_dict(self) -> dict[str, Any]:
        """Buffers and log Z, the same on each process."""
        return {
            "buffers": {
                example: [(one.steps, one.score, one.reward) for one in buffer]
                for example, buffer in self._buffers.items()
            },
            "log_z": self._log_z.item(),
            "log_z_optimizer": copy.deepcopy(self._log_z_optimizer.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with them."""
        self._buffers = {example: [Tried(*one) for one in buffer] for example, buffer in state["buffers"].items()}
        with torch.no_grad():
            self._log_z.fill_(state["log_z"])
        self._log_z_optimizer.load_state_dict(state["log_z_optimizer"])
