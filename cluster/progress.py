"""Progress bars for everything that takes longer than a few seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Reporter:
    """Where a run talks to a person; `quiet` keeps only what goes wrong."""

    def __init__(self, console: Console | None = None, quiet: bool = False):
        self.console = console or Console(stderr=True, quiet=quiet)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[..., None]]:
        """Yields `advance(done, figures=None)`: the absolute progress and a few figures to show beside it."""
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(description, total=total, figures="")

            def advance(done: int, figures: dict[str, float] | None = None) -> None:
                shown = "  ".join(f"{key} {value:.3g}" for key, value in (figures or {}).items())
                progress.update(task, completed=done, figures=shown)

            yield advance
