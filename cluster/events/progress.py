"""Progress bars for everything that takes longer than a few seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wmpo_ray.core.console import make_console


class Reporter:
    """Shows progress to the user. `is_quiet`: no bars; `on_progress` is called with (done, total, metrics) as well."""

    def __init__(
        self,
        console: Console | None = None,
        is_quiet: bool = False,
        on_progress: Callable[[int, int, dict[str, float]], None] = lambda done, total, metrics: None,
    ):
        self.console = console or make_console(quiet=True)
        self.is_quiet, self.on_progress = is_quiet, on_progress

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[..., None]]:
        """Yields `advance(done, metrics=None)`: the absolute progress and a few metrics to show beside it."""
        columns = (
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}", markup=False),
        )
        # In a job's log a bar would be one line a refresh.
        is_hidden = self.is_quiet or not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=is_hidden) as progress:
            task = progress.add_task(description, total=total, metrics="")

            def advance(done: int, metrics: dict[str, float] | None = None) -> None:
                self.on_progress(done, total, metrics or {})
                shown = "  ".join(f"{key} {value:.3g}" for key, value in (metrics or {}).items())
                progress.update(task, completed=done, metrics=shown)

            advance(0)
            yield advance
