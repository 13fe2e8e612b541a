"""Several turns of one problem: how an attempt and what is said of it become the prompt of the next attempt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from methods.generation import chat_prompt, prompt_tokens


@dataclass(frozen=True)
class Attempt:
    """A response to a problem, and the feedback on it."""

    text: str
    feedback: str


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """How the next prompt is written.

    template: of plain text, with {prompt}, {attempt} and {feedback}; in a chat, of the message after an attempt, with
    {feedback} alone. chat: in the tokenizer's chat template. history: the last attempt alone, or all of them (`chain`).
    """

    template: str
    chat: bool
    history: str = "last"

    def prompt(self, tokenizer: Any, problem: str, attempts: Sequence[Attempt]) -> list[int]:
        """Token ids of the problem with its attempts so far, of which there is at least one."""
        told = attempts if self.history == "chain" else attempts[-1:]
        if self.chat:
            messages = [{"role": "user", "content": problem}]
            for attempt in told:
                messages.append({"role": "assistant", "content": attempt.text})
                messages.append({"role": "user", "content": self.template.format(feedback=attempt.feedback)})
            return prompt_tokens(tokenizer, [chat_prompt(tokenizer, messages)])[0]
        text = problem
        for attempt in told:
            text = self.template.format(prompt=text, attempt=attempt.text, feedback=attempt.feedback)
        return prompt_tokens(tokenizer, [text])[0]


def check_template(template: str, chat: bool, key: str) -> None:
    """A template has the fields that `Dialogue` fills in, and no others.

    Raises:
        ValueError: it has not.
    """
    values = {"feedback": "\0"} if chat else {"prompt": "\0", "attempt": "\0", "feedback": "\0"}
    try:
        filled = template.format(**values)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{key}={template!r}: cannot be filled in: {error!r}") from error
    if filled.count("\0") != len(values):
        fields = ", ".join(f"{{{name}}}" for name in values)
        raise ValueError(f"{key}={template!r}: must contain {fields}{' (of a chat)' if chat else ''}, once each")
