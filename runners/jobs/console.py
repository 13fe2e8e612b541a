"""Where jobs print: the terminal as wide as it is, a pipe 100 columns wide and without colours."""

import os
import sys

from rich.console import Console


def console() -> Console:
    """A console on stdout. `COLUMNS` says another width."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=100 if piped else None, highlight=False, soft_wrap=False)
