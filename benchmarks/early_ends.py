"""Chunks that need not be imagined where trajectories end at their success: benchmarks/results/early_ends.json.

    python -m benchmarks.early_ends [--requests 32]

The slots are those of a run, and so is what they do: refill, copies, and the next request in what comes free. The world
behind them only tells when each trajectory succeeds; these times are of real episodes of the embedded task, several for
each start state, by its expert with as much noise on its targets as brings success down to .2, .4, .5 and .7. Such an
expert tries until the end and succeeds late; a policy that succeeds early saves more (`benchmarks/optimize.py` has one).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.results_file import write_results
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.interfaces import Decision, FramesMode
from wmpo_ray.core.observations import Observation, StartState, Transition
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.rollout.slots import Job, Slots

SUCCESS = (0.2, 0.4, 0.5, 0.7)
NUM_CALIBRATION = 512
NOISE = (0.0, 8.0)  # within which the expert's noise is looked for
HALVINGS = 12
NUM_RESAMPLED = 1000
FRAME = np.zeros((1, 1, 3), np.uint8)


def finish_steps(scenes: Sequence[int], noise: float, horizon: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Success [M] and steps until it, or the horizon, [M] of one real episode for each scene."""
    environment, rng = PocketEnvironment(horizon), np.random.default_rng(seed)
    environment.reset(scenes, render=False)
    for _ in range(horizon):
        environment.advance(environment.expert_action(rng, noise))
    return environment.success, np.where(environment.success, environment.num_steps, horizon)


def noise_for(success: float, horizon: int) -> float:
    """The noise at which the expert succeeds in this share of the episodes."""
    low, high = NOISE
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = finish_steps(range(NUM_CALIBRATION), middle, horizon, 1)[0].mean()
        low, high = (middle, high) if found > success else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, eq=False)
class Progress:
    """Trajectories [B], by number, and the steps that each has made."""

    numbers: np.ndarray
    steps: np.ndarray

    def rows(self, rows: np.ndarray) -> Progress:
        return Progress(self.numbers[rows], self.steps[rows])

    def with_rows(self, rows: np.ndarray, part: Progress) -> Progress:
        numbers, steps = self.numbers.copy(), self.steps.copy()
        numbers[rows], steps[rows] = part.numbers, part.steps
        return Progress(numbers, steps)


class TimedWorld:
    """A world in which trajectory i, whose start has the seed i, succeeds as the i-th episode did (implements `World`)."""

    context_frames = 0
    abilities = frozenset({"slots"})

    def __init__(self, success: np.ndarray, finish: np.ndarray, chunk_length: int, ends_early: bool):
        self.success, self.finish, self.chunk_length = success, finish, chunk_length
        self.ends_early = ends_early
        self.num_rows = 0  # stepped, copies included

    def start(self, starts: Sequence[StartState]) -> tuple[Progress, Observation]:
        numbers = np.array([start.seed for start in starts])
        return Progress(numbers, np.zeros(len(starts), np.int64)), self._seen(len(starts))

    def step_chunk(
        self, state: Progress, actions: Tensor, seeds: list[int], frames: FramesMode = "all"
    ) -> tuple[Progress, Transition]:
        self.num_rows += len(actions)
        after = Progress(state.numbers, state.steps + self.chunk_length)
        ended = self.success[state.numbers] & (self.finish[state.numbers] <= after.steps) & self.ends_early
        made = np.full(len(actions), self.chunk_length)
        return after, Transition(self._seen(len(actions)), None, ended, ended.copy(), made)

    def _seen(self, count: int) -> Observation:
        return Observation.of(np.repeat(FRAME[None], count, 0), ("",) * count)


class Idle:
    """A policy whose actions nobody looks at."""

    def act(self, observation: Observation, temperature: float, seeds: list[int]) -> Decision:
        count = len(seeds)
        return Decision(torch.zeros(count, 1, 1), {}, torch.zeros(count, 1))


class Imagined(NamedTuple):
    by_request: np.ndarray  # chunks of trajectories
    num_rows: int  # that the world stepped for them


def imagine(world: TimedWorld, num_requests: int, size: int, num_slots: int, num_chunks: int) -> Imagined:
    """All requests on one actor, each lined up behind the one before it."""
    slots = Slots(Idle(), world, num_chunks, 1.0, num_slots, "last")
    jobs = [
        Job([StartState(FRAME[None], "", number) for number in range(first, first + size)], _no_seed, _wanted)
        for first in range(0, num_requests * size, size)
    ]
    slots.jobs = jobs[:1]
    for place, job in enumerate(jobs):
        slots.jobs += jobs[place + 1 : place + 2]
        slots.finish(job)
    return Imagined(np.array([job.num_chunks for job in jobs]), world.num_rows)


def _no_seed(purpose: str, row: int, chunk: int) -> int:
    return 0


def _wanted(row: int) -> bool:
    return True


def measure(success: float, num_requests: int) -> dict[str, dict[str, Any]]:
    config = load_config("demo")
    rollout, chunk = config.rollout, config.rollout.chunk_length
    size, group = rollout.request_size, rollout.group_size
    scenes = np.repeat(np.arange(num_requests * size // group) + NUM_CALIBRATION, group)
    noise = noise_for(success, config.environment.horizon)
    outcome, finish = finish_steps(scenes.tolist(), noise, config.environment.horizon, 2)
    found: dict[tuple[bool, int], Imagined] = {}
    for num_slots in (size, size // 4):
        for ends_early in (False, True):
            world = TimedWorld(outcome, finish, chunk, ends_early)
            found[ends_early, num_slots] = imagine(world, num_requests, size, num_slots, config.num_chunks)
    whole, early = found[False, size].by_request, found[True, size].by_request
    picked = np.random.default_rng(0).integers(num_requests, size=(NUM_RESAMPLED, num_requests))
    interval = np.quantile(early[picked].sum(1) / whole[picked].sum(1), [0.025, 0.975])
    name, kept = f"{round(100 * success)}", outcome.reshape(-1, group)
    mixed = (kept.any(1) & ~kept.all(1)).mean()
    figures = {
        f"success_{name}": (
            outcome.mean(),
            f"of {len(outcome)} episodes, noise {noise:.2f}; {mixed:.2f} of groups mixed",
        ),
        f"finish_{name}": (
            finish[outcome].mean() / config.environment.horizon,
            "of the horizon, mean of the successes",
        ),
        f"chunks_ratio_{name}": (early.sum() / whole.sum(), "chunks of trajectories, with / without early ends"),
    }
    for num_slots in (size, size // 4):
        ratio = found[True, num_slots].num_rows / found[False, num_slots].num_rows
        figures[f"rows_ratio_{name}_slots_{num_slots}"] = (
            ratio,
            "the same with copies in empty slots: what is computed",
        )
    shown: dict[str, dict[str, Any]] = {k: {"value": round(float(v), 4), "unit": u} for k, (v, u) in figures.items()}
    shown[f"chunks_ratio_{name}"]["interval"] = [round(float(bound), 4) for bound in interval]
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32, help="requests of the demo's size for each success rate")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    for success in SUCCESS:
        figures |= measure(success, arguments.requests)
    for name, figure in figures.items():
        print(f"{name}: {figure['value']:g} {figure['unit']}")
    print(write_results("early_ends", figures, f"python -m benchmarks.early_ends --requests {arguments.requests}"))


if __name__ == "__main__":
    main()
