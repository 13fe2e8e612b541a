"""What preference methods have in common: log-probabilities of responses under the policy and its reference.

A method's maths is a function of sums over tokens, one number for each response:

    W, L    log pi(y_w | x), log pi(y_l | x)        chosen and rejected response, under the policy
    Wr, Lr  the same under the reference            frozen: what training starts from, unless the run names another
    n_w, n_l                                        tokens of the responses, EOS included

`Paired` is the base of methods on pairs: a subclass gives the loss of each pair (`losses`), and nothing else has to be
known. Methods on other data are subclasses of `Preference`, and see all responses of a micro-batch (`Responses`).

The reference's log-probabilities are computed once, before training, and cached by model and data (`reference:
cached`); with `live` the reference is kept in memory and asked at every step, as methods that write their own
responses must. A method without a reference (`referenced = False`) loads none.

Legend: K target tokens of a micro-batch, S responses, P pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from methods.batch import Batch, sum_by_sequence
from methods.forward import Forward
from methods.kinds.causal import frozen, without_dropout
from methods.method import Context
from methods.objective import Loss, Objective
from methods.reference import CachedReference


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """reference: `cached` log-probabilities, computed once, or the `live` model."""

    reference: Literal["cached", "live"] = "cached"


@dataclass(frozen=True, kw_only=True)
class ReferenceFreeConfig:
    """Of the methods without a reference (`referenced = False`): nothing to choose."""

    reference: ClassVar[Literal["cached"]] = "cached"


@dataclass(frozen=True, kw_only=True)
class BetaConfig(PreferenceConfig):
    """beta: scale of the log-ratio of policy to reference; large stays near the reference."""

    beta: PositiveFloat = 0.1


@dataclass(frozen=True)
class Side:
    """Responses of one kind, one for each of P prompts (all fp32).

    logps: log pi(y | x) [P]. reference: log ref(y | x) [P]; 0 where there is no reference. tokens: their number [P].
    """

    logps: Tensor
    reference: Tensor
    tokens: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """log pi(y | x) - log ref(y | x). Returns [P]."""
        return self.logps - self.reference

    @property
    def mean_logps(self) -> Tensor:
        """log pi(y | x) per token. Returns [P]."""
        return self.logps / self.tokens

    @property
    def mean_log_ratio(self) -> Tensor:
        """The log-ratio per token. Returns [P]."""
        return self.log_ratio / self.tokens


@dataclass(frozen=True)
class Responses:
    """All responses of a micro-batch, in groups of one prompt each.

    forward: the models' view of them. reference_K: log-probabilities of the target tokens under the reference (0
    without one). weights_K: weight of each token in its sequence's sums; None: 1.
    """

    forward: Forward
    reference_K: Tensor
    weights_K: Tensor | None = None

    @property
    def batch(self) -> Batch:
        return self.forward.batch

    @cached_property
    def logps_K(self) -> Tensor:
        """Log-probabilities of the target tokens under the policy. Returns [K]."""
        return self.forward.token_logps("policy")

    def sums(self, values_K: Tensor) -> Tensor:
        """Sum over the tokens of each response, by their weights. Returns [S]."""
        weighted_K = values_K if self.weights_K is None else self.weights_K * values_K
        return sum_by_sequence(weighted_K, self.batch)

    @cached_property
    def all(self) -> Side:
        """Every response, in order. Its fields are [S]."""
        tokens_S = torch.bincount(self.batch.sequence_K, minlength=len(self.batch.example_S))
        return Side(self.sums(self.logps_K), self.sums(self.reference_K), tokens_S.to(self.logps_K.dtype))

    def where(self, mask_S: Tensor) -> Side:
        """Some of the responses, in order."""
        everything = self.all
        return Side(everything.logps[mask_S], everything.reference[mask_S], everything.tokens[mask_S])


class Preference(Objective):
    """Base of all preference methods: W, L and what they are under the reference."""

    config: PreferenceConfig | ReferenceFreeConfig
    kinds = ("causal",)
    units = "groups"
    referenced: ClassVar[bool] = True  # its formula has a reference in it
    cached: CachedReference | None = None

    def __init__(self, config: PreferenceConfig | ReferenceFreeConfig) -> None:
        super().__init__(config)
        if config.reference == "live" and self.referenced and "reference" not in self.frozen:
            self.frozen = (*self.frozen, "reference")  # type: ignore[misc]

    def shape(self, model: nn.Module) -> None:
        """Without dropout, as the reference: at the start all log-ratios are 0 (an adapter's own dropout stays)."""
        without_dropout(model)

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Measure the data set under the reference, unless it is live.

        Raises:
            ValueError: a log-probability is not finite; names the first such response.
        """
        if self.referenced and "reference" not in self.frozen:
            self.cached = CachedReference.measured(context, self.kind)
        return {}

    def responses(self, forward: Forward) -> Responses:
        """What the method sees of a micro-batch."""
        return Responses(forward, self._reference(forward))

    def _reference(self, forward: Forward) -> Tensor:
        """Log-probabilities of the target tokens under the reference. Returns [K]; zeros without one."""
        batch = forward.batch
        if not self.referenced:
            return torch.zeros(batch.target_count, device=batch.input_ids_BT.device)
        if "reference" in self.frozen:
            with frozen(forward.roles["reference"]):
                return forward.token_logps("reference")
        assert self.cached is not None, "prepare comes first"
        return self.cached.token_logps(batch)

    def count(self, batch: Batch) -> int:
        """Units of the loss: groups of responses (a pair is one); none in a batch that is there for company."""
        return batch.group_count if batch.target_count else 0

    def loss(self, forward: Forward) -> Loss:
        """Sum over the groups of a micro-batch."""
        if not forward.batch.target_count:  # nothing of its own: passes that others wait for, and no loss
            self._reference(forward)
            return Loss(forward.token_logps("policy").sum() * 0.0)
        return self.loss_of(self.responses(forward))

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the groups of a micro-batch that has some."""
        raise NotImplementedError(f"{type(self).__name__} must implement loss_of")


class Paired(Preference):
    """Base of the methods on pairs: a function of W, L, Wr, Lr, n_w and n_l."""

    data = ("pair",)

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the pairs."""
        chosen, rejected = pairs(responses)
        losses_P = self.losses(chosen, rejected)
        return Loss(losses_P.sum(), self.metrics(chosen, rejected))

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        raise NotImplementedError(f"{type(self).__name__} must implement losses")

    def rewards(self, side: Side) -> Tensor:
        """The implicit reward of each response, for the log: beta times the log-ratio. Returns [P]."""
        return getattr(self.config, "beta", 1.0) * side.log_ratio

    def metrics(self, chosen: Side, rejected: Side) -> Mapping[str, Tensor]:
        """To be logged, as sums over the pairs; how log pi of the chosen moves shows likelihood displacement."""
        with torch.no_grad():
            chosen_P, rejected_P = self.rewards(chosen), self.rewards(rejected)
            return {
                "reward_margin": (chosen_P - rejected_P).sum(),
                "reward_accuracy": (chosen_P > rejected_P).sum(),
                "chosen_logps": chosen.logps.sum(),
                "rejected_logps": rejected.logps.sum(),
                "chosen_log_ratio": chosen.log_ratio.sum(),
                "rejected_log_ratio": rejected.log_ratio.sum(),
            }


def pairs(responses: Responses) -> tuple[Side, Side]:
    """Chosen and rejected side of a micro-batch of pairs."""
    label_S = responses.batch.label_S
    assert label_S is not None, "pairs have labels"
    return responses.where(label_S > 0.5), responses.where(label_S <= 0.5)
