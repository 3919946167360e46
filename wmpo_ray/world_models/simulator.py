"""The perfect world: the real environment behind the `WorldModel` protocol.

It is the control that separates a wrong world from a wrong learner: what a policy does not learn here is not the world
model's fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.core.interfaces import Environment
from wmpo_ray.core.timeline import span
from wmpo_ray.core.types import StartState


@dataclass(frozen=True)
class SimulatorHistory:
    """State between chunks: the scenes' seeds [B] int64 and every action so far [B, t, D] float32."""

    seeds: Tensor
    actions: Tensor

    def select(self, rows: Tensor) -> SimulatorHistory:
        return SimulatorHistory(self.seeds[rows], self.actions[rows])


class SimulatorWorldModel:
    """Replays the real environment (implements `interfaces.WorldModel`).

    The state is the history and the scene is rebuilt from it for every chunk. This needs no copy of an environment's
    insides, works for any deterministic `Environment`, and costs N/2 extra steps for each step, without rendering.
    A scene that has ended stays as it is, as far as the environment's own `step` says so.
    """

    kind = "simulator"

    def __init__(self, environment_factory: Callable[[], Environment], chunk_length: int):
        self.environment = environment_factory()
        self.chunk_length = chunk_length

    def start(self, starts: Sequence[StartState]) -> SimulatorHistory:
        """The scenes of the starts' seeds; raises ValueError for a start whose scene is unknown."""
        unknown = [i for i, start in enumerate(starts) if start.seed is None]
        if unknown:
            raise ValueError(
                f"start {unknown[0]} has no scene seed (seed=None), so that the simulator cannot rebuild it; "
                'start from recorded episodes or set world_model.kind = "diffusion"'
            )
        seeds = torch.tensor([start.seed for start in starts], dtype=torch.int64)
        return SimulatorHistory(seeds, torch.zeros(len(seeds), 0, self.environment.action_dim))

    @torch.no_grad()
    def imagine_chunk(
        self, state: SimulatorHistory, actions: Tensor, seeds: list[int]
    ) -> tuple[SimulatorHistory, Tensor]:
        """actions [B, K, D] in [-1, 1] -> next state, frames [B, K, H, W, 3] uint8.

        `seeds` are not used: the real environment has no noise. Raises ValueError if K is not the chunk length.
        """
        if actions.shape[1] != self.chunk_length:
            raise ValueError(f"{actions.shape[1]} actions for a chunk of {self.chunk_length}; set rollout.chunk_length")
        with span("simulate"):
            self.environment.reset(state.seeds.numpy(), render=False)
            for action in state.actions.numpy().swapaxes(0, 1):
                self.environment.step(action, render=False)
        history = torch.cat([state.actions, actions.detach().cpu().float()], 1)
        newest = history[:, -self.chunk_length :].numpy().swapaxes(0, 1)
        with span("decode"):
            frames = np.stack([self._frames_after(action) for action in newest], 1)
        return SimulatorHistory(state.seeds, history), torch.from_numpy(frames)

    def _frames_after(self, action: np.ndarray) -> np.ndarray:
        frames, _ = self.environment.step(action)
        assert frames is not None
        return frames
