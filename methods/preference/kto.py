"""KTO, Kahneman-Tversky optimisation: single responses, each desirable or not, judged against a moving reference point.

Ethayarajh, Xu, Muennighoff, Jurafsky, Kiela: "KTO: Model Alignment as Prospect Theoretic Optimization", ICML 2024,
arXiv 2402.01306.

    a = log pi(y|x) - log ref(y|x)
    L = lam_D (1 - sigmoid(beta (a - z)))    of a desirable response
        lam_U (1 - sigmoid(beta (z - a)))    of an undesirable one                      mean over responses
    z = max(0, mean over the batch of log pi(y'|x) - log ref(y'|x)), no gradient        y': a response to another prompt

z estimates KL(pi || ref) without sampling. Every response brings such a y' with it: that of the nearest example before
it (round the end of the data set) which has another prompt; it is cut where prompt and y' together are longer than the
longest sequence of the data. Both go through the policy in one pass, so that a response costs what a pair does in DPO.

The batch of z is the *micro-batch* of one process; micro-batch size and number of processes change the result (TRL
averages it over the processes before the cut at 0). One response alone, as the last of a data set may be, makes it
meaningless.

Pairs are taken apart into single responses. Defaults: the paper's and TRL's.

Legend: N responses of a micro-batch, S with the mismatched ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from methods.examples import Examples
from methods.method import Context
from methods.objective import Loss
from methods.preference.base import BetaConfig, Responses
from methods.preference.labelled import Labelled, reward_metrics, singles


@dataclass(frozen=True, kw_only=True)
class KtoConfig(BetaConfig):
    """lam_D, lam_U: weights of desirable and undesirable responses."""

    lam_D: NonNegativeFloat = 1.0
    lam_U: NonNegativeFloat = 1.0


def kto_z(mismatched_log_ratio: Tensor) -> Tensor:
    """max(0, mean of log pi - log ref over mismatched pairs), from at least one. Scalar, no gradient."""
    return mismatched_log_ratio.detach().mean().clamp_min(0.0)


def kto_losses(
    log_ratio: Tensor, is_good: Tensor, z: Tensor | float, beta: float, lam_D: float, lam_U: float
) -> Tensor:
    """lam_D (1 - sigmoid(beta (a - z))) where good, lam_U (1 - sigmoid(beta (z - a))) where not.

    Args:
        log_ratio: a, summed over a response's tokens [N].
        is_good: bool [N].
        z: the reference point, without gradient.

    Returns:
        [N].
    """
    value = beta * (log_ratio - z)  # 1 - sigmoid(v) is sigmoid(-v)
    return torch.where(is_good, lam_D * torch.sigmoid(-value), lam_U * torch.sigmoid(value))


def with_mismatched(examples: Examples) -> Examples:
    """Single responses, each in a group with its prompt and the response of another example, labelled NaN.

    Raises:
        ValueError: all prompts are the same.
    """
    assert examples.labels is not None, "responses have labels"
    count, longest = len(examples), int(examples.lengths.max())
    prompts = [examples.prompt(index).tobytes() for index in range(count)]
    if len(set(prompts)) < 2:
        raise ValueError("dataset.type: method=kto takes responses to other prompts for its z, and there is one prompt")
    sequences, targets, labels = [], [], []
    for index in range(count):
        other = index - 1
        while prompts[other] == prompts[index]:
            other -= 1
        mismatched = np.concatenate([examples.prompt(index), examples.response(other % count)])
        sequences += [examples.sequence(index), mismatched[:longest]]
        targets += [int(examples.targets[index])] * 2
        labels += [float(examples.labels[index]), float("nan")]
    return Examples.of(sequences, targets, [2] * count, labels)


class Kto(Labelled):
    """KTO: single responses, good or bad, against a reference point (arXiv 2402.01306)."""

    config: KtoConfig
    couples = "micro-batch"

    def arrange(self, context: Context, examples: Examples) -> Examples:
        """Single responses, each with one to another prompt."""
        return with_mismatched(singles(examples))

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Measure the reference.

        Raises:
            ValueError: the micro-batch is one response.
        """
        training = context.config["training"]
        if training["batch_size"] == 1:
            raise ValueError("training.batch_size=1: method=kto takes a mean over the micro-batch; at least 2")
        if training["micro_batch_size"] == 1 and not training["packing"]:
            raise ValueError("training.micro_batch_size=1: method=kto takes a mean over the micro-batch; at least 2")
        return super().prepare(context)

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the responses."""
        label_S, everything = responses.batch.label_S, responses.all
        assert label_S is not None, "responses have labels"
        is_own_S = ~label_S.isnan()
        log_ratio_N, is_good_N = everything.log_ratio[is_own_S], label_S[is_own_S] > 0.5
        z = kto_z(everything.log_ratio[~is_own_S])
        config = self.config
        losses_N = kto_losses(log_ratio_N, is_good_N, z, config.beta, config.lam_D, config.lam_U)
        metrics = reward_metrics(config.beta * log_ratio_N, is_good_N)
        return Loss(losses_N.sum(), {"z": z * len(losses_N), **metrics})
