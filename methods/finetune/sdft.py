"""Self-distillation fine-tuning (SDFT, 2026): the model, shown a demonstration, teaches itself without it.

Shenfeld, Damani, Hübotter, Agrawal: "Self-Distillation Enables Continual Learning", 2026, arXiv 2601.19897.

    y ~ p_theta(. | x)                                                      the student's own answer, new in every step
    L = (1/N) sum_t D( p_teacher(. | x, d, y_<t), p_theta(. | x, y_<t) )    d: the demonstration

N is the number of tokens of the step's answers. Student and teacher are one network that sees different prompts. D is
the generalised Jensen-Shannon divergence (`methods/divergences.py`): alpha 0 is KL(teacher || student), 1 is
KL(student || teacher). Gradients flow through the student's distributions alone, not through what was sampled, nor
through the teacher.

Sources disagree on whose weights the teacher has. TRL (0.5, `base`, ema rate 0.05) calls the starting weights the
paper's choice; a re-implementation has KL(student || teacher) and a moving average at rate 0.01.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from methods.batch import Batch, continued
from methods.divergences import generalized_jsd
from methods.forward import Forward
from methods.generation import Sampling, most_tokens, prompt_tokens
from methods.kinds.causal import frozen
from methods.method import Context
from methods.objective import Loss, Objective


@dataclass(frozen=True, kw_only=True)
class SdftConfig:
    """teacher: base (the starting weights) | ema (a moving average of the student's, at ema_rate) | live (its own).

    alpha: of the divergence. top_k: compare only the student's likeliest tokens, renormalised; null: all.
    temperature, max_new_tokens: of the student's answers. template: of the teacher's prompt.
    """

    teacher: Literal["base", "ema", "live"] = "base"
    ema_rate: Annotated[float, Gt(0.0), Le(1.0)] = 0.05
    alpha: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    top_k: PositiveInt | None = None
    temperature: NonNegativeFloat = 1.0
    max_new_tokens: PositiveInt = 256
    template: str = "{prompt}\n\n{demonstration}"

    def __post_init__(self) -> None:
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None}
        except ValueError as error:
            raise ValueError(
                f"method.template={self.template!r}: {error} (a literal brace is written twice)"
            ) from error
        if fields != {"prompt", "demonstration"}:
            raise ValueError(
                f"method.template={self.template!r}: must contain {{prompt}} and {{demonstration}}, nothing else"
            )


def likeliest(student_logps: Tensor, teacher_logps: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both distributions on the student's k likeliest tokens, renormalised. From [..., V] to [..., k]."""
    kept, tokens = student_logps.topk(min(k, student_logps.shape[-1]), dim=-1)
    return kept.log_softmax(-1), teacher_logps.gather(-1, tokens).log_softmax(-1)


class Sdft(Objective):
    """SDFT: on-policy distillation of the model shown a demonstration into itself without it (arXiv 2601.19897)."""

    config: SdftConfig
    kinds = ("causal",)
    frozen = ("teacher",)
    # One seed draws the answers of a micro-batch: which rows are in it decides what is drawn.
    couples = "micro-batch"
    prompted = True
    _restored: Mapping[str, Tensor] | None = None
    _has_moved = False

    def prepare(self, context: Context) -> Mapping[str, float]:
        """Tokenise the teacher's prompts; give a moving average back what it was when the run was interrupted."""
        texts, config = context.texts, self.config
        shown = [config.template.format(prompt=x, demonstration=y) for x, y in texts]
        self._teacher_prompts = prompt_tokens(context.tokenizer, shown)
        longest = max(len(prompt) for prompt in self._teacher_prompts) + config.max_new_tokens
        limit = most_tokens(context.role("policy"))
        if limit is not None and longest > limit:
            raise ValueError(
                f"method.max_new_tokens={config.max_new_tokens}: with the longest prompt of the teacher that is "
                f"{longest} tokens, the model takes at most {limit}"
            )
        if config.teacher == "ema":
            self._prepare_average(context)
        return {"sdft/teacher_prompt_tokens": sum(map(len, self._teacher_prompts)) / len(texts)}

    def _prepare_average(self, context: Context) -> None:
        stage = context.config["engine"]["zero_stage"]
        if stage == 3:
            raise ValueError(
                "method.teacher=ema: its weights go into the checkpoint whole, which needs engine.zero_stage 0, 1 "
                f"or 2, got {stage}"
            )
        if context.config["adapter"].get("_target_") is not None:
            raise ValueError("method.teacher=ema: follows the weights themselves, which an adapter leaves as they are")
        if self._restored is not None:
            context.role("teacher").load_state_dict(self._restored)
            self._restored, self._has_moved = None, True

    def rollout(self, batch: Batch, step: int) -> Batch:
        """The student's own answers to the batch's prompts, which carry the loss."""
        examples = batch.example_S.tolist()
        prompts = [self.context.examples.prompt(index).tolist() for index in examples]
        tokenizer = self.context.tokenizer
        sampling = Sampling(
            max_new_tokens=self.config.max_new_tokens,
            eos=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
            temperature=self.config.temperature,
        )
        seed = int(np.random.SeedSequence([self.context.seed, step, *examples]).generate_state(1)[0])
        answers = self.context.sample("policy", prompts, sampling, seed)
        # A sequence without a target has nothing to learn: the row of a process that has no more of its own.
        targets_S = torch.bincount(batch.sequence_K, minlength=len(examples)).tolist()
        answers = [answer if targets else [] for answer, targets in zip(answers, targets_S, strict=True)]
        return continued(prompts, answers, batch.example_S)

    def loss(self, forward: Forward) -> Loss:
        """Sum over the answers' tokens of the divergence between teacher and student."""
        batch = forward.batch
        teacher_batch = self._as_the_teacher_sees(batch)
        assert torch.equal(teacher_batch.targets_K, batch.targets_K), "the teacher must judge the student's tokens"
        teacher = forward.roles["policy" if self.config.teacher == "live" else "teacher"]
        with frozen(teacher):
            teacher_KV = self.kind.target_logits(teacher, teacher_batch).float().log_softmax(-1)
        student_KV = forward.distribution_logps("policy")
        teacher_logps_K = teacher_KV.gather(-1, batch.targets_K.unsqueeze(-1)).squeeze(-1)
        if self.config.top_k is not None:
            student_KV, teacher_KV = likeliest(student_KV, teacher_KV, self.config.top_k)
        divergence_K = generalized_jsd(teacher_KV, student_KV, self.config.alpha)
        return Loss(divergence_K.sum(), {"teacher_loss": -teacher_logps_K.sum()})

    def _as_the_teacher_sees(self, batch: Batch) -> Batch:
        """The same answers after the teacher's prompts."""
        answers = [batch.targets_K[batch.sequence_K == row].tolist() for row in range(len(batch.example_S))]
        prompts = [self._teacher_prompts[index] for index in batch.example_S.tolist()]
        return continued(prompts, answers, batch.example_S)

    def after_step(self, step: int) -> None:
        """Let the moving average follow the student."""
        if self.config.teacher == "ema":
            self.context.follow("teacher", "policy", self.config.ema_rate)
            self._has_moved = True

    def state_dict(self) -> dict[str, Any]:
        """The moving average, once it is no longer what training started from; whole on each process."""
        if not self._has_moved:
            return {}
        weights = self.context.role("teacher").state_dict()
        return {"teacher": {name: value.cpu() for name, value in weights.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the moving average until its model is there."""
        self._restored = state.get("teacher")
