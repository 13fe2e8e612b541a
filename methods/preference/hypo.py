"""HyPO, hybrid preference optimisation: DPO on offline pairs, and the reverse KL to the reference on own samples.

Song, Swamy, Singh, Bagnell, Sun: "The Importance of Online Data: Understanding Preference Fine-tuning via Coverage",
NeurIPS 2024, arXiv 2406.01462.

    D(y) = log pi(y|x) - log ref(y|x)
    L = -log sigmoid(beta (D(y_w) - D(y_l))) + lambda KL(pi(.|x) || ref(.|x))            mean over pairs
    grad KL = E_{y ~ pi}[(D(y) - b) grad log pi(y|x)]                                    any b that y does not depend on

DPO sees the KL only where there is data, and may put mass on responses that no pair has. Here it is estimated on k
responses that the policy writes itself in every step, at temperature 1, without label or reward; b of each is the
mean of the other k - 1 (leave one out). The value that is logged is DPO's loss plus lambda times the mean of D; the
gradient of that mean itself would be 0 in expectation. A response that max_new_tokens cuts counts as far as it goes.

The reference is live. One seed draws the responses of a micro-batch: which pairs are in it is part of the run's
identity.

Defaults: k 2, lambda 1e-4 and beta 0.05 are recalled from the authors' experiments, not verified; max_new_tokens is
ours. Sweep lambda. (Other methods are called HyPO too, e.g. that of arXiv 2602.11902.)

Legend: P pairs of a micro-batch, S responses: of each pair chosen, rejected and k own ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from methods.batch import Batch
from methods.method import Context
from methods.objective import Loss
from methods.preference.base import BetaConfig, Responses
from methods.preference.dpo import dpo_loss
from methods.preference.online import Writing, grouped
from methods.writing import check_room, prompt_places, prompts_of, sampling_of


@dataclass(frozen=True, kw_only=True)
class HypoConfig(BetaConfig):
    """lambda_kl: weight of the KL. samples: k, own responses to each prompt. max_new_tokens: of them."""

    reference: Literal["live"] = "live"
    beta: PositiveFloat = 0.05
    lambda_kl: NonNegativeFloat = 1e-4
    samples: Annotated[int, Ge(2)] = 2
    max_new_tokens: PositiveInt = 64


def sampled_kl(logps: Tensor, reference: Tensor) -> Tensor:
    """KL(pi || ref) estimated on own samples: its value is the mean of D, its gradient the score function's.

    Args:
        logps, reference: log pi and log ref of k >= 2 samples of each prompt, summed over their tokens [P, k].

    Returns:
        [P]. The expectation of its gradient over samples of pi is that of the KL.
    """
    log_ratio = (logps - reference).detach()
    count = log_ratio.shape[1]
    others = (log_ratio.sum(1, keepdim=True) - log_ratio) / (count - 1)
    surrogate = ((log_ratio - others) * logps).mean(1)
    return surrogate - surrogate.detach() + log_ratio.mean(1)


class Hypo(Writing):
    """HyPO: DPO on pairs plus the KL to the reference on own samples (arXiv 2406.01462)."""

    config: HypoConfig
    data = ("pair",)
    frozen = ("reference",)

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Nothing is made; the longest prompt and a response must fit the model."""
        check_room(context, self.config.max_new_tokens)
        return super().prepare(context)

    def rollout(self, batch: Batch, step: int) -> Batch:
        """Each pair with the policy's own responses to its prompt behind it, labelled NaN."""
        config, examples = self.config, self.context.examples
        sampling = sampling_of(self.context.tokenizer, config.max_new_tokens, temperature=1.0)
        written = self.write("policy", batch, step, config.samples, sampling)
        if not batch.target_count:  # company for processes that have more: it has taken part in the sampling
            return batch
        first_P = batch.example_S[prompt_places(batch)]
        data = [[examples.response(index + side).tolist() for side in (0, 1)] for index in first_P.tolist()]
        responses = [pair + own for pair, own in zip(data, written, strict=True)]
        labels = [[1.0, 0.0, *[float("nan")] * config.samples]] * len(responses)
        return grouped(prompts_of(examples, batch), responses, first_P, labels)

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the pairs."""
        config, everything = self.config, responses.all
        logps, reference = (values.view(-1, 2 + config.samples) for values in (everything.logps, everything.reference))
        chosen_P, rejected_P, *_ = (logps - reference).unbind(1)
        preference_P = dpo_loss(chosen_P, rejected_P, config.beta)
        kl_P = sampled_kl(logps[:, 2:], reference[:, 2:])
        margin_P = (chosen_P - rejected_P).detach()
        metrics = {
            "preference_loss": preference_P.detach().sum(),
            "kl": kl_P.detach().sum(),
            "reward_margin": config.beta * margin_P.sum(),
            "reward_accuracy": (margin_P > 0).sum(),
            "chosen_log_ratio": chosen_P.detach().sum(),
            "rejected_log_ratio": rejected_P.detach().sum(),
        }
        return Loss((preference_P + config.lambda_kl * kl_P).sum(), metrics)
