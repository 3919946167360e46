"""Rollouts in a fixed number of slots: a trajectory that ends leaves its slot to the next one that waits.

A batch's shape decides how sums are rounded; neither a row's slot nor its neighbours do. So with every call of the
policy and of the world at the same number of rows, slots that nobody needs filled with copies, a trajectory comes out
the same to the last bit alone, in company and in any slot, whatever request it is part of.

M trajectories, S slots, N decisions each, K actions and frames per decision, T = N*K.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import Decision, FramesMode, World
from wmpo_ray.core.observations import Observation, Rollout, StartState
from wmpo_ray.core.timeline import span
from wmpo_ray.rollout.slot_track import SlotTrack

SeedOf = Callable[[str, int, int], int]
"""(purpose, trajectory, number of its chunk) -> seed; the purposes are "act" and "step"."""


class Acting(Protocol):
    """As much of a policy as rollouts need."""

    def act(self, observation: Observation, temperature: float, seeds: list[int]) -> Decision:
        """See `Policy.act`."""


class NothingWantedError(Exception):
    """No trajectory is wanted any more."""


def check_slots(world: World, num_slots: int) -> None:
    """Raises ConfigError for a world whose states cannot be cut into trajectories."""
    if num_slots and "slots" not in world.abilities:
        raise ConfigError(f"{type(world).__name__} cannot be stepped in parts; set rollout.slots=0")


class Job:
    """M trajectories that are rolled out together: waiting, in slots, or over.

    `is_wanted` is asked about every trajectory after each chunk; one that is not wanted leaves, and what was not rolled
    out of it is zero. `limits` [M]: decisions after which each is over; None: N.
    """

    def __init__(
        self,
        starts: Sequence[StartState],
        seed_of: SeedOf,
        is_wanted: Callable[[int], bool],
        limits: np.ndarray | None = None,
    ):
        self.starts, self.seed_of, self.is_wanted, self.limits = starts, seed_of, is_wanted, limits
        self.waiting, self.num_present = deque(range(len(starts))), 0
        self.state: Any = None  # of all of them at their start
        self.track: SlotTrack | None = None

    def begin(self, world: World, num_slots: int, num_chunks: int) -> SlotTrack:
        """Begin all trajectories, `num_slots` at a time; returns the track."""
        seen = []
        for first in range(0, len(self.starts), num_slots):
            part = list(self.starts[first : first + num_slots])
            block, observation = world.start(part + part[-1:] * (num_slots - len(part)))
            rows = np.arange(len(part))
            if self.state is None:
                self.state = block.rows(np.zeros(len(self.starts), np.int64))
            self.state = self.state.with_rows(first + rows, block.rows(rows))
            seen.append(observation.rows(rows))
        self.track = SlotTrack(Observation.joined(seen), num_chunks, self.limits)
        return self.track

    @property
    def is_over(self) -> bool:
        return not self.waiting and not self.num_present

    def next(self) -> int | None:
        """The next trajectory for a slot."""
        while self.waiting:
            if self.is_wanted(row := self.waiting.popleft()):
                return row
        return None

    @property
    def num_chunks(self) -> int:
        """Of all trajectories, that were rolled out."""
        return 0 if self.track is None else int(self.track.num_decided.sum())

    def rollout(self) -> Rollout:
        """Raises NothingWantedError where nobody wants any of it."""
        if self.track is None or not any(map(self.is_wanted, range(len(self.starts)))):
            raise NothingWantedError
        return self.track.rollout()


class Slots:
    """`num_slots` slots of a policy in a world; jobs are taken in their order, the next one where slots come free.

    `frames` is "all", or "last" for the frames that the policy sees and no others. Raises ConfigError for a world that
    cannot be stepped in parts.
    """

    def __init__(
        self,
        policy: Acting,
        world: World,
        num_chunks: int,
        temperature: float,
        num_slots: int,
        frames: FramesMode = "all",
    ):
        check_slots(world, num_slots)
        self.policy, self.world, self.num_chunks, self.temperature = policy, world, num_chunks, temperature
        self.frames = frames
        self.jobs: list[Job] = []
        self._held: list[tuple[Job, int] | None] = [None] * num_slots
        self._state: Any = None  # of what is in the slots
        self._observation: Observation | None = None

    def finish(
        self, job: Job, progress: Callable[[], None] = lambda: None, more: Callable[[], None] = lambda: None
    ) -> Rollout:
        """Go on until every trajectory of a job is over.

        `progress` is called after every chunk of the slots, `more` before: it may add jobs. Raises NothingWantedError.
        """
        while True:
            more()
            self._leave()
            self._fill()
            if job.is_over:
                self.jobs.remove(job)
                return job.rollout()
            self._step()
            progress()

    def _leave(self) -> None:
        for slot, held in enumerate(self._held):
            if held is not None:
                job, row = held
                assert job.track is not None
                if job.track.is_over(row) or not job.is_wanted(row):
                    self._held[slot] = None
                    job.num_present -= 1

    def _fill(self) -> None:
        """Give free slots to waiting trajectories; copies of one that is there fill the rest."""
        for job in self.jobs:
            free = [slot for slot, held in enumerate(self._held) if held is None]
            taken: list[int] = []
            while len(taken) < len(free) and (row := job.next()) is not None:
                taken.append(row)
            if taken:
                self._take(job, np.array(taken), np.array(free[: len(taken)]))
        present = [slot for slot, held in enumerate(self._held) if held is not None]
        if present and len(present) < len(self._held):
            assert self._observation is not None
            copies = np.array([slot if held is not None else present[0] for slot, held in enumerate(self._held)])
            self._state, self._observation = self._state.rows(copies), self._observation.rows(copies)

    def _take(self, job: Job, rows: np.ndarray, slots: np.ndarray) -> None:
        track = job.track or job.begin(self.world, len(self._held), self.num_chunks)
        if self._state is None or self._observation is None:
            anyone = np.zeros(len(self._held), np.int64)
            self._state, self._observation = job.state.rows(anyone), track.first.rows(anyone)
        self._state = self._state.with_rows(slots, job.state.rows(rows))
        self._observation = self._observation.with_rows(slots, track.first.rows(rows))
        job.num_present += len(rows)
        for slot, row in zip(slots.tolist(), rows.tolist(), strict=True):
            self._held[slot] = (job, row)

    def _step(self) -> None:
        assert self._observation is not None
        with span("policy"):
            decision = self.policy.act(self._observation, self.temperature, self._seeds("act"))
        self._state, made = self.world.step_chunk(self._state, decision.actions, self._seeds("step"), self.frames)
        for job in self.jobs:
            about = [(slot, held[1]) for slot, held in enumerate(self._held) if held is not None and held[0] is job]
            if about and job.track is not None:
                slots, rows = np.array(about).T
                job.track.add(rows, slots, self._observation, made, decision)
        assert made.observation is not None, 'a policy sees nothing with frames="none"'
        self._observation = made.observation

    def _seeds(self, purpose: str) -> list[int]:
        """One for each slot; those of copies are never seen."""
        seeds = []
        for held in self._held:
            job, row = held or (None, 0)
            chunk = job.track.num_decided[row] if job is not None and job.track is not None else 0
            seeds.append(job.seed_of(purpose, row, int(chunk)) if job is not None else 0)
        return seeds
