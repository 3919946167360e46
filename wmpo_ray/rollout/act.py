"""The loop over a world, and a policy that acts in it.

M trajectories side by side, N decisions each, K actions and frames per decision, T = N*K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np

from wmpo_ray.core.interfaces import FramesMode, Policy, World
from wmpo_ray.core.observations import Observation, Rollout, StartState, Transition
from wmpo_ray.core.timeline import span

SeedsOf = Callable[[str, int], list[int]]
"""(purpose, number of the chunk) -> one seed for each trajectory; the purposes are "act" and "step"."""


class Move(NamedTuple):
    """One chunk of every trajectory: the new state, the actions, and the policy's record of its decision."""

    state: Any
    transition: Transition
    actions: np.ndarray  # [M, K, D] float32
    record: Mapping[str, np.ndarray] = {}  # [M, ...] each
    logprobs: np.ndarray | None = None  # [M, L]


def act(
    policy: Policy,
    world: World,
    starts: Sequence[StartState],
    num_chunks: int,
    temperature: float,
    seeds_of: SeedsOf,
    *,
    frames: FramesMode = "all",
    past_end: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Rollout:
    """Let the policy decide `num_chunks` times in each trajectory; see `run` for the other arguments.

    `frames` is "all", or "last" for the frames that the policy sees and no others.
    """

    def decide(state: Any, observation: Observation | None, chunk: int) -> Move:
        assert observation is not None, 'a policy sees nothing with frames="none"'
        with span("policy"):
            decision = policy.act(observation, temperature, seeds_of("act", chunk))
        state, transition = world.step_chunk(state, decision.actions, seeds_of("step", chunk), frames)
        record = {name: values.numpy() for name, values in decision.record.items()}
        return Move(state, transition, decision.actions.numpy(), record, decision.logprobs.numpy())

    return run(world, starts, num_chunks, decide, past_end, progress)


def run(
    world: World,
    starts: Sequence[StartState],
    num_chunks: int,
    move: Callable[[Any, Observation | None, int], Move],
    past_end: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Rollout:
    """The loop: `move` makes each chunk from the state, what is seen there and the number of the chunk.

    It stops once every trajectory has ended. The shapes stay: after the end of a trajectory its last decision and its
    last frame repeat, so that it is the same beside any others. With `past_end` it goes on instead, and what was
    decided after the end is kept: for a judge that only sees the frames and may not notice the end.
    `progress` is called after each chunk.
    """
    state, first = world.start(starts)
    track, observation = _Track(first, num_chunks), cast(Observation | None, first)
    for chunk in range(num_chunks):
        made = move(state, observation, chunk)
        track.add(observation, made)
        state, observation = made.state, made.transition.observation
        progress()
        if made.transition.done.all() and not past_end:
            break
    return track.rollout(past_end)


@dataclass
class _Track:
    """Collects the steps so far."""

    first: Observation
    num_chunks: int
    seen: list[Observation] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)  # without states and pictures
    frames: np.ndarray | None = None  # [M, T+1, H, W, 3], filled as they come: a batch of episodes may be gigabytes

    def add(self, observation: Observation | None, made: Move) -> None:
        if made.logprobs is not None and observation is not None:
            self.seen.append(observation)
        if made.transition.frames is not None:
            self._show(made.transition.frames)
        kept = replace(made.transition, observation=None, frames=None)
        self.moves.append(made._replace(state=None, transition=kept))

    def _show(self, chunk: np.ndarray) -> None:
        """Keep the frames [M, K, H, W, 3] of the chunk that is being added."""
        if self.frames is None:
            size = chunk.shape[1]
            self.frames = np.empty((len(chunk), self.num_chunks * size + 1, *chunk.shape[2:]), chunk.dtype)
            self.frames[:, 0] = self.first.frames
        first = 1 + len(self.moves) * chunk.shape[1]
        self.frames[:, first : first + chunk.shape[1]] = chunk

    def rollout(self, past_end: bool) -> Rollout:
        moves, num_chunks, last = self.moves, self.num_chunks, self.moves[-1].transition
        steps = np.stack([made.transition.num_steps for made in moves], 1)
        logprobs = [made.logprobs for made in moves if made.logprobs is not None]
        # The last chunk [M, N] of a trajectory that ended repeats.
        active = len(moves) if past_end else np.maximum((steps > 0).sum(1), 1)[:, None]
        chunks = np.minimum(np.arange(num_chunks)[None], active - 1)

        def stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
            together = np.stack(parts, 1)
            whole = len(parts) == num_chunks and bool((chunks == np.arange(num_chunks)).all())
            return together if whole else together[np.arange(len(together))[:, None], chunks]

        return Rollout(
            self.first.instructions,
            self._observations(stacked),
            {name: stacked([made.record[name] for made in moves]) for name in moves[0].record},
            stacked(logprobs) if logprobs else None,
            stacked([made.actions for made in moves]),
            self._whole_frames(),
            steps.sum(1),
            last.success,
            last.failures,
        )

    def _observations(self, stacked: Callable[[Sequence[np.ndarray]], np.ndarray]) -> Observation | None:
        if not self.seen:
            return None
        images = {camera: stacked([seen.images[camera] for seen in self.seen]) for camera in self.first.images}
        states = [seen.state for seen in self.seen if seen.state is not None]
        return Observation(images, self.first.instructions, stacked(states) if states else None)

    def _whole_frames(self) -> np.ndarray | None:
        if self.frames is not None:
            shown = 1 + len(self.moves) * (self.frames.shape[1] - 1) // self.num_chunks
            self.frames[:, shown:] = self.frames[:, shown - 1 : shown]
        return self.frames
