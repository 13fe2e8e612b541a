"""Whether a response is its reference, but for white space: for answers that are no mathematics."""

from __future__ import annotations

from collections.abc import Sequence


def exact(
    prompts: Sequence[str],
    responses: Sequence[str],
    answers: Sequence[str],
    *,
    after: str | None = None,
    first_line: bool = False,
) -> list[float | None]:
    """1 for a response that equals its reference, else 0; None where the reference is empty.

    Args:
        prompts: not looked at.
        responses: text.
        answers: references.
        after: only what follows the last such text counts (`"#### "`, `"="`), in the response and, where it is there,
            in the reference; a response without it is wrong.
        first_line: only the first line that is not blank counts, of what is left of both.

    Raises:
        ValueError: `after` is empty.
    """
    if after == "":
        raise ValueError("after='': must be some text or null")
    references = [normalised(reference, after, first_line, needs=False) for reference in answers]
    given = [normalised(response, after, first_line) for response in responses]
    return [float(mine == gold) if gold else None for mine, gold in zip(given, references, strict=True)]


def normalised(text: str, after: str | None = None, first_line: bool = False, needs: bool = True) -> str | None:
    """The part of a text that is compared, with single spaces; None if it `needs` the marker and has none."""
    if after is not None:
        _, marker, rest = text.rpartition(after)
        if not marker and needs:
            return None
        text = rest
    if first_line:
        text = next((line for line in text.splitlines() if line.strip()), "")
    return " ".join(text.split())
