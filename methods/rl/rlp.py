"""RLP: a thought before the next token of ordinary text is worth what it adds to that token's log-probability.

"RLP: Reinforcement as a Pretraining Objective", 2025, arXiv 2510.01265. Of a document x, a position t is drawn, and the
policy writes G thoughts c after x_<t. One network is thought policy and predictor; a slow copy of it, phi, predicts
without a thought. There is no verifier, and any text will do.

    S_pred = log p_theta(x_t | x_<t, c)     S_ema = log p_phi(x_t | x_<t)
    r(c)   = S_pred - S_ema                                                     information gain; no gradient through it
    A_i    = G/(G-1) (r_i - mean r)                                             = r_i - mean of the group's others
    L      = -(1/|c|) sum_u min(rho_u A, clip(rho_u, 1 - low, 1 + high) A)      over the thought's tokens alone
    phi   <- tau phi + (1 - tau) theta                                          after every optimizer step

L is a mean over all thoughts. There is no loss on x_t itself, and no KL. Over x_t ~ p*, the mean of r is the
cross-entropy of phi less that of the predictor with the thought; the mean of S_pred over thoughts is at most the
log-probability of the mixture, log mean_c p(x_t | x_<t, c).

The text before t and `opening` are the prompt; a thought ends with `closing`, which is put behind one that was cut off
before it is scored. `horizon` is the number of observed tokens that are scored, 1 in the paper, their sum otherwise
(ours). Both scores are at temperature 1, whatever the thoughts are drawn at. Positions: the paper says that every one
has a reward; one position of each document, drawn anew in every turn among those that carry loss, is a guess.

Defaults are the paper's but for the clips and delimiters, which are guesses.

Legend: N thoughts of a process, T tokens of a document.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le, MinLen
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from methods.batch import Batch
from methods.examples import Examples
from methods.generation import Sampling, most_tokens
from methods.kinds.causal import frozen
from methods.method import Context
from methods.rl.episodes import Episodes
from methods.rl.grpo import Grpo, GrpoConfig
from methods.rl.likelihood_rewards import thought_of
from methods.rl.scoring import Scoring
from methods.writing import draw_seed, sampling_of


@dataclass(frozen=True, kw_only=True)
class RlpConfig(GrpoConfig):
    """rewards: none; the reward is the information gain.

    group_size, max_new_tokens, temperature: of the thoughts. tau: share of the teacher that stays in a step; 1: it is
    what training started from, 0: the policy as it is. horizon: observed tokens that are scored. max_context: tokens
    before them, the last ones. opening, closing: texts around a thought.
    """

    rewards: None = None  # type: ignore[assignment]
    group_size: Annotated[int, Ge(2)] = 16
    max_new_tokens: PositiveInt = 2048
    temperature: PositiveFloat = 0.7
    baseline: Literal["group", "leave_one_out", "batch", "none"] = "leave_one_out"
    scale: Literal["group", "batch", "none"] = "none"
    tau: Annotated[float, Ge(0.0), Le(1.0)] = 0.999
    horizon: PositiveInt = 1
    max_context: PositiveInt = 2048
    opening: str = "<think>"
    closing: Annotated[str, MinLen(1)] = "</think>"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dynamic_sampling:
            raise ValueError(
                f"method.dynamic_sampling={self.dynamic_sampling}: must be 0; likelihoods differ in every group"
            )
        if self.combine != "sum_then_normalise":
            raise ValueError(f"method.combine={self.combine}: must be sum_then_normalise; there is one reward")


def information_gain(with_thought: Sequence[Tensor], without: Sequence[Tensor]) -> Tensor:
    """What thoughts add to the log-probability of the tokens observed after them, in nats.

    Args:
        with_thought: log-probabilities of those tokens after the context and each thought [N].
        without: the same after the context alone, by the teacher [N].

    Returns:
        float64 [N].
    """
    both = zip(with_thought, without, strict=True)
    gains = [float(own.double().sum() - other.double().sum()) for own, other in both]
    return torch.tensor(gains, dtype=torch.float64)


def drawn_position(first: int, length: int, seed: int) -> int:
    """A position of a document from `first` to its last, each as likely.

    Raises:
        ValueError: there is none.
    """
    if not 0 < first < length:
        raise ValueError(f"first={first}: must be > 0 and below the document's length, which is {length}")
    return first + int(np.random.default_rng(seed).integers(length - first))


class Rlp(Scoring, Grpo):
    """RLP: thoughts rewarded by what they add to the log-probability of the next token of a text (arXiv 2510.01265)."""

    config: RlpConfig
    data = ("completion",)  # type: ignore[assignment]  # text alone, where others take problems too
    prompted = False
    frozen = ("teacher",)
    _restored: Mapping[str, Tensor] | None = None
    _has_moved = False

    # Before training --------------------------------------------------------------------------------------------------

    def prepare(self, context: Context) -> Mapping[str, float]:
        """As of the base; an interrupted run gets its teacher back.

        Raises:
            ValueError: the teacher cannot follow or be kept; see `check_room`.
        """
        stage, tau = context.config["engine"]["zero_stage"], self.config.tau
        if tau < 1 and context.config["engine"].get("precision") == "bf16":
            raise ValueError(
                f"method.tau={tau}: steps of {1 - tau:.3g} of the way are lost in a teacher of bf16; needs "
                "engine.precision fp32 or bf16_autocast"
            )
        if tau < 1 and stage == 3:
            raise ValueError(
                f"method.tau={tau}: the teacher goes into the checkpoint whole, which needs engine.zero_stage 0, 1 or "
                f"2, got {stage}"
            )
        if tau < 1 and context.config["adapter"].get("_target_") is not None:
            raise ValueError(f"method.tau={tau}: the teacher follows the weights themselves, which an adapter leaves")
        found = super().prepare(context)
        if self._restored is not None:
            context.role("teacher").load_state_dict(self._restored)
            self._restored, self._has_moved = None, True
        return found

    def load_rewards(self, context: Context) -> None:
        """There are none."""
        self._graders = []

    def check_room(self, context: Context) -> None:
        """Every document has a token to predict; the longest context, a thought and what is scored fit into the model.

        Raises:
            ValueError: they do not.
        """
        config, examples = self.config, context.examples
        self._opening, self._closing = (
            list(context.tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in (config.opening, config.closing)
        )
        empty = (examples.targets >= examples.lengths).nonzero()[0]
        if len(empty):
            raise ValueError(f"dataset.completion: example {empty[0]} has no token that carries loss to be predicted")
        before = min(int(examples.lengths.max()) - 1, config.max_context)
        needed = before + len(self._opening) + config.max_new_tokens + len(self._closing) + config.horizon
        limit = most_tokens(context.role("policy"))
        if limit is not None and needed > limit:
            raise ValueError(
                f"method.max_new_tokens={config.max_new_tokens}: with the longest context (method.max_context), the "
                f"delimiters and what is scored that is {needed} tokens, the model takes at most {limit}"
            )

    @cached_property
    def sampling(self) -> Sampling:
        """How thoughts are drawn: up to `closing`."""
        config = self.config
        stop = [config.closing, *(config.stop or ())]
        return sampling_of(self.context.tokenizer, config.max_new_tokens, config.temperature, config.top_p, stop)

    # Episodes ---------------------------------------------------------------------------------------------------------

    def observed(self, examples: Examples, index: int) -> tuple[list[int], list[int]]:
        """What stands before the turn's position in a document, and what is scored there. Token ids."""
        tokens_T: NDArray[np.int32] = examples.sequence(index)
        seed = draw_seed(self.context.seed, self.turn, index)
        at = drawn_position(int(examples.targets[index]), len(tokens_T), seed)
        context_T = tokens_T[max(at - self.config.max_context, 0) : at]
        return context_T.tolist(), tokens_T[at : at + self.config.horizon].tolist()

    def episodes(self, batches: Sequence[Batch], turn: int) -> Episodes:
        """Thoughts at a position of each document, which count with their information gain."""
        self.turn = turn
        episodes = super().episodes(batches, turn)
        examples = self.context.examples
        seen = {index: self.observed(examples, index) for index in set(episodes.example_N.tolist())}
        contexts, observed = ([seen[index][part] for index in episodes.example_N.tolist()] for part in (0, 1))
        decode, eos = self.context.tokenizer.decode, self.context.tokenizer.eos_token_id
        thoughts = [
            thought_of(
                one.tokens,
                eos,
                self.config.closing,
                self._closing,
                lambda ids: decode(ids, skip_special_tokens=True),
            )
            for one in episodes.written
        ]
        prompts = [[*prompt, *thought.tokens] for prompt, thought in zip(episodes.prompts, thoughts, strict=True)]
        self._predicted = self.asked("policy", episodes, prompts=prompts, continuations=observed)
        # The teacher sees no thought: once for each group.
        firsts = range(0, len(episodes), self.config.group_size)
        taught = self.asked("teacher", episodes, firsts, prompts=contexts, continuations=observed)
        self._taught = [taught[place // self.config.group_size] for place in range(len(episodes))]
        self._closed_N = torch.tensor([float(thought.formed) for thought in thoughts])
        return replace(episodes, reward_N=information_gain(self._predicted, self._taught))

    def answered(
        self,
        prompts: Sequence[list[int]],
        examples: Sequence[int],
        seed: int,
        parents: Sequence[int] | None = None,
        at: int = 0,
    ) -> Episodes:
        """`group_size` thoughts at the turn's position of each document, without a reward yet.

        Args:
            prompts: of the data set, which are not looked at.
            examples: the documents.
            seed: of the draw.
            parents, at: as there are no further turns, left as they are.
        """
        size = self.config.group_size
        asked = [[*self.observed(self.context.examples, index)[0], *self._opening] for index in examples]
        written = self.write(asked, seed)
        self._tokens_of_turn += sum(len(one.tokens) for one in written)
        return Episodes(
            prompts=[list(prompt) for prompt in asked for _ in range(size)],
            written=written,
            example_N=torch.tensor(list(examples)).repeat_interleave(size),
            group_N=torch.arange(len(asked)).repeat_interleave(size),
            reward_N=torch.full((len(written),), torch.nan, dtype=torch.float64),
            parts_NF=torch.zeros(len(written), 0, dtype=torch.float64),
            feedback=[""] * len(written),
            parent_N=torch.full((len(written),), -1),
            turn_N=torch.full((len(written),), at),
        )

    def _scored(self, role: str, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Tokens of the data, whose batches say nothing of a reward, at temperature 1; thoughts at their own."""
        if batch.values_S:
            return super()._scored(role, batch)
        model = self.context.role(role)
        with frozen(model):
            return self.kind.token_logps(model, batch, 1.0), None

    def _batch(self, episodes: Episodes, places: Sequence[int], told: Mapping[str, list[Tensor]]) -> Batch:
        """With what was predicted after each thought, and without."""
        batch = super()._batch(episodes, places, told)
        device = batch.input_ids_BT.device
        more = {
            "predicted": torch.stack([self._predicted[place].sum() for place in places]),
            "taught": torch.stack([self._taught[place].sum() for place in places]),
            "observed": torch.tensor([float(len(self._taught[place])) for place in places]),
            "closed": self._closed_N[list(places)],
        }
        return replace(batch, values_S={**batch.values_S, **{name: value.to(device) for name, value in more.items()}})

    def _seen(self, logps_K: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Also the loss on observed tokens with a thought and, by the teacher, without; and how many are closed."""
        values = batch.values_S
        tokens, count = values["observed"].sum(), values["closed"].new_tensor(float(len(values["closed"])))
        return {
            **super()._seen(logps_K, batch),
            "nll_with_thought": (-values["predicted"].sum(), tokens),
            "nll_without_thought": (-values["taught"].sum(), tokens),
            "closed": (values["closed"].sum(), count),
        }

    # The teacher ------------------------------------------------------------------------------------------------------

    def after_step(self, step: int) -> None:
        """Let the teacher follow the policy."""
        super().after_step(step)
        if self.config.tau < 1:
            self.context.follow("teacher", "policy", 1 - self.config.tau)
            self._has_moved = True

    def state_dict(self) -> dict[str, Any]:
        """Also the teacher, once it is no longer what training started from; whole on each process."""
        if not self._has_moved:
            return super().state_dict()
        teacher = self.context.role("teacher").state_dict()
        return {**super().state_dict(), "teacher": {name: value.cpu() for name, value in teacher.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the teacher until its model is there."""
        super().load_state_dict(state)
        self._restored = state.get("teacher")
