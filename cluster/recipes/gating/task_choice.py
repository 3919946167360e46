"""Which of several tasks a run goes on with: those that the imagined world is accurate enough for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from cluster.recipes.context import RunContext
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.observations import StartState
from wmpo_ray.environments.task_of_start import tasks_of
from wmpo_ray.runs.round_folders import label_of


def left_out(context: RunContext) -> list[str]:
    """The tasks that the gate of this round has left out; none where there is no gate, or one task."""
    record = context.folder.record(label_of("gate", context.round)) if context.config.environment.task_names else None
    return list((record or {}).get("metrics", {}).get("left_out", {}))


def with_tasks(starts: Sequence[StartState], config: Config, without: Collection[str]) -> list[StartState]:
    """The starts with the names of their tasks, without those of tasks that are left out.

    Raises UserError where an instruction is of no task, or no start is left.
    """
    if (tasks := tasks_of(config.environment)) is None:
        return list(starts)
    names = tasks.of_instructions([start.instruction for start in starts]).tolist()
    if "" in names:
        text = starts[names.index("")].instruction
        raise UserError(
            f"the episodes have an instruction of no task, {text!r}; environment.task_names have "
            f"{', '.join(map(repr, tasks.by_instruction))}: set collect.source_instruction, or name other tasks"
        )
    kept = [replace(start, task=name) for start, name in zip(starts, names, strict=True) if name not in without]
    if not kept:
        raise UserError(
            f"no episode was collected of the tasks that are left ({', '.join(without)} left out); raise "
            "collect.num_trajectories or environment.task_weights"
        )
    return kept
