"""Self-distillation of the data (SDFT, 2024): the base model writes the data set's answers anew, and trains on those.

Yang et al.: "Self-Distillation Bridges Distribution Gap in Language Model Fine-Tuning", ACL 2024, arXiv 2402.13669.

    y~ ~ p_theta0(. | template(x, y))                   the base model is shown the demonstration y
    y' = y~ where it passes a check, else y             same final answer
    L(theta) = E[-log p_theta(y' | x)]                  the run's own objective, on (x, y')

The answers come from the base model's own distribution, so that learning them moves it less. With
`method=finetune/sft` this is the paper's method. What is cut by the length limit is never kept.
"""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Literal

from annotated_types import Gt, Le
from pydantic import NonNegativeFloat, PositiveInt

from methods.examples import Examples
from methods.generation import Sampling, prompt_tokens
from methods.method import Context
from methods.mix.base import Mix

# A minus sign is one only where no number or bracket stands before it.
_NUMBER = re.compile(r"(?:(?<![\w).])-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True, kw_only=True)
class SelfDistillationConfig:
    """template: over {prompt} and {completion}; what follows it is y~. check: same_answer | none."""

    template: str = "{prompt}{completion}\n\nThe same again, in other words:\n\n{prompt}"
    check: Literal["same_answer", "none"] = "same_answer"
    max_new_tokens: PositiveInt = 512
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Gt(0.0), Le(1.0)] = 1.0
    batch_size: PositiveInt = 64
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None}
        except ValueError as error:
            raise ValueError(f"mix.template={self.template!r}: {error} (a literal brace is written twice)") from error
        if fields != {"prompt", "completion"}:
            raise ValueError(
                f"mix.template={self.template!r}: must contain {{prompt}} and {{completion}}, nothing else"
            )


def final_answer(text: str) -> str | None:
    """What an answer comes to: the text after its last "####", else its last number, else None.

    Numbers are written in one way: 1,000.0 is 1000.
    """
    _, marked, rest = text.rpartition("####")
    if not marked:
        numbers = _NUMBER.findall(text)
        return _plain(numbers[-1]) if numbers else None
    line = rest.strip().partition("\n")[0].strip()
    numbers = _NUMBER.findall(line)
    is_number = len(numbers) == 1 and not re.search("[A-Za-z]", line)
    return _plain(numbers[0]) if is_number else line.casefold() or None


def _plain(number: str) -> str:
    value = Decimal(number.replace(",", ""))
    return format(value.normalize() if value else Decimal(0), "f")


def same_answer(rewritten: str, original: str) -> bool:
    """Whether both come to the same final answer; an original without one is never matched."""
    answer = final_answer(original)
    return answer is not None and final_answer(rewritten) == answer


class SelfDistillation(Mix):
    """The data set's answers rewritten by the base model, where they stay right (arXiv 2402.13669)."""

    config: SelfDistillationConfig  # type: ignore[assignment]  # no ratio: it stands in place of the data set
    replaces = True
    data = ("completion",)

    def examples(self, context: Context) -> Examples:
        """The data set in its order, with y~ in place of y where it is kept."""
        config, data, texts, tokenizer = self.config, context.examples, context.texts, context.tokenizer
        shown = [config.template.format(prompt=x, completion=y) for x, y in texts]
        prompts = prompt_tokens(tokenizer, shown)
        sampling = Sampling(
            max_new_tokens=config.max_new_tokens,
            eos=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
            temperature=config.temperature,
            top_p=config.top_p,
        )
        written = context.generate(f"self-distillation-{config.seed}", prompts, sampling, config.batch_size)
        asked = prompt_tokens(tokenizer, [x for x, _ in texts])
        settings, longest = context.config["dataset"], context.config["training"]["max_length"]
        sequences: list[Sequence[int]] = []
        targets: list[int] = []
        self._kept = 0
        for index, (_, original) in enumerate(texts):
            answer = written.sequence(index)[len(prompts[index]) :].tolist()
            ended = answer[-1:] == [tokenizer.eos_token_id]
            sequence = [*asked[index], *(answer if settings["add_eos"] else answer[:-1])]
            fits = longest is None or len(sequence) <= longest
            if ended and fits and self._passes(tokenizer.decode(answer, skip_special_tokens=True), original):
                sequences.append(sequence)
                targets.append(1 if settings["loss_on"] == "all" else len(asked[index]))
                self._kept += 1
            else:
                sequences.append(data.sequence(index).tolist())
                targets.append(int(data.targets[index]))
        return Examples.of(sequences, targets)

    def _passes(self, rewritten: str, original: str) -> bool:
        if not rewritten.strip():
            return False
        return self.config.check == "none" or same_answer(rewritten, original)

    def report(self, examples: Examples) -> Mapping[str, float]:
        """Also the share of answers that are the base model's own."""
        return {**super().report(examples), "mix/rewritten": self._kept / len(examples)}
