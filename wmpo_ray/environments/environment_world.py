"""An environment as a `World`: for episodes of it, and as the perfect world model.

As a world model it is the control that separates a wrong world from a wrong learner: what a policy does not learn here
is not the world model's fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.core.interfaces import OF_ENVIRONMENTS, AbleEnvironment, ChunkSteps, Environment, FramesMode
from wmpo_ray.core.observations import Observation, StartState, Transition
from wmpo_ray.core.timeline import span


@dataclass(frozen=True, eq=False)
class EnvironmentState:
    """Where the scenes are: their starts [B], or the state before and the chunk of actions since, [B, K, D] float32."""

    starts: tuple[StartState, ...]
    before: EnvironmentState | None = None
    chunk: np.ndarray | None = None

    @property
    def chunks(self) -> tuple[np.ndarray, ...]:
        """Every chunk of actions since the starts."""
        found, state = [], self
        while state.before is not None and state.chunk is not None:
            found.append(state.chunk)
            state = state.before
        return tuple(reversed(found))


class EnvironmentWorld:
    """Steps an `Environment` (implements `interfaces.World`).

    It steps on from the scenes as they are. Only where the state that is passed is not the one they are in, it rebuilds
    them first, without rendering: from the scenes as the environment saved them, if it has the ability "restore", when
    that state was last left, else from the starts and the actions since. So any deterministic environment is a pure world,
    and several that take turns cost no step twice where scenes can be saved. Seeds are not used: an environment has no
    noise.
    """

    context_frames = 0

    def __init__(self, environment: Environment, chunk_length: int):
        self.environment = environment
        self.chunk_length = chunk_length
        self.abilities = environment.abilities - OF_ENVIRONMENTS
        self._present: EnvironmentState | None = None  # the state that the scenes are in
        self._saved: WeakKeyDictionary[EnvironmentState, list[bytes]] = (
            WeakKeyDictionary()
        )  # scenes of states that were left

    @property
    def horizon(self) -> int:
        return self.environment.horizon

    def start(self, starts: Sequence[StartState]) -> tuple[EnvironmentState, Observation]:
        """Place the scenes. Raises ValueError for a start that the environment cannot rebuild."""
        state = EnvironmentState(tuple(starts))
        self._return_to(state)
        return state, self.environment.observe()

    @torch.no_grad()
    def step_chunk(
        self, state: EnvironmentState, actions: Tensor, seeds: list[int], frames: FramesMode = "all"
    ) -> tuple[EnvironmentState, Transition]:
        """See `World`. Raises ValueError if K is not the chunk length."""
        if actions.shape[1] != self.chunk_length:
            raise ValueError(f"{actions.shape[1]} actions for a chunk of {self.chunk_length}; set rollout.chunk_length")
        chunk = actions.detach().cpu().float().numpy().copy()  # the caller's may change
        with span("simulate"):
            self._return_to(state)
            if "chunks" in self.environment.abilities:
                able = cast(AbleEnvironment, self.environment)
                return self._advance_together(state, lambda: able.advance_chunk(chunk, frames), frames)
            return self._advance(state, lambda step: chunk[:, step], frames)

    def step_expert(
        self, state: EnvironmentState, rng: np.random.Generator, noise: float, frames: FramesMode = "all"
    ) -> tuple[EnvironmentState, Transition]:
        """Let the script act for a chunk; its actions are the last chunk of the state. Needs the ability "expert".

        The script may remember what it did, so it can only go on from where it is.
        """
        assert state is self._present, "an expert acts from the start to the end, without a rollout in between"
        environment = cast(AbleEnvironment, self.environment)
        with span("simulate"):
            if "chunks" in environment.abilities:
                length = self.chunk_length
                return self._advance_together(
                    state, lambda: environment.expert_chunk(rng, noise, length, frames), frames
                )
            return self._advance(state, lambda step: environment.expert_action(rng, noise), frames)

    def detect_events(self, videos: np.ndarray) -> dict[str, np.ndarray]:
        """Events that frames [M, T+1, H, W, 3] show, name -> [M] bool. Needs the ability "events"."""
        return cast(AbleEnvironment, self.environment).detect_events(videos)

    def _return_to(self, state: EnvironmentState) -> None:
        if state is self._present:
            return
        if self._present is not None:
            self._save(self._present)
        self._present = None  # until all of it is done
        known, chunks = state, []
        while known not in self._saved and known.before is not None:
            chunks.append(known.chunk)
            known = known.before
        saved = self._saved.get(known)
        starts = state.starts
        if saved is not None:
            starts = tuple(replace(start, saved_state=each) for start, each in zip(starts, saved, strict=True))
        self.environment.restore(starts)
        for chunk in reversed(chunks):
            assert chunk is not None
            for step in range(chunk.shape[1]):
                self.environment.advance(chunk[:, step])
        if chunks:
            self._save(state)  # who has come back once may do so again
        self._present = state

    def _save(self, state: EnvironmentState) -> None:
        """Keep the scenes as they are now for as long as somebody has their state."""
        if "restore" in self.abilities and state.before is not None:
            self._saved[state] = cast(AbleEnvironment, self.environment).save()

    def _advance(
        self, state: EnvironmentState, choose: Callable[[int], np.ndarray], mode: FramesMode
    ) -> tuple[EnvironmentState, Transition]:
        """`choose`: step of the chunk -> actions [B, D]."""
        environment, shown, chosen = self.environment, [], []
        num_steps = np.zeros(len(state.starts), np.int64)
        self._present = None
        for step in range(self.chunk_length):
            num_steps += ~environment.terminated
            chosen.append(np.asarray(choose(step), np.float32))
            environment.advance(chosen[-1])
            if mode == "all" and step < self.chunk_length - 1:
                shown.append(environment.render())
        return self._advanced(state, num_steps, shown, np.stack(chosen, 1), mode)

    def _advance_together(
        self, state: EnvironmentState, steps: Callable[[], ChunkSteps], mode: FramesMode
    ) -> tuple[EnvironmentState, Transition]:
        """The same by an environment that makes all steps of a chunk at once."""
        self._present = None
        made = steps()
        shown = [] if made.frames is None else list(made.frames.swapaxes(0, 1))
        return self._advanced(state, made.num_steps, shown, made.actions, mode)

    def _advanced(
        self,
        state: EnvironmentState,
        num_steps: np.ndarray,
        shown: list[np.ndarray],
        actions: np.ndarray,
        mode: FramesMode,
    ) -> tuple[EnvironmentState, Transition]:
        """After a chunk of actions [B, K, D]; `shown`: frames [B, H, W, 3] after each step but the last."""
        environment = self.environment
        observation = environment.observe() if mode != "none" else None
        if mode == "all" and observation is not None:
            shown.append(observation.frames)
        transition = Transition(
            observation,
            np.stack(shown, 1) if shown else None,
            environment.terminated.copy(),
            environment.success.copy(),
            num_steps,
            {name: flags.copy() for name, flags in environment.failures.items()},
        )
        self._present = EnvironmentState(state.starts, state, actions)
        return self._present, transition
