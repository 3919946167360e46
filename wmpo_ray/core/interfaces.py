"""The four things that can be exchanged. Implementations are named in `wmpo_ray/registry.py`.

B trajectories in a batch, K actions and frames per chunk, D action dimensions, L = K*D tokens, frames uint8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor
from torch.nn import Module, Parameter

from wmpo_ray.core.types import Scores, StartState


class ActionChunk(NamedTuple):
    tokens: Tensor  # [B, L] int64
    logprobs: Tensor  # [B, L] float32, temperature applied
    actions: Tensor  # [B, K, D] float32 in [-1, 1]


@runtime_checkable
class Policy(Protocol):
    """A vision-language-action policy that decodes a whole chunk of tokens in parallel; also a `torch.nn.Module`."""

    chunk_length: int
    action_dim: int

    def act(self, frames: np.ndarray, instructions: Sequence[str], temperature: float, seeds: list[int]) -> ActionChunk:
        """Sample from frames [B, H, W, 3], one seed each; temperature 0 takes the likeliest token."""

    def log_prob(self, frames: np.ndarray, instructions: Sequence[str], tokens: Tensor, temperature: float) -> Tensor:
        """Differentiable log-probabilities [B, L] of given tokens [B, L]."""

    def cloning_loss(self, frames: np.ndarray, instructions: Sequence[str], actions: Tensor) -> Tensor:
        """Differentiable mean cross-entropy of the tokens of actions [B, K, D] in [-1, 1]."""

    def save_pretrained(self, path: str | Path) -> None: ...

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...

    def parameters(self) -> Iterator[Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> Any: ...

    def eval(self) -> Any: ...


@runtime_checkable
class ActionEncoder(Protocol):
    """A policy that can say what it would have had to sample to act as somebody else did."""

    def encode(self, actions: Tensor) -> dict[str, Tensor]:
        """Record, each [B, ...] on the CPU, of actions [B, K, D] in [-1, 1], as `log_prob` takes it."""


@runtime_checkable
class WorldModel(Protocol):
    """Imagines the next K frames from its state and K actions."""

    chunk_length: int

    def start(self, starts: Sequence[StartState]) -> Any:
        """The state before the first chunk."""

    def imagine_chunk(self, state: Any, actions: Tensor, seeds: list[int]) -> tuple[Any, Tensor]:
        """actions [B, K, D], one noise seed for each trajectory -> (next state, frames [B, K, H, W, 3] uint8)."""


@runtime_checkable
class RewardModel(Protocol):
    """Says how likely the end of a clip is a success."""

    network: Module
    clip_length: int
    threshold: float

    def probabilities(self, videos: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """videos [M, T+1, H, W, 3] -> probability [M, W] of each window of `clip_length` frames, stride 1."""

    def decide(self, probabilities: np.ndarray, min_steps: int, horizon: int) -> Scores:
        """The one decision about M videos of `horizon` + 1 frames, from what `probabilities` gave."""

    def save(self, path: str | Path) -> None: ...


@runtime_checkable
class Environment(Protocol):
    """A vectorised real environment."""

    horizon: int
    action_dim: int
    frame_shape: tuple[int, int, int]
    success: np.ndarray  # [N] bool

    def reset(self, seeds: Sequence[int] | np.ndarray, render: bool = True) -> np.ndarray | None:
        """One scene for each seed -> frames [N, H, W, 3], or None without `render`."""

    def step(self, actions: np.ndarray, render: bool = True) -> tuple[np.ndarray | None, np.ndarray]:
        """actions [N, D] in [-1, 1] -> frames [N, H, W, 3] (None without `render`), terminated [N] bool."""

    @property
    def instruction(self) -> list[str]: ...

    def expert_action(self, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray: ...
