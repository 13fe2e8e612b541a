"""Murphy: GRPO on a tree of attempts that answer feedback, with rewards carried back to earlier turns.

Ekbote, Lingam, Omidvar-Tehrani, Huan, Sanghavi, Deoras, Soatto: "Murphy: Multi-Turn GRPO for Self-Correcting Code
Generation", 2025, arXiv 2511.07833.

    1   G responses to the problem; each is run, which gives a reward r in [0, 1] and feedback
    2   of every response that is not solved (r < 1): problem, attempt and feedback are a prompt, answered G times;
        again until turn S. A prompt with its G responses is a group
    3   rewards are carried back, from the last turn to the first (c(y): responses to the feedback on y; leaves keep r):
            max     R(y) = max(r(y), gamma max_c R(c))                              MaRS
            mean    R(y) = (r(y) + gamma mean_c R(c)) / (S - s + 1)                 MeRS, s the turn of y
            none    R(y) = r(y)
    4   advantages in every group, of R; then pruning, which saves the update and no sampling:
            inter   of a problem's groups behind feedback, the `budget` with the largest std of R
            intra   of every group, the `budget` responses that make the variance of R largest
    5   GRPO's loss on every response that is left

With one turn, or where all is solved at once, it is GRPO.

What is known of the paper: tree, pruning after the rollouts and both rules of credit; the formulas of the rules and of
pruning are those of independent re-implementations that agree on max, and on a gamma and the divisor of mean. Ours, or
a guess: gamma (1 for max; they have 0.9), S, G and budget, that R and not r decides what is pruned (`prune_by`), that
advantages are of the whole group before pruning (`statistics`), that the next prompt has the last attempt alone
(`history`), the wording of the feedback, and a mean over responses, not first over groups. `expand` bounds how many
attempts of a problem are continued at all, as one re-implementation does before the rollouts.

Legend: N responses, G groups.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from methods.batch import Batch
from methods.generation import most_tokens
from methods.method import Context
from methods.rl.advantages import group_stds, normalised
from methods.rl.episodes import Episodes
from methods.rl.grpo import Grpo, GrpoConfig
from methods.rl.turns import Attempt, Dialogue, check_template
from methods.writing import draw_seed


@dataclass(frozen=True, kw_only=True)
class MurphyConfig(GrpoConfig):
    """turns: S. credit, gamma: how rewards are carried back. normalise: mean's divisor.

    prune, budget, prune_by, statistics: which responses are trained on, see the module. expand: attempts of a problem
    that are continued in each turn, at most; null: all that are not solved.
    feedback_template: of the next prompt, see `methods.rl.turns.Dialogue`. history: last | chain.
    max_feedback: characters of feedback; what is longer is cut.
    """

    max_new_tokens: PositiveInt = 2048
    turns: PositiveInt = 2
    credit: Literal["max", "mean", "none"] = "max"
    gamma: NonNegativeFloat = 1.0
    normalise: bool = True
    prune: Literal["none", "inter", "intra"] = "none"
    budget: PositiveInt = 4
    prune_by: Literal["propagated", "reward"] = "propagated"
    statistics: Literal["full", "kept"] = "full"
    expand: Annotated[int, Ge(1)] | None = None
    feedback_template: str = "{prompt}{attempt}\n{feedback}\n"
    history: Literal["last", "chain"] = "last"
    max_feedback: PositiveInt = 1500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dynamic_sampling:
            raise ValueError(f"method.dynamic_sampling={self.dynamic_sampling}: must be 0 for a tree")
        if self.baseline not in ("group", "leave_one_out"):
            raise ValueError(f"method.baseline={self.baseline}: must be group or leave_one_out, as groups have parents")


def carried_back(
    reward_N: Tensor,
    parent_N: Tensor,
    turn_N: Tensor,
    turns: int,
    credit: Literal["max", "mean", "none"] = "max",
    gamma: float = 1.0,
    normalise: bool = True,
) -> Tensor:
    """Rewards with those of later turns in them. Returns [N]. A reward that is NaN counts as 0 for its parent.

    Args:
        parent_N: place of the response that each answers feedback on; -1: none.
        turn_N: from 0.
    """
    carried_N = reward_N.clone()
    if credit == "none":
        return carried_N
    for turn in range(int(turn_N.max()) if len(turn_N) else 0, 0, -1):
        children = (turn_N == turn).nonzero().squeeze(-1)
        parents_C, value_C = parent_N[children], carried_N[children].nan_to_num(0.0)
        expanded = parents_C.unique()
        if credit == "max":
            best_N = carried_N.new_full(carried_N.shape, -torch.inf).scatter_reduce(0, parents_C, value_C, "amax")
            carried_N[expanded] = torch.maximum(carried_N[expanded].nan_to_num(0.0), gamma * best_N[expanded])
        else:
            sum_N = torch.zeros_like(carried_N).index_add(0, parents_C, value_C)
            mean_N = sum_N / parents_C.bincount(minlength=len(carried_N)).clamp_min(1)
            total_P = carried_N[expanded].nan_to_num(0.0) + gamma * mean_N[expanded]
            carried_N[expanded] = total_P / (turns - turn + 1) if normalise else total_P
    return carried_N


def between_groups(std_G: Tensor, budget: int) -> list[int]:
    """The groups with the largest standard deviation, of equal ones the first; in their order."""
    order = sorted(range(len(std_G)), key=lambda place: -float(std_G[place]))
    return sorted(order[:budget])


def inside_group(values_N: Tensor, budget: int) -> list[int]:
    """The responses that make the variance largest: the lowest half of the budget and the highest; in their order."""
    if budget >= len(values_N):
        return list(range(len(values_N)))
    order = values_N.nan_to_num(0.0).argsort(stable=True).tolist()
    low = budget // 2
    return sorted(order[:low] + order[len(order) - (budget - low) :])


class Murphy(Grpo):
    """Murphy: GRPO on a tree of attempts that answer feedback, rewards carried back (arXiv 2511.07833)."""

    config: MurphyConfig

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Also how the next prompt is written.

        Raises:
            ValueError: the template has other fields than it should have.
        """
        chat = bool(context.config["dataset"]["chat"]) or context.config["dataset"]["layout"] == "messages"
        check_template(self.config.feedback_template, chat, "method.feedback_template")
        self._dialogue = Dialogue(template=self.config.feedback_template, chat=chat, history=self.config.history)
        self._longest = most_tokens(context.role("policy"))
        return super().prepare(context)

    def episodes(self, batches: Sequence[Batch], turn: int) -> Episodes:
        """The tree of each problem. In every process as many passes of writing."""
        tree = super().episodes(batches, turn)
        attempts: list[list[Attempt]] = [[] for _ in range(len(tree))]  # before each response
        for depth in range(1, self.config.turns):
            places = self._to_continue(tree, depth - 1)
            prompts, parents = [], []
            before = []
            for place in places:
                own = [*attempts[place], self._attempt(tree, place)]
                prompt = self._dialogue.prompt(self.context.tokenizer, self._texts[int(tree.example_N[place])][0], own)
                if self._longest is None or len(prompt) + self.config.max_new_tokens <= self._longest:
                    prompts.append(prompt)
                    parents.append(place)
                    before.append(own)
            tree = self._grown(tree, prompts, parents, depth, turn)
            attempts += [own for own in before for _ in range(self.config.group_size)]
        return tree

    def _to_continue(self, tree: Episodes, depth: int) -> list[int]:
        """The responses of a turn that are not solved, of each problem at most `expand`, the first ones."""
        unsolved = ((tree.turn_N == depth) & ~(tree.reward_N >= 1)).nonzero().squeeze(-1).tolist()
        if self.config.expand is None:
            return unsolved
        taken: dict[int, int] = {}
        kept = []
        for place in unsolved:
            root = self._root(tree, place)
            taken[root] = taken.get(root, 0) + 1
            if taken[root] <= self.config.expand:
                kept.append(place)
        return kept

    @staticmethod
    def _root(tree: Episodes, place: int) -> int:
        """The group of the first turn that a response stems from."""
        while int(tree.parent_N[place]) >= 0:
            place = int(tree.parent_N[place])
        return int(tree.group_N[place])

    def _attempt(self, tree: Episodes, place: int) -> Attempt:
        text = self.context.tokenizer.decode(tree.written[place].tokens, skip_special_tokens=True)
        return Attempt(text, tree.feedback[place][: self.config.max_feedback])

    def _grown(self, tree: Episodes, prompts: list[list[int]], parents: list[int], depth: int, turn: int) -> Episodes:
        """The tree with the responses to some prompts; written a pass at a time, in all processes equally many."""
        size = self._prompts_per_pass
        passes = max(self.context.gathered(math.ceil(len(prompts) / size)))
        for number in range(passes):
            some = slice(number * size, (number + 1) * size)
            own, of = prompts[some], parents[some]
            seed = draw_seed(self.context.seed, turn, 1 + depth, number, *tree.example_N[of].tolist())
            if not own:  # company for processes that have more
                self.write([self.context.examples.prompt(0).tolist()], seed)
                continue
            grown = self.answered(own, tree.example_N[of].tolist(), seed, of, depth)
            tree = _appended(tree, grown)
        return tree

    def returns(self, episodes: Episodes) -> Tensor:
        """Rewards, those of later turns carried back; less the KL, where it is in the reward."""
        config = self.config
        own_N = super().returns(episodes)
        return carried_back(
            own_N, episodes.parent_N, episodes.turn_N, config.turns, config.credit, config.gamma, config.normalise
        )

    def advantages(self, episodes: Episodes) -> Tensor:
        """In every group, of all its responses or of those that are kept."""
        advantage_N = super().advantages(episodes)
        if self.config.statistics == "full" or self.config.prune != "intra":
            return advantage_N
        kept = self._kept(episodes)
        config, returns_N = self.config, self.returns(episodes)
        again_N = normalised(
            returns_N[kept], episodes.group_N[kept], config.baseline, config.scale, config.epsilon, config.scale_of
        )
        return advantage_N.index_copy(0, torch.tensor(kept, dtype=torch.long), again_N)

    def keep(self, episodes: Episodes, advantages: list[Tensor]) -> list[int]:
        """What pruning leaves."""
        return self._kept(episodes)

    def _kept(self, episodes: Episodes) -> list[int]:
        config = self.config
        if config.prune == "none":
            return list(range(len(episodes)))
        value_N = episodes.reward_N if config.prune_by == "reward" else self.returns(episodes)
        members: dict[int, list[int]] = {}
        for place, group in enumerate(episodes.group_N.tolist()):
            members.setdefault(group, []).append(place)
        if config.prune == "intra":
            inside = [[own[at] for at in inside_group(value_N[own], config.budget)] for own in members.values()]
            return sorted(place for own in inside for place in own)
        std_N = group_stds(value_N, episodes.group_N)
        behind: dict[int, list[int]] = {}  # of each problem, its groups behind feedback
        kept = []
        for group, own in members.items():
            if int(episodes.parent_N[own[0]]) < 0:
                kept += own
            else:
                behind.setdefault(self._root(episodes, own[0]), []).append(group)
        for groups in behind.values():
            std_G = torch.stack([std_N[members[group][0]] for group in groups])
            kept += [place for at in between_groups(std_G, config.budget) for place in members[groups[at]]]
        return sorted(kept)


def _appended(tree: Episodes, grown: Episodes) -> Episodes:
    """A tree with further responses behind it, whose parents are places in the tree."""
    first = int(tree.group_N.max()) + 1 if len(tree) else 0
    grown = replace(grown, group_N=grown.group_N + first)
    together: dict[str, Any] = {}
    for name, value in vars(tree).items():
        further = getattr(grown, name)
        together[name] = torch.cat([value, further]) if isinstance(value, Tensor) else [*value, *further]
    return Episodes(**together)
