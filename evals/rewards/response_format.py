r"""Rewards of form: whether a response has the parts that it was asked for, whatever is in them.

    think         <think>...</think>...
    think_answer  <think>...</think> <answer>...</answer>
    boxed         ... \boxed{...} ...
    matches       any regular expression

`think` accepts what TRL's `think_format_reward` accepts. All but `matches` take time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evals.rewards.math_answer import last_boxed


def think(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """1 for a response that begins with <think>, has no second one, and closes it; anything may follow."""
    return [float(_after_thinking(response) is not None) for response in responses]


def think_answer(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """1 for a response of <think>...</think> and then one <answer>...</answer>, with only white space about it.

    The template is that of DeepSeek-R1 (arXiv 2501.12948).
    """
    return [float(_is_answer(_after_thinking(response))) for response in responses]


def boxed(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    r"""1 for a response with a complete \boxed{...} that is not empty."""
    return [float(bool((last_boxed(response) or "").strip())) for response in responses]


def matches(prompts: Sequence[str], responses: Sequence[str], *, pattern: str = r"\A<think>.*</think>") -> list[float]:
    """1 for a response in which a regular expression is found; its dot matches newlines too.

    How long it looks is the pattern's responsibility: nested repetition can take exponentially long.

    Raises:
        ValueError: no regular expression.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern={pattern}: must be a regular expression ({error})") from error
    return [float(compiled.search(response) is not None) for response in responses]


def has_thinking(response: str) -> bool:
    """Whether <think>...</think> occurs anywhere."""
    _, opened, rest = response.partition("<think>")
    return bool(opened) and "</think>" in rest


def _after_thinking(response: str) -> str | None:
    """What follows the first </think> of a response that has the form of `think`, else None."""
    if not response.startswith("<think>") or response.count("<think>") != 1:
        return None
    _, closed, rest = response.partition("</think>")
    return rest if closed else None


def _is_answer(text: str | None) -> bool:
    if text is None or text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return False
    stripped = text.strip()
    return stripped.startswith("<answer>") and stripped.endswith("</answer>")
