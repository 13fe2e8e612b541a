"""The exceptions a user is meant to see, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what was asked for. Its text is one line that names key, value and rule."""


class FailedCells(UserError):
    """Some cells of a sweep failed; the text lists them."""


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """' (nearest: a, b)' for the known words most like `word`, or '' when there is none."""
    known = sorted(set(known))
    # The last part of a grouped name is what people remember: `flow` for `finetune/flow`.
    found = [name for name in known if word and word in name.split("/")]
    close = difflib.get_close_matches(word, known, n=count, cutoff=0.5)
    found += [name for name in close if name not in found]
    return f" (nearest: {', '.join(found[:count])})" if found else ""
