"""What a reward says of a response."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Graded:
    """score: NaN where there can be none; of what can be checked, 1 is solved. feedback: what went wrong, in words."""

    score: float
    feedback: str = ""
