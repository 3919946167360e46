"""One stage of a run at a time, and what it says; a listener can end it where it likes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.events.event_log import LOGGER
from cluster.events.progress import Reporter
from cluster.recipes.context import RunContext
from cluster.recipes.pipeline import run_step
from cluster.recipes.recipe_table import steps_of
from cluster.recipes.run_plan import check_resume, plan_run
from cluster.runtimes.runtime import Runtime
from cluster.runtimes.serial_runtime import SerialRuntime
from wmpo_ray.config.run import Config
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.runs.folder import RunFolder


class Killed(BaseException):
    """What nothing in a run survives."""


class Listener(Reporter):
    """Keeps what is said; `stop` ends everything when a bar comes so far."""

    def __init__(self, stop: int | None = None):
        super().__init__()
        self.said: list[str] = []
        self.stop = stop

    @contextmanager
    def listening(self) -> Iterator[None]:
        handler = logging.Handler(logging.INFO)
        handler.emit = lambda record: self.said.append(record.getMessage())
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        try:
            yield
        finally:
            LOGGER.removeHandler(handler)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[..., None]]:
        def advance(done: int, metrics: dict[str, float] | None = None) -> None:
            if done == self.stop:
                raise Killed

        yield advance


def do(
    path: Path, name: str, config: Config, listener: Listener, runtime: Runtime | None = None, resume: bool = True
) -> dict:
    """One stage of the run in `path`, up to its place in the summary."""
    configure_process(config.cluster.threads_per_process)
    with RunFolder.open(path, config) as folder, listener.listening():
        context = RunContext(config, folder, listener, lambda: runtime or SerialRuntime(), force=False)
        plan = plan_run(folder, config, steps_of(config))
        (planned,) = (each for each in plan if each.label == name)
        check_resume(folder, [planned], resume, redo=False)
        folder.accept(config)
        run_step(context, planned, plan, again=False)
        return {key: value for key, value in folder.metrics(name).items() if key != "seconds"}
