"""Two methods by several runs each: seeds and start states resampled, and one number over all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wmpo_ray.core.errors import UserError
from wmpo_ray.report.formats import percent, points
from wmpo_ray.report.run_data import number, read_run_metrics
from wmpo_ray.runs.outcomes import Outcomes, on_common_starts, read_outcomes, run_outcomes_file
from wmpo_ray.statistics.aggregate import stratified_interval
from wmpo_ray.statistics.paired import bootstrap_difference
from wmpo_ray.watch.run_status import is_run

FEW_SEEDS = 5  # with fewer the interval is too narrow


@dataclass(frozen=True)
class SeedRun:
    """The final policy of one run."""

    folder: Path
    seed: int | None
    final: Outcomes


@dataclass(frozen=True)
class TaskComparison:
    """One task. Interval: 95%, of success B minus success A, for other seeds and other starts."""

    num_runs: tuple[int, int]
    num_starts: int
    success: tuple[float, float]  # mean over runs and starts
    interval: tuple[float, float]
    are_seeds_matched: bool

    @property
    def is_significant(self) -> bool:
        return not self.interval[0] <= 0 <= self.interval[1]


def is_group(folder: Path) -> bool:
    """Whether it is a folder of runs and no run itself."""
    return folder.is_dir() and not is_run(folder) and any(is_run(path) for path in folder.iterdir() if path.is_dir())


def read_group(folder: Path) -> list[SeedRun]:
    """The runs in a folder that kept the outcome of each start. Raises UserError where there is none."""
    runs = []
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path)):
        if run_outcomes_file(path, "final").is_file():
            seed = number(read_run_metrics(path).summary, "seed")
            runs.append(
                SeedRun(path, None if seed is None else int(seed), read_outcomes(run_outcomes_file(path, "final")))
            )
    if not runs:
        raise UserError(f"{folder} holds no run that is evaluated and kept its outcomes; `wmpo stage evaluate` does")
    return runs


def compare_groups(a: Sequence[SeedRun], b: Sequence[SeedRun]) -> dict[str, TaskComparison]:
    """By task, which is an environment with its settings. Raises UserError where the groups have different tasks."""
    tasks = [list(dict.fromkeys(run.final.environment for run in runs)) for runs in (a, b)]
    if set(tasks[0]) != set(tasks[1]):
        raise UserError(
            f"the runs of A have {len(tasks[0])} tasks and those of B other ones: compare runs of the same tasks"
        )
    return {
        task: _compare(*([run for run in runs if run.final.environment == task] for runs in (a, b)))
        for task in tasks[0]
    }


def _compare(a: list[SeedRun], b: list[SeedRun]) -> TaskComparison:
    success = on_common_starts([run.final for run in (*a, *b)])
    if success is None:
        raise UserError(f"{a[0].folder} and {b[0].folder}: no start state that all runs of the task were evaluated on")
    seeds = [[run.seed for run in runs] for runs in (a, b)]
    is_unique = all(None not in each and len(set(each)) == len(each) for each in seeds)
    are_matched = is_unique and set(seeds[0]) == set(seeds[1])
    first, second = np.stack(success[: len(a)]), np.stack(success[len(a) :])  # [seeds, starts]
    if are_matched:
        second = second[[seeds[1].index(seed) for seed in seeds[0]]]
    _, low, high = bootstrap_difference(first, second, are_matched)
    rates = (float(first.mean()), float(second.mean()))
    return TaskComparison((len(a), len(b)), first.shape[1], rates, (low, high), are_matched)


def iqm_of(runs: Sequence[SeedRun]) -> tuple[float, float, float]:
    """Interquartile mean of the success rates of all runs of all tasks with its 95% interval, as (value, low, high)."""
    tasks: dict[str, list[float]] = {}
    for run in runs:
        tasks.setdefault(run.final.environment, []).append(run.final.rate["value"])
    return stratified_interval([np.array(rates) for rates in tasks.values()])


def group_tables(folders: tuple[Path, Path]) -> RenderableType:
    """What `wmpo compare` prints of two folders of runs."""
    a, b = (read_group(folder) for folder in folders)
    table = Table("final success", "A", "B", "B − A [95% interval]", "", box=None, header_style="dim")
    compared = compare_groups(a, b)
    for index, task in enumerate(compared.values(), 1):
        low, high = task.interval
        difference = f"{points(100 * (task.success[1] - task.success[0]))} [{100 * low:+.1f}, {100 * high:+.1f}]"
        label = "mean" if len(compared) == 1 else f"task {index}, mean"
        table.add_row(label, *map(percent, task.success), difference, _sentence(task))
    iqms = [iqm_of(runs) for runs in (a, b)]
    table.add_row(
        "interquartile mean", *(f"{percent(value)} [{percent(low)}, {percent(high)}]" for value, low, high in iqms)
    )
    heads = [
        Text(f"{label}  {folder}: {', '.join(run.folder.name for run in runs)}")
        for label, folder, runs in zip("AB", folders, (a, b), strict=True)
    ]
    return Group(*heads, "", table)


def _sentence(task: TaskComparison) -> str:
    seeds = f"{task.num_runs[0]} matched" if task.are_seeds_matched else f"{task.num_runs[0]} and {task.num_runs[1]}"
    how = f"{seeds} seeds, {task.num_starts:,} same starts"
    few = f"; fewer than {FEW_SEEDS} seeds: the interval is too narrow" if min(task.num_runs) < FEW_SEEDS else ""
    if not task.is_significant:
        return f"no difference shown ({how}{few})"
    return f"B is {'higher' if task.success[1] > task.success[0] else 'lower'} ({how}{few})"
