"""A policy over the actions that an environment allows, each of them a text.

In a state s (a prompt and the actions taken so far) an environment allows some actions a; of these the policy is

    P_F(a | s) = softmax over the allowed a of log pi(a | s),   log pi the sum over an action's tokens

and a trajectory, which ends where nothing is allowed, has log P_F(tau) = sum_t log P_F(a_t | s_t).

Actions are tokenised one by one; the last of a trajectory may have EOS behind it.

Legend: S actions of several states, A actions of one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

Steps = tuple[int, ...]  # a state or trajectory, as the places of its actions among those that were allowed
Environment = Callable[[str, list[str]], list[str]]  # from a prompt and the actions taken to those allowed


def action_logps(scores_S: Tensor, state_S: Tensor) -> Tensor:
    """log P_F of each action, softmax over those of its state. Returns [S].

    Args:
        scores_S: log-probability of each action's text.
        state_S: long, from 0 on, whose actions belong together.
    """
    states = int(state_S.max()) + 1 if len(state_S) else 0
    most = scores_S.new_full((states,), -torch.inf).scatter_reduce(0, state_S, scores_S.detach(), "amax")
    total = scores_S.new_zeros(states).index_add(0, state_S, (scores_S - most[state_S]).exp())
    return scores_S - (most + total.log())[state_S]


def drawn(scores_A: Tensor, temperature: float, epsilon: float, random: np.random.Generator) -> int:
    """The place of an action: with probability epsilon any, else by softmax(scores / temperature); 0: the likeliest."""
    is_any, at = random.random() < epsilon, random.random()
    if temperature == 0 and not is_any:
        return int(scores_A.argmax())
    chances_A = torch.full_like(scores_A, 1 / len(scores_A)) if is_any else (scores_A / temperature).softmax(0)
    place = torch.searchsorted(chances_A.cumsum(0), torch.tensor(at, dtype=chances_A.dtype), right=True)
    return min(int(place), len(scores_A) - 1)


def tokeniser(tokenizer: Any, told: str = "") -> Callable[[str], list[int]]:
    """From an action to its tokens, which are noted. An empty action is a ValueError, which begins with `told`."""

    @lru_cache(maxsize=1 << 14)
    def tokenised(text: str) -> list[int]:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not found:
            raise ValueError(f"{told}an action must not be empty")
        return list(found)

    return tokenised


@dataclass(kw_only=True)
class Tree:
    """The states of one problem: what its environment allows, and what a model says of it, state by state.

    example: its place in the data set. text, ids: the prompt. tokenised: from an action to its tokens. eos: what
    follows the last action; None: nothing. max_steps: actions of a trajectory at most. scores: log-probabilities of the
    actions of a state, float64 [A].
    """

    example: int
    text: str
    ids: list[int]
    environment: Environment
    tokenised: Callable[[str], list[int]]
    eos: int | None
    max_steps: int
    scores: dict[Steps, Tensor] = field(default_factory=dict)
    allowed: dict[Steps, list[str]] = field(default_factory=dict)

    def actions(self, state: Steps) -> list[str]:
        """Those allowed; none where a trajectory is at its end."""
        if state not in self.allowed:
            over = len(state) >= self.max_steps
            self.allowed[state] = [] if over else list(self.environment(self.text, self.taken(state)))
        return self.allowed[state]

    def taken(self, state: Steps) -> list[str]:
        """The texts of the actions that lead to a state."""
        return [self.actions(state[:at])[place] for at, place in enumerate(state)]

    def row(self, state: Steps, place: int) -> tuple[list[int], list[int]]:
        """Token ids of a state and of an action in it."""
        following = (*state, place)
        *before, action = [self.tokenised(text) for text in self.taken(following)]
        is_end = self.eos is not None and not self.actions(following)
        ids = [*self.ids, *(token for step in before for token in step)]
        return ids, [*action, self.eos] if is_end else action  # type: ignore[list-item]


Row = tuple[Tree, Steps, int]  # an action in its state


def score(wanted: Sequence[tuple[Tree, Steps]], sums: Callable[[Sequence[Row]], Sequence[float]]) -> None:
    """Note what a model says of the actions of some states, where it is not known.

    Args:
        wanted: states with their trees.
        sums: from actions in their states to the log-probabilities of their texts; called once.
    """
    missing = {(id(tree), state): tree for tree, state in wanted if state not in tree.scores}
    rows = [(tree, state, place) for (_, state), tree in missing.items() for place in range(len(tree.actions(state)))]
    told = iter(sums(rows))
    for (_, state), tree in missing.items():
        tree.scores[state] = torch.tensor([next(told) for _ in tree.actions(state)], dtype=torch.float64)


def explored(
    starts: Sequence[tuple[Tree, Steps]],
    sums: Callable[[Sequence[Row]], Sequence[float]],
    choose: Callable[[int, Tensor], int],
    is_over: Callable[[bool], bool] = bool,
) -> list[Steps]:
    """A trajectory from each state on.

    Args:
        starts: states with their trees.
        sums: as of `score`.
        choose: from the place of a start and the scores of what is allowed, [A], to the place of an action.
        is_over: from whether all own trajectories have ended to whether those of all processes have.
    """
    states = [state for _, state in starts]
    while True:
        going = [place for place, (tree, _) in enumerate(starts) if tree.actions(states[place])]
        if is_over(not going):
            return states
        score([(starts[place][0], states[place]) for place in going], sums)
        for place in going:
            states[place] = (*states[place], choose(place, starts[place][0].scores[states[place]]))
