"""The interfaces of exchangeable parts. `wmpo_ray/kinds.py` lists the implementations.

B trajectories in a batch, K actions and frames per chunk, D action dimensions, L log-probabilities per chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor
from torch.nn import Module, Parameter

from wmpo_ray.core.observations import Observation, StartState, Transition
from wmpo_ray.core.types import Scores, Videos

FramesMode = Literal["all", "last", "none"]
Seeds = Sequence[int] | None
AGENT = "agent"  # in the positions of an environment: what the actions move; every other name is an object
OF_ENVIRONMENTS = frozenset({"positions", "locate", "failures", "chunks"})  # abilities that no world has


class Decision(NamedTuple):
    """A sampled chunk of actions for each row, and what `Policy.log_prob` needs to judge the sample again.

    The record is the sample as the policy drew it, in names, shapes and dtypes (int64 or float32) that are its own: its
    tokens {"tokens": [B, L] int64}, or its denoising path {"path": [B, S+1, K, D] float32}. Everyone else carries it.
    """

    actions: Tensor  # [B, K, D] float32 in [-1, 1]
    record: dict[str, Tensor]  # [B, ...] each
    logprobs: Tensor  # [B, L] float32, temperature applied; S*K*D of a path, one step after the other


@runtime_checkable
class Policy(Protocol):
    """A vision-language-action policy that decides on a whole chunk at once; also a `torch.nn.Module`."""

    chunk_length: int
    action_dim: int

    def act(self, observation: Observation, temperature: float, seeds: list[int]) -> Decision:
        """Sample one chunk for each of B rows, one seed each; temperature 0 takes the likeliest actions."""

    def log_prob(self, observation: Observation, record: dict[str, Tensor], temperature: float) -> Tensor:
        """Differentiable log-probabilities [B, L] of the recorded decisions."""

    def executed(self, num_actions: Tensor) -> Tensor:
        """Which log-probabilities [B, L] bool belong to the first `num_actions` [B] int64 actions of each chunk."""

    def cloning_loss(self, observation: Observation, actions: Tensor, seeds: Seeds = None) -> Tensor:
        """Differentiable mean loss of imitating actions [B, K, D] in [-1, 1].

        seeds: one for each row, for the noise of a loss that draws some, and for nothing else; None: 0 to B - 1.
        """

    def save_pretrained(self, path: str | Path) -> None: ...

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...

    def parameters(self) -> Iterator[Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> Any: ...

    def eval(self) -> Any: ...


@runtime_checkable
class SampledInSteps(Protocol):
    """A policy that samples a chunk in several steps, each with a density of its own, such as those of a denoising path."""

    @property
    def num_sampling_steps(self) -> int:
        """S: log-probabilities [B, L] are S equal parts, one for each step."""


@runtime_checkable
class ActionEncoder(Protocol):
    """A policy that can compute the record of actions that another policy or an expert took."""

    def encode(self, actions: Tensor) -> dict[str, Tensor]:
        """Record, each [B, ...] on the CPU, of actions [B, K, D] in [-1, 1], as `log_prob` takes it."""


@runtime_checkable
class World(Protocol):
    """Where actions have consequences: a learned world model, a simulator, or an environment somewhere else.

    `abilities` is what a caller may ask for besides:
        imagines: frames are predicted from the frames of a start alone, so that any moment of a video can be one
        restore: starts may hold a `saved_state`
        expert: `step_expert` acts by a script that sees the scene
        events: `detect_events` reads events from the frames of videos
        render: frames can be rendered, so that `frames` may be other than "none"
        reconstructs: `reconstruct` passes frames through its codec, which is the best that it could imagine
        slots: its states can be cut into trajectories and put together again, by their `rows` and `with_rows`
    """

    chunk_length: int
    context_frames: int  # how many of the newest frames of a start it reads; 0: it rebuilds the scene without them
    abilities: frozenset[str]

    def start(self, starts: Sequence[StartState]) -> tuple[Any, Observation]:
        """The state before the first chunk and what is seen there. Raises ValueError for a start it cannot rebuild."""

    def step_chunk(
        self, state: Any, actions: Tensor, seeds: list[int], frames: FramesMode = "all"
    ) -> tuple[Any, Transition]:
        """The state after actions [B, K, D] in [-1, 1], and what they did; one seed for the noise of each row.

        A pure function: the same state, actions and seeds give the same result whatever was stepped in between, and the
        state that was given can be used again. A row that has ended stays as it is, whatever is done.
        `frames`: "all" renders one after each action, "last" only the observation after the chunk, "none" nothing.
        """


@runtime_checkable
class Judge(Protocol):
    """Decides about trajectories; it drives the reward, the finish step and every metric."""

    def judge(self, videos: Videos) -> Scores:
        """One decision for each video."""


@runtime_checkable
class RewardModel(Protocol):
    """Success probability of each clip window of a video."""

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
    """N scenes of a simulator stepped together: all that a new simulator has to bring.

    `environments.environment_world.EnvironmentWorld` makes a `World` of it. An environment is deterministic: the same
    start and actions give the same scene to the last bit, whatever other scenes are stepped beside it. The current
    state of the scenes is in its attributes:
        terminated: the scene has ended; `advance` no longer changes it, and its frames hold still
        success: the task is done; for good where success ends the episode, which is what counts
        failures: what has gone wrong so far, by name; may be empty
    It is made from the whole section `[environment]` of the configuration by the classmethod `from_config`.
    """

    horizon: int  # steps of an episode; the caller must not exceed it
    action_dim: int
    frame_shape: tuple[int, int, int]  # H, W, 3 of the main camera
    abilities: frozenset[str]  # of "expert", "events", "restore", "render", see `World`, and those of `AbleEnvironment`
    terminated: np.ndarray  # [N] bool
    success: np.ndarray  # [N] bool
    failures: dict[str, np.ndarray]  # name -> [N] bool

    def restore(self, starts: Sequence[StartState]) -> None:
        """Place one scene for each start, from its saved state (ability "restore") or else its seed; renders nothing.

        Raises ValueError for a start that has neither, or none that this environment can use.
        """

    def advance(self, actions: np.ndarray) -> None:
        """Move every scene that has not ended by one step of actions [N, D] in [-1, 1]; renders nothing."""

    def observe(self) -> Observation:
        """Render what the policy sees now: all cameras, instructions, proprioception."""

    def render(self) -> np.ndarray:
        """Only the main camera's frames [N, H, W, 3] uint8, for the steps between two decisions."""


class Play(NamedTuple):
    """N episodes of T steps in which nothing was to be reached."""

    frames: np.ndarray  # [N, T+1, H, W, 3] uint8
    actions: np.ndarray  # [N, T, D] float32 in [-1, 1]
    contact: np.ndarray  # [N, T] bool: the step decides what comes of the episode, such as a grasp or a near miss
    instructions: tuple[str, ...]  # [N]: those of the scenes, which nobody follows


class ChunkSteps(NamedTuple):
    """What K steps of N scenes did, where they were made together."""

    num_steps: np.ndarray  # [N] int64: made before the end of each scene
    frames: np.ndarray | None  # [N, K - 1, H, W, 3] uint8: after each step but the last; None unless all were asked for
    actions: np.ndarray  # [N, K, D] float32


class AbleEnvironment(Environment, Protocol):
    """What an environment also has, method by method, where it names the ability."""

    def expert_action(self, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
        """Ability "expert": next actions [N, D] of a script that sees the scenes; called before every `advance`."""

    def advance_chunk(self, actions: np.ndarray, frames: FramesMode) -> ChunkSteps:
        """Ability "chunks": `advance` for each of the actions [N, K, D], for who is far away. `observe` shows the end."""

    def expert_chunk(self, rng: np.random.Generator, noise: float, length: int, frames: FramesMode) -> ChunkSteps:
        """Abilities "chunks" and "expert": the same with the script's actions, which draws from `rng` as it would here."""

    def save(self) -> list[bytes]:
        """Ability "restore": each scene as it is now, for `StartState.saved_state`."""

    def detect_events(self, videos: np.ndarray) -> dict[str, np.ndarray]:
        """Ability "events": what pixels [M, T+1, H, W, 3] of real or imagined videos show, name -> [M] bool."""

    # What follows measures how true imagined videos are. An environment may offer any of it.

    position_unit: str  # of "positions" and "locate", such as "pixels"

    def positions(self) -> dict[str, np.ndarray]:
        """Ability "positions": where agent and objects are now, name -> [N, 2 or 3] float, `AGENT` among the names."""

    def locate(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Ability "locate": the same read from frames [..., H, W, 3] -> [..., 2 or 3]; NaN where nothing of it shows."""

    def detect_failures(
        self, videos: np.ndarray, actions: np.ndarray, instructions: Sequence[str], lengths: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Ability "failures": `failures` as pixels show them, name -> [M] bool.

        videos [M, T+1, H, W, 3] real or imagined, actions [M, T, D], lengths [M]: what comes after them does not count.
        """
