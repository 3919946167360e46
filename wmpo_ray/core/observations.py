"""What is seen of a world, step by step: starts, observations, transitions, and whole rollouts.

M trajectories, B rows in a batch, N chunks per trajectory, K actions and frames per chunk, T = N*K, D action dimensions,
L log-probabilities per chunk (K*D for a policy of tokens, S*K*D for a denoising path of S steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MAIN_CAMERA = "main"  # of a world with a single one


@dataclass(frozen=True)
class StartState:
    """The start of a trajectory: a learned world continues from it, an environment rebuilds its scene from it."""

    frames: (
        np.ndarray
    )  # [n, H, W, 3] uint8 of the main camera, n <= c, the last one is the present; n = 0: not rendered
    instruction: str
    seed: int | None = None  # of the environment's scene
    task: str = ""  # of an environment with several tasks; "": its configured one
    saved_state: bytes | None = None  # the scene as the environment saved it; it wins over the seed


@dataclass(frozen=True)
class Observation:
    """What B policies observe at one step. The first image is the main camera's: worlds imagine it, judges watch it."""

    images: dict[str, np.ndarray]  # camera -> [B, H, W, 3] uint8
    instructions: tuple[str, ...]  # [B]
    state: np.ndarray | None = None  # [B, S] float32 proprioception

    @classmethod
    def of(cls, frames: np.ndarray, instructions: Sequence[str]) -> Observation:
        """From frames [B, H, W, 3] uint8 of the only camera."""
        return cls({MAIN_CAMERA: frames}, tuple(instructions))

    @classmethod
    def joined(cls, parts: Sequence[Observation]) -> Observation:
        """Those of several batches, one after the other."""
        states = [part.state for part in parts if part.state is not None]
        return cls(
            {camera: np.concatenate([part.images[camera] for part in parts]) for camera in parts[0].images},
            tuple(text for part in parts for text in part.instructions),
            np.concatenate(states) if states else None,
        )

    @property
    def frames(self) -> np.ndarray:
        """Images [B, H, W, 3] of the main camera."""
        return next(iter(self.images.values()))

    def __len__(self) -> int:
        return len(self.instructions)

    def with_rows(self, rows: np.ndarray, part: Observation) -> Observation:
        """This one with its rows [m], each at most once, as in `part`; the others stay as they are."""
        images = {camera: all_rows.copy() for camera, all_rows in self.images.items()}
        for camera, all_rows in images.items():
            all_rows[rows] = part.images[camera]
        texts, state = list(self.instructions), None if self.state is None else self.state.copy()
        for row, text in zip(rows.tolist(), part.instructions, strict=True):
            texts[row] = text
        if state is not None and part.state is not None:
            state[rows] = part.state
        return Observation(images, tuple(texts), state)

    def rows(self, index) -> Observation:
        """The rows at `index` (integers, a slice or a boolean mask)."""
        chosen = np.arange(len(self))[index]
        return Observation(
            {camera: images[chosen] for camera, images in self.images.items()},
            tuple(self.instructions[i] for i in chosen),
            None if self.state is None else self.state[chosen],
        )


@dataclass(frozen=True)
class Transition:
    """The result of one chunk of actions."""

    observation: Observation | None  # after the chunk; None where nothing was rendered
    frames: np.ndarray | None  # [B, K, H, W, 3] uint8, one after each action; None unless all were asked for
    done: np.ndarray  # [B] bool: the trajectory has ended, in this chunk or before; its frames hold still
    success: np.ndarray | None  # [B] bool so far; None from a world that does not know
    num_steps: np.ndarray  # [B] int64: actions of this chunk that were executed before the end
    failures: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # name -> [B] bool so far, where the world reports them


@dataclass(frozen=True)
class Rollout:
    """M trajectories of N decisions in some world."""

    instructions: tuple[str, ...]  # [M]
    observations: Observation | None  # images [M, N, H, W, 3] and state [M, N, S]: what the policy saw at each decision
    record: dict[str, np.ndarray]  # [M, N, ...] each; empty where no policy decided
    behavior_logprobs: np.ndarray | None  # [M, N, L] float32
    actions: np.ndarray  # [M, N, K, D] float32
    frames: np.ndarray | None  # [M, T+1, H, W, 3] uint8 of the main camera, the first one is the start
    lengths: np.ndarray  # [M] int64: actions executed before the end
    success: np.ndarray | None  # [M] bool; None from a world that does not know
    failures: dict[str, np.ndarray] = field(default_factory=dict)  # name -> [M] bool

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def flat_actions(self) -> np.ndarray:
        """Actions [M, T, D]."""
        return self.actions.reshape(len(self), -1, self.actions.shape[-1])
