"""Answers made of actions that an environment allows: drawn by what the model in memory says of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from evals.rewards.load import dotted_function
from methods.batch import Batch
from methods.examples import Examples
from methods.kinds import adapter
from methods.rl.actions import Row, Steps, Tree, drawn, explored, tokeniser
from methods.writing import draw_seed
from runners.errors import UserError
from runners.measuring.comparison import sums_over_tokens
from runners.measuring.sampling import Prompt
from runners.start import Tell


@dataclass(frozen=True)
class Trajectory:
    """An answer. tokens: EOS included, where the data have it. entropy: of the actions on the way, nats."""

    text: str
    tokens: list[int]
    entropy: float


class Policy:
    """A model's choice among what is allowed, problem by problem; what it said of a state is asked once."""

    def __init__(
        self, model: nn.Module, kind: str, prompts: Sequence[Prompt], settings: dict[str, Any], key: str, tokenizer: Any
    ) -> None:
        """Args:
            model: whole or sharded. kind: of it.
            prompts: the problems. settings: of one set of problems, whose key is `key`.
            tokenizer: of the model.

        Raises:
            UserError: the environment cannot be loaded.
        """
        self._model, self._kind, self._settings, self._tokenizer = model, adapter(kind), settings, tokenizer
        self._told = f"{key}.environment={settings['environment']}"
        try:
            environment = dotted_function(settings["environment"], self._told)
        except ValueError as error:
            raise UserError(str(error)) from error
        eos = tokenizer.eos_token_id if settings["dataset"]["add_eos"] else None
        tokenised = tokeniser(tokenizer)
        self._trees = [
            Tree(
                example=number,
                text=prompt.text,
                ids=prompt.ids,
                environment=environment,
                tokenised=tokenised,
                eos=eos,
                max_steps=settings["max_steps"],
            )
            for number, prompt in enumerate(prompts)
        ]

    def answers(
        self, of: Sequence[int], temperature: float, seed: int, longest: int, what: str, tell: Tell
    ) -> list[Trajectory]:
        """A trajectory for each, the same on every process.

        Args:
            of: the problem of each.
            temperature: of the policy over actions; 0 takes the likeliest.
            seed: which trajectories.
            longest: tokens that the model takes.
            what: for the progress bar.
            tell: how far one step of all is.

        Raises:
            UserError: the environment fails, allows nothing at first, or leads to more tokens than the model takes.
            Preempted: told to stop.
        """
        randoms = [np.random.default_rng(draw_seed(seed, place)) for place in range(len(of))]
        starts: list[tuple[Tree, Steps]] = [(self._trees[number], ()) for number in of]

        def sums(rows: Sequence[Row]) -> Sequence[float]:
            return self._sums(rows, longest, what, tell)

        try:
            silent = next((tree for tree, _ in starts if not tree.actions(())), None)
            if silent is not None:
                raise ValueError(f"must allow an action at first, of {silent.text!r} got none")
            found = explored(starts, sums, lambda place, scores_A: drawn(scores_A, temperature, 0.0, randoms[place]))
        except ValueError as error:
            raise UserError(f"{self._told}: {error}") from error
        return [
            self._trajectory(tree, steps, temperature or 1.0) for (tree, _), steps in zip(starts, found, strict=True)
        ]

    def _trajectory(self, tree: Tree, steps: Steps, temperature: float) -> Trajectory:
        entropy = 0.0
        for at in range(len(steps)):
            logps_A = (tree.scores[steps[:at]] / temperature).log_softmax(0)
            entropy -= float((logps_A.exp() * logps_A).sum())
        before, last = tree.row(steps[:-1], steps[-1])
        return Trajectory("".join(tree.taken(steps)), [*before[len(tree.ids) :], *last], entropy)

    def _sums(self, rows: Sequence[Row], longest: int, what: str, tell: Tell) -> list[float]:
        """Log-probabilities of actions in their states."""
        if not rows:
            return []
        ids = [tree.row(state, place) for tree, state, place in rows]
        most = max(len(before) + len(action) for before, action in ids)
        if most > longest:
            raise ValueError(f"leads to an answer that ends at {most} tokens, the model takes at most {longest}")

        def values(batch: Batch) -> list[Tensor]:
            return [self._kind.token_logps(self._model, batch)]

        (found_S,) = sums_over_tokens(
            Examples.of([[*before, *action] for before, action in ids], [len(before) for before, _ in ids]),
            values,
            rows=self._settings["batch_size"],
            pad=self._tokenizer.pad_token_id,
            what=what,
            tell=tell,
        )
        if not all(math.isfinite(value) for value in found_S):
            raise ValueError("the model gives an action no finite log-probability")
        return list(map(float, found_S))
