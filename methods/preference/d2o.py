"""D2O, distributional dispreference optimisation: bad responses are pushed below the model's own, without good ones.

Duan et al.: "Negating Negatives: Alignment without Human Positive Samples via Distributional Dispreference
Optimization", 2024, arXiv 2403.03419.

    L = -log sigmoid( (beta/K) sum_k log pi(y_k|x)/ref(y_k|x) - alpha log pi(y_l|x)/ref(y_l|x) ),    y_k ~ ref(.|x)

The K samples are anchors that hold the model while y_l is pushed down; all are raised alike. With K = 1, alpha = beta
and y_1 = y_w it is DPO. The paper has two references, a more harmful one for the samples and a more helpful one for
y_l; here both are the run's one reference.

The samples are drawn once, before training, by the model that training starts from, under `template` around the
prompt (the paper adds an instruction that makes the answers harmless), and stand behind the plain prompt. From step
`online_after` on, new ones are drawn from the policy in every step, under the plain prompt; that needs a live
reference, which stays what it was (the third-party code refreshes it every 50 steps). Stale samples drag a policy back
that has become safer than they are.

Of pairs only the rejected response is used. Defaults: K, temperature, alpha and beta are those of a third-party
implementation (agentsea/dark.rl), which goes online after 200 steps; the authors published no code.

Legend: G prompts of a micro-batch, S responses: of each prompt y_l and K samples.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from methods.batch import Batch
from methods.examples import Examples
from methods.generation import prompt_tokens
from methods.method import Context
from methods.objective import Loss
from methods.preference.base import BetaConfig, Responses
from methods.preference.online import Writing, grouped
from methods.writing import check_room, prompt_places, prompts_of, sampling_of


@dataclass(frozen=True, kw_only=True)
class D2oConfig(BetaConfig):
    """alpha: scale of the bad response's log-ratio. samples: K. temperature, max_new_tokens: of the samples.

    template: around the prompt, when they are drawn before training. online_after: the step from which they are drawn
    anew; null: never. generation_batch_size: samples drawn at a time, before training.
    """

    alpha: PositiveFloat = 0.1
    samples: PositiveInt = 11
    temperature: PositiveFloat = 0.8
    max_new_tokens: PositiveInt = 64
    template: str = "{prompt}"
    online_after: NonNegativeInt | None = None
    generation_batch_size: PositiveInt = 64

    def __post_init__(self) -> None:
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None}
        except ValueError as error:
            raise ValueError(
                f"method.template={self.template!r}: {error} (a literal brace is written twice)"
            ) from error
        if fields != {"prompt"}:
            raise ValueError(f"method.template={self.template!r}: must contain {{prompt}}, nothing else")
        if self.online_after is not None and self.reference == "cached":
            raise ValueError(
                "method.reference=cached: nothing of new samples is cached; with method.online_after it must be live"
            )


def d2o_loss(sample_log_ratio: Tensor, negative_log_ratio: Tensor, beta: float, alpha: float) -> Tensor:
    """-log sigmoid(beta mean_k a_k - alpha a_l).

    Args:
        sample_log_ratio: log pi - log ref of the K samples, summed over their tokens [G, K].
        negative_log_ratio: the same of the bad response [G].
        beta, alpha: > 0.

    Returns:
        [G].
    """
    return -F.logsigmoid(beta * sample_log_ratio.mean(1) - alpha * negative_log_ratio)


class D2o(Writing):
    """D2O: bad responses pushed below the model's own, without good ones (arXiv 2403.03419)."""

    config: D2oConfig
    data = ("negative", "pair")

    def arrange(self, context: Context, examples: Examples) -> Examples:
        """Each bad response, labelled 0, with K samples behind it, labelled 1."""
        config = self.config
        labels = examples.labels
        assert labels is not None, "responses have labels"
        bad = [index for index in range(len(examples)) if labels[index] <= 0.5]
        prompts = [examples.prompt(index).tolist() for index in bad]
        asked = prompts
        if config.template != "{prompt}":
            decode = context.tokenizer.decode
            shown = [config.template.format(prompt=decode(tokens, skip_special_tokens=True)) for tokens in prompts]
            asked = prompt_tokens(context.tokenizer, shown)
        repeated = [prompt for prompt in asked for _ in range(config.samples)]
        sampling = sampling_of(context.tokenizer, config.max_new_tokens, config.temperature)
        written = context.generate(
            f"own samples, seed {context.seed}", repeated, sampling, config.generation_batch_size
        )
        sequences: list[Sequence[int] | NDArray[np.int32]] = []
        targets: list[int] = []
        for place, (index, prompt) in enumerate(zip(bad, prompts, strict=True)):
            own = range(place * config.samples, (place + 1) * config.samples)
            sequences += [examples.sequence(index)]
            sequences += [[*prompt, *written.response(sample).tolist()] for sample in own]
            targets += [int(examples.targets[index]), *[len(prompt)] * config.samples]
        size = 1 + config.samples
        return Examples.of(sequences, targets, [size] * len(bad), [0.0, *[1.0] * config.samples] * len(bad))

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Measure the reference, unless it is live."""
        check_room(context, self.config.max_new_tokens)
        return super().prepare(context)

    def rollout(self, batch: Batch, step: int) -> Batch:
        """The batch with new samples in place of the former, once it is time."""
        config, examples = self.config, self.context.examples
        if config.online_after is None or step < config.online_after:
            return batch
        sampling = sampling_of(self.context.tokenizer, config.max_new_tokens, config.temperature)
        written = self.write("policy", batch, step, config.samples, sampling)
        if not batch.target_count:  # company for processes that have more: it has taken part in the sampling
            return batch
        first_G = batch.example_S[prompt_places(batch)]
        responses = [
            [examples.response(index).tolist(), *own] for index, own in zip(first_G.tolist(), written, strict=True)
        ]
        labels = [[0.0, *[1.0] * config.samples]] * len(responses)
        return grouped(prompts_of(examples, batch), responses, first_G, labels)

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the prompts."""
        config = self.config
        log_ratio = responses.all.log_ratio.view(-1, 1 + config.samples)
        negative_G, sampled_GK = log_ratio[:, 0], log_ratio[:, 1:]
        losses_G = d2o_loss(sampled_GK, negative_G, config.beta, config.alpha)
        with torch.no_grad():
            margin_G = config.beta * sampled_GK.mean(1) - config.alpha * negative_G
            metrics = {
                "reward_margin": margin_G.sum(),
                "reward_accuracy": (margin_G > 0).sum(),
                "sample_log_ratio": sampled_GK.mean(1).sum(),
                "negative_log_ratio": negative_G.sum(),
            }
        return Loss(losses_G.sum(), metrics)
