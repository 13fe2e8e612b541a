"""Progress bars on the terminal (stderr); silent when nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from runners import processes


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar over `total` things. Yields `advance(count=1, text='')`; `text` stands behind the bar."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal or not processes.is_first(),
        refresh_per_second=4,
    )
    with bar:
        task = bar.add_task(description, total=total, text="")

        def advance(count: int = 1, text: str | None = None) -> None:
            bar.advance(task, count)
            if text is not None:
                bar.update(task, text=text)

        yield advance
