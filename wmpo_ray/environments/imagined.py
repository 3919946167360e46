"""A world as a gymnasium environment: imagined episodes for any library that learns from environments.

A step is a chunk of actions. The reward is 1 at the chunk in which the world says that the task is done, by the same
decision that the training loop learns from, and 0 otherwise; success terminates, the last chunk of an episode truncates.

N environments side by side, K actions per chunk, D action dimensions, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wmpo_ray.core.interfaces import World
from wmpo_ray.core.observations import MAIN_CAMERA, Observation, StartState
from wmpo_ray.core.seeding import seed_for

INSTRUCTION, STATE = "instruction", "state"  # keys of an observation besides the cameras' names
Arrays = dict[str, np.ndarray]


@dataclass
class _Lane:
    """A world and the environments whose trajectories are rows of its state."""

    world: World
    rows: np.ndarray  # numbers of the environments
    state: Any = None
    seen: Observation | None = None


class ImaginedVectorEnv(VectorEnv[Arrays, np.ndarray, np.ndarray]):
    """N episodes side by side in a world.

    Observation: `main` and the other cameras [N, H, W, 3] uint8, `instruction` [N] the number of the text in
    `instructions`, and `state` [N, S] float32 where the world reports it. Action: [N, K, D] float32 in [-1, 1]. `info`
    has `success` [N] and, with autoreset in the same step, `final_obs` and `final_info`.

    An environment's episodes are a function of its own seed and of the actions: which start comes next, and the noise of
    the world. `reset(seed=s)` gives environment i the seed s + i; without one they go on. `make_world` is called once for
    a world whose states can be cut into trajectories (ability "slots"), otherwise once for each environment.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 gymnasium declares it so

    def __init__(
        self,
        make_world: Callable[[], World],
        starts: Sequence[StartState],
        num_envs: int,
        num_chunks: int,
        action_dim: int,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ):
        """Raises ValueError where there is no start, or a number is below 1."""
        if min(len(starts), num_envs, num_chunks) < 1:
            raise ValueError(
                f"{len(starts)} starts, {num_envs} environments, {num_chunks} chunks: each must be 1 or more"
            )
        world, self.num_envs = make_world(), num_envs
        everyone = np.arange(num_envs)
        if "slots" in world.abilities:
            self._lanes = [_Lane(world, everyone)]
        else:
            worlds = [world, *(make_world() for _ in range(num_envs - 1))]
            self._lanes = [_Lane(each, everyone[i : i + 1]) for i, each in enumerate(worlds)]
        self.starts, self.num_chunks = tuple(starts), num_chunks
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        _, first = world.start(self.starts[:1])
        self.instructions = tuple(sorted({*first.instructions, *(start.instruction for start in starts)}))
        self.single_observation_space = self._space_of(first)
        self.single_action_space = Box(-1.0, 1.0, (world.chunk_length, action_dim), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._seeds: list[int] | None = None  # of each environment
        self._episodes = np.zeros(num_envs, np.int64)  # begun so far
        self._chunks = np.zeros(num_envs, np.int64)  # of the present episodes
        self._ended = np.ones(num_envs, bool)
        self._success = np.zeros(num_envs, bool)

    # -- gymnasium's interface -----------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """Begin episodes: all, or those of `options["reset_mask"]` [N] bool. Raises ValueError for a wrong number of seeds."""
        self._set_seeds(seed)
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)), bool)
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f"reset_mask of shape {mask.shape}: it must be [{self.num_envs}] bool with one True at least"
            )
        self._begin(mask)
        return self._observation(), self._info()

    @torch.no_grad()
    def step(self, actions: np.ndarray) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One chunk of actions [N, K, D] of every environment. Raises ValueError before the first reset."""
        if self._seeds is None or any(lane.state is None for lane in self._lanes):
            raise ValueError("reset comes before the first step")
        begins = self._ended.copy() if self.autoreset_mode is AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        if self._ended.any() and not begins.any():
            raise ValueError(f"environments {np.flatnonzero(self._ended).tolist()} have ended: reset them first")
        rewards, terminated = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        if not begins.all():
            self._step(np.asarray(actions, np.float32), begins, rewards, terminated)
        self._chunks += ~begins
        truncated = ~begins & ~terminated & (self._chunks >= self.num_chunks)
        self._ended = terminated | truncated
        if begins.any():
            self._begin(begins)
        observation, info = self._observation(), self._info()
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            ended = self._ended.copy()
            self._begin(ended)
            info = {**self._info(), **self._final(ended, observation, info)}
            observation = self._observation()
        return observation, rewards, terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        for lane in getattr(self, "_lanes", ()):  # none where the arguments were refused
            lane.state = lane.seen = None

    # -- the parts -----------------------------------------------------------------------------------------------

    def _set_seeds(self, seed: int | Sequence[int | None] | None) -> None:
        if seed is None and self._seeds is None:
            super().reset(seed=None)
            seed = int(self.np_random.integers(2**31))
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
            seed = [int(seed) + i for i in range(self.num_envs)]
        if seed is None:
            return
        if len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} environments")
        before = self._seeds or [0] * self.num_envs
        self._seeds = [old if new is None else int(new) for old, new in zip(before, seed, strict=True)]
        self._episodes[[new is not None for new in seed]] = 0

    def _begin(self, mask: np.ndarray) -> None:
        """Begin the next episode of the environments of a mask [N] bool."""
        for lane in self._lanes:
            rows = np.flatnonzero(mask[lane.rows])
            if not len(rows):
                continue
            chosen = [self._next_start(int(number)) for number in lane.rows[rows]]
            # A whole batch, whoever begins: its shape decides how sums are rounded.
            state, seen = lane.world.start(chosen + chosen[-1:] * (len(lane.rows) - len(rows)))
            if lane.state is None or len(rows) == len(lane.rows):
                lane.state, lane.seen = state, seen
            else:
                assert lane.seen is not None
                fresh = np.arange(len(rows))
                lane.state = lane.state.with_rows(rows, state.rows(fresh))
                lane.seen = lane.seen.with_rows(rows, seen.rows(fresh))
        self._episodes[mask] += 1
        for values in (self._chunks, self._ended, self._success):
            values[mask] = 0

    def _next_start(self, number: int) -> StartState:
        assert self._seeds is not None
        key = seed_for(self._seeds[number], "imagined-start", int(self._episodes[number]))
        return self.starts[key % len(self.starts)]

    def _step(self, actions: np.ndarray, begins: np.ndarray, rewards: np.ndarray, terminated: np.ndarray) -> None:
        """Imagine a chunk; in the places of environments that only begin, copies of another fill the batch."""
        assert self._seeds is not None
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions of shape {actions.shape}: they must be {self.action_space.shape}")
        clipped = torch.from_numpy(actions.clip(-1, 1))
        for lane in self._lanes:
            rows = lane.rows
            if begins[rows].all():
                continue
            if begins[rows].any():
                lane.state = lane.state.rows(np.where(begins[rows], np.argmin(begins[rows]), np.arange(len(rows))))
            seeds = [
                seed_for(self._seeds[i], "imagined-step", int(self._episodes[i]), int(self._chunks[i])) for i in rows
            ]
            lane.state, made = lane.world.step_chunk(lane.state, clipped[rows], seeds, "last")
            assert made.success is not None and made.observation is not None, "this world does not say what succeeded"
            lane.seen, going = made.observation, ~begins[rows]
            self._success[rows] = made.success & going
            rewards[rows] = self._success[rows]
            terminated[rows] = made.done & going

    def _observation(self) -> Arrays:
        found = {name: np.zeros(space.shape, space.dtype) for name, space in self.observation_space.items()}  # type: ignore[attr-defined]
        for lane in self._lanes:
            assert lane.seen is not None
            for camera, images in lane.seen.images.items():
                found[camera][lane.rows] = images
            found[INSTRUCTION][lane.rows] = [self.instructions.index(text) for text in lane.seen.instructions]
            if lane.seen.state is not None:
                found[STATE][lane.rows] = lane.seen.state
        return found

    def _info(self) -> dict[str, Any]:
        return {"success": self._success.copy(), "_success": np.ones(self.num_envs, bool)}

    def _final(self, ended: np.ndarray, observation: Arrays, info: dict[str, Any]) -> dict[str, Any]:
        """What gymnasium wants of episodes that ended in the step in which others began."""
        last = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(ended):
            last[i] = {name: values[i] for name, values in observation.items()}
        final = {"success": info["success"], "_success": ended.copy()}
        return {"final_obs": last, "_final_obs": ended.copy(), "final_info": final, "_final_info": ended.copy()}

    def _space_of(self, first: Observation) -> Dict:
        spaces: dict[str, gymnasium.Space[Any]] = {
            camera: Box(0, 255, images.shape[1:], np.uint8) for camera, images in first.images.items()
        }
        if first.state is not None:
            spaces[STATE] = Box(-np.inf, np.inf, first.state.shape[1:], np.float32)
        return Dict(spaces | {INSTRUCTION: Discrete(len(self.instructions))})


class ImaginedEnv(gymnasium.Env[Arrays, np.ndarray]):
    """One environment of an `ImaginedVectorEnv` alone, as `gymnasium.Env`: its first episodes are those of the seed there."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012 gymnasium declares it so

    def __init__(self, vector: ImaginedVectorEnv, render_mode: str | None = None):
        """`vector`: of one environment, with autoreset disabled."""
        assert vector.num_envs == 1 and vector.autoreset_mode is AutoresetMode.DISABLED
        self.vector, self.render_mode = vector, render_mode
        self.observation_space, self.action_space = vector.single_observation_space, vector.single_action_space
        self._seen: Arrays = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        observation, info = self.vector.reset(seed=seed)
        return self._first(observation), {"success": bool(info["success"][0])}

    def step(self, action: np.ndarray):
        observation, rewards, terminated, truncated, info = self.vector.step(np.asarray(action)[None])
        success = {"success": bool(info["success"][0])}
        return self._first(observation), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), success

    def render(self) -> Any:
        """What the main camera sees, [H, W, 3] uint8, with render mode `rgb_array`; None without one."""
        return self._seen[MAIN_CAMERA] if self.render_mode == "rgb_array" else None

    def _first(self, observation: Arrays) -> Arrays:
        self._seen = {name: values[0] for name, values in observation.items()}
        return self._seen
