"""Which task a start state or an episode is of, where an environment has several.

Scenes are drawn by their seeds: a seed has one task, whoever asks, so that demonstrations, collected and held-out episodes
need nothing else to be made again. Episodes are told apart by their instructions, of which no two tasks share one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wmpo_ray.config.environments import EnvironmentConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.section import shown
from wmpo_ray.kinds import ENVIRONMENTS

WHOLE = 2**64
# 2^64 over the golden ratio: multiples of it modulo 2^64 are spread evenly, however many consecutive seeds there are
# (Knuth, The Art of Computer Programming, volume 3, section 6.4: Fibonacci hashing).
STRIDE = 0x9E3779B97F4A7C15


class Tasks(NamedTuple):
    """`shares`: of start states, in sum 1; `by_instruction`: every instruction of every task."""

    names: tuple[str, ...]
    shares: tuple[float, ...]
    by_instruction: Mapping[str, str]

    def of_seed(self, seed: int) -> str:
        """The task of the scene with this seed; consecutive seeds have each task by its share, as evenly as can be."""
        place, reached = seed * STRIDE % WHOLE / WHOLE, 0.0
        for name, share in zip(self.names, self.shares, strict=True):
            reached += share
            if place < reached:
                return name
        return self.names[-1]

    def of_start(self, start: StartState) -> str:
        """The task that a start names, or its instruction, or its seed. Raises ValueError where none of them does."""
        if start.task:
            if start.task not in self.names:
                raise ValueError(
                    f"a start of the task {shown(start.task)}: the environment has {', '.join(self.names)}"
                )
            return start.task
        if known := self.by_instruction.get(start.instruction):
            return known
        if start.seed is None:
            raise ValueError(f"a start with the instruction {shown(start.instruction)} and no seed is of no task")
        return self.of_seed(start.seed)

    def of_instructions(self, instructions: Sequence[str]) -> np.ndarray:
        """The task of each episode [M] str; "" for an instruction of none."""
        return np.array([self.by_instruction.get(text, "") for text in instructions], dtype=np.str_)

    def shares_of(self, present: Collection[str]) -> dict[str, float]:
        """The share of each task that is present."""
        return {name: share for name, share in zip(self.names, self.shares, strict=True) if name in present}

    def of_seeds(self, seeds: Sequence[int] | np.ndarray) -> list[str]:
        return [self.of_seed(int(seed)) for seed in seeds]


def tasks_of(config: EnvironmentConfig) -> Tasks | None:
    """None for an environment with one task. Raises ConfigError for tasks that their instructions do not tell apart."""
    if not config.task_names:
        return None
    kind, by_instruction = ENVIRONMENTS.find(config.kind), dict[str, str]()
    for name, section in config.variants.items():
        for text in kind.facts(section).instructions:
            if (other := by_instruction.setdefault(text, name)) != name:
                raise ConfigError(
                    f"environment.task_names = {shown(config.task_names)}: {other} and {name} have the same instruction {shown(text)}, "
                    "by which tasks are told apart; remove one of them"
                )
    weights = config.task_weights or (1.0,) * len(config.task_names)
    return Tasks(config.task_names, tuple(weight / sum(weights) for weight in weights), by_instruction)
