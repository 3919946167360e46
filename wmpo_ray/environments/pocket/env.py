"""The embedded task: grasp a block and push it into the pocket that the instruction names.

Seen from above, 16x16 pixels, vectorised over scenes with numpy. An action is an absolute target (x, y, grip) in
[-1, 1]; the gripper moves towards it at a bounded speed and closes while grip > 0. What can go wrong is visible: a
closed gripper beside the block (miss), a block stuck at the wall (jam), a block let go on the way (drop), a block in
the other pocket (wrong pocket). All of it can be recovered from: open and grasp again, back off, pull it out.

The task "place" is the harder one: success also takes letting go of the block, deep enough, without touching it again
for `PLACE_DWELL` frames. Scenes, motion and pixels are those of the task without a name, so a world model of one is a
world model of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import AGENT
from wmpo_ray.core.observations import Observation, StartState
from wmpo_ray.core.section import shown
from wmpo_ray.environments.finite_actions import check_finite
from wmpo_ray.environments.pocket.geometry import (
    BLOCK_HALF,
    FRAME_SIZE,
    GRASP_REACH,
    INSTRUCTIONS,
    MAX_SPEED,
    PLACE_DWELL,
    POCKET_END_X,
    POCKET_TOLERANCE,
    SEATED_X,
    TASKS,
    WALL_X,
)
from wmpo_ray.environments.pocket.rendering import Look, draw, draw_backdrop
from wmpo_ray.environments.pocket.sight import PocketSight
from wmpo_ray.environments.simulators.saved_scenes import check_starts_are_scenes, pack_scene, unpack_scene

Disruption = Literal["none", "position", "background", "texture"]
LOOKS: dict[str, Look] = {
    "none": Look(),
    "position": Look(),
    "background": Look(background_checks=0.5),
    "texture": Look(block_stripes=0.6),
}
FAILURES = ("miss", "jam", "drop", "wrong_pocket")


class PocketState(NamedTuple):
    """What rendering needs of N scenes: positions [N, 2] float64, flags [N] bool."""

    gripper: np.ndarray
    block: np.ndarray
    closed: np.ndarray
    held: np.ndarray


class PocketEnvironment(PocketSight):
    """N independent scenes stepped together (implements `wmpo_ray.core.interfaces.Environment`).

    `reset` and `step` render as they go, for interactive use.
    """

    abilities: frozenset[str] = frozenset({"expert", "events", "restore", "render", "positions", "locate", "failures"})
    action_dim = 3
    frame_shape = (FRAME_SIZE, FRAME_SIZE, 3)
    instructions = INSTRUCTIONS
    tasks: tuple[str, ...] = ("", "pocket", "place")  # that this class is the environment of
    failure_names: tuple[str, ...] = FAILURES

    def __init__(
        self, horizon: int = 32, disruption: Disruption = "none", ends_on_success: bool = True, task: str = ""
    ):
        if disruption not in LOOKS:
            raise ValueError(f"disruption={disruption!r}: known are {sorted(LOOKS)}; set environment.disruption")
        if task not in self.tasks:
            raise ValueError(f"task={task!r}: known are {list(self.tasks)}; set environment.task")
        self.horizon = horizon
        self.task = task
        self.disruption = disruption
        self.look = LOOKS[disruption]
        self.ends_on_success = ends_on_success
        self.reset((), render=False)  # no scene yet, but every attribute is there

    @classmethod
    def from_config(cls, config: EnvironmentConfig) -> PocketEnvironment:
        """Raises ConfigError for a task that is not known."""
        if config.task not in cls.tasks:
            raise ConfigError(f"environment.task = {shown(config.task)}: known tasks of pocket are {list(TASKS)}")
        return cls(config.horizon, config.disruption, task=config.task)

    # -- episodes ------------------------------------------------------------------------------------------------

    def reset(self, seeds: Sequence[int] | np.ndarray, render: bool = True) -> np.ndarray | None:
        """Place one scene for each seed; the same seed is always the same scene.

        Returns frames [N, H, W, 3] uint8, or None without `render`.
        """
        n = len(seeds)
        self.gripper, self.block, self.pocket_y = np.zeros((3, n, 2))
        self.pocket_colour = np.zeros((n, 2), np.int64)
        self.goal = np.zeros(n, np.int64)
        for i, seed in enumerate(seeds):
            self._place(i, np.random.default_rng(int(seed)))
        self.closed, self.held, self.terminated, self.success = np.zeros((4, n), bool)
        self.failures = {name: np.zeros(n, bool) for name in self.failure_names}
        self.num_steps = np.zeros(n, np.int64)
        self._num_placed = np.zeros(n, np.int64)  # frames in a row in which the block was in place
        self._inserting = np.zeros(n, bool)
        self._backdrop: np.ndarray | None = None
        return self.render() if render else None

    def _place(self, i: int, rng: np.random.Generator) -> None:
        # A displaced start is drawn from a band just beyond the one that the undisturbed task uses.
        low, high = ([2.0, 2.5], [7.5, 13.5]) if self.disruption != "position" else ([7.5, 2.0], [8.0, 14.0])
        self.block[i] = rng.uniform(low, high)
        while True:
            self.gripper[i] = rng.uniform([1.5, 1.5], [9.0, 14.5])
            if np.abs(self.gripper[i] - self.block[i]).max() > 2.5:
                break
        self.pocket_y[i] = [rng.uniform(3.0, 4.8), rng.uniform(11.2, 13.0)]
        self.pocket_colour[i] = rng.permutation(2)
        self.goal[i] = rng.integers(2)

    def restore(self, starts: Sequence[StartState]) -> None:
        """One scene for each start: as `save` left it, else that of its seed. Raises ValueError for neither."""
        check_starts_are_scenes(starts)
        self.reset([start.seed or 0 for start in starts], render=False)
        for i, start in enumerate(starts):
            if start.saved_state is not None:
                self._load(i, start.saved_state)

    def save(self) -> list[bytes]:
        """Each scene as it is now, for `StartState.saved_state`."""
        return [pack_scene(self._scene(i)) for i in range(len(self.goal))]

    def _load(self, i: int, saved: bytes) -> None:
        loaded = unpack_scene(i, saved, self._scene(i))
        for name, values in self._parts().items():
            values[i] = loaded[name]

    def _scene(self, i: int) -> dict[str, np.ndarray]:
        return {name: values[i] for name, values in self._parts().items()}

    def _parts(self) -> dict[str, np.ndarray]:
        """Everything that a scene consists of, [N, ...] each."""
        names = ("gripper", "block", "pocket_y", "pocket_colour", "goal", "closed", "held", "terminated", "success")
        parts = {name: getattr(self, name) for name in (*names, "num_steps", "_num_placed", "_inserting")}
        return parts | {f"failures.{name}": flags for name, flags in self.failures.items()}

    def step(self, actions: np.ndarray, render: bool = True) -> tuple[np.ndarray | None, np.ndarray]:
        """`advance`; returns frames [N, H, W, 3] uint8 (None without `render`) and terminated [N] bool."""
        self.advance(actions)
        return (self.render() if render else None), self.terminated.copy()

    def advance(self, actions: np.ndarray) -> None:
        """Move every scene that has not ended by one frame; actions [N, 3] in [-1, 1] are clipped.

        Raises ValueError for numbers that are not finite.
        """
        check_finite(actions)
        actions = np.clip(actions, -1.0, 1.0)
        active = ~self.terminated
        close = actions[:, 2] > 0
        self._move(actions[:, :2], active)
        self._grip(close, active)
        self.num_steps += active
        self._judge()

    def _move(self, target: np.ndarray, active: np.ndarray) -> None:
        half = FRAME_SIZE / 2
        delta = np.clip(half + half * target - self.gripper, -MAX_SPEED, MAX_SPEED) * active[:, None]
        new = np.clip(self.gripper + delta, 1.0, FRAME_SIZE - 1.0)
        x, y = self.gripper.T
        new_x, new_y = new[:, 0], new[:, 1]
        held = self.held
        new_x = np.where(held, np.clip(new_x, BLOCK_HALF, POCKET_END_X - BLOCK_HALF), new_x)
        new_y = np.where(held, np.clip(new_y, BLOCK_HALF, FRAME_SIZE - BLOCK_HALF), new_y)
        # A held block inside the wall stays between the sides of its pocket.
        inside = held & (x + BLOCK_HALF > WALL_X + 1e-6)
        side = self.pocket_y[np.arange(len(x)), self._nearest_pocket(y)]
        new_y = np.where(inside, np.clip(new_y, side - POCKET_TOLERANCE, side + POCKET_TOLERANCE), new_y)
        entering = held & ~inside & (new_x + BLOCK_HALF > WALL_X + 1e-6)
        fits = (np.abs(new_y[:, None] - self.pocket_y) <= POCKET_TOLERANCE).any(1)
        jam = entering & ~fits
        # Pressed against the wall the block sticks sideways too; backing off frees it.
        new_x = np.where(jam, WALL_X - BLOCK_HALF, new_x)
        new_y = np.where(jam, y, new_y)
        self.failures["jam"] |= jam & active
        self.gripper = np.where(active[:, None], np.stack([new_x, new_y], 1), self.gripper)
        self.block = np.where((held & active)[:, None], self.gripper, self.block)

    def _nearest_pocket(self, y: np.ndarray) -> np.ndarray:
        return np.argmin(np.abs(y[:, None] - self.pocket_y), 1)

    def _grip(self, close: np.ndarray, active: np.ndarray) -> None:
        """The gripper opens and closes at the end of the move, at the position that this frame shows."""
        closing = close & ~self.closed & active
        near = (np.abs(self.gripper - self.block) < GRASP_REACH).all(1)
        grasp = closing & near
        self.failures["miss"] |= closing & ~near
        self.failures["drop"] |= active & self.held & ~close & self._is_astray()
        self.held = np.where(active, (self.held | grasp) & close, self.held)
        self.closed = np.where(active, close, self.closed)
        self._snap(grasp)

    def _is_astray(self) -> np.ndarray:
        """Scenes [N] in which the block is where it must not be let go."""
        return self.block[:, 0] < SEATED_X

    def _snap(self, grasp: np.ndarray) -> None:
        """Gripper and block meet at the grasp, without pushing the block into the wall or out of its pocket."""
        in_wall = self.block[:, 0] + BLOCK_HALF > WALL_X
        limit_x = np.where(in_wall, self.block[:, 0], WALL_X - BLOCK_HALF)
        x = np.minimum(self.gripper[:, 0], limit_x)
        y = np.clip(self.gripper[:, 1], BLOCK_HALF, FRAME_SIZE - BLOCK_HALF)
        side = self.pocket_y[np.arange(len(y)), self._nearest_pocket(self.block[:, 1])]
        y = np.where(in_wall, np.clip(y, side - POCKET_TOLERANCE, side + POCKET_TOLERANCE), y)
        self.block = np.where(grasp[:, None], np.stack([x, y], 1), self.block)
        self.gripper = np.where(grasp[:, None], self.block, self.gripper)

    def _judge(self) -> None:
        seated = self.block[:, 0] >= SEATED_X
        right = self._at_goal_height()
        self.failures["wrong_pocket"] |= seated & ~right
        placed = seated & right & ~(self.held & (self.task == "place"))
        self._num_placed = np.where(self.terminated, self._num_placed, np.where(placed, self._num_placed + 1, 0))
        dwell = PLACE_DWELL if self.task == "place" else 1
        self.success = self.success & self.terminated | (self._num_placed >= dwell)
        if self.ends_on_success:
            self.terminated = self.terminated | self.success

    def _at_goal_height(self) -> np.ndarray:
        return np.abs(self.block[:, 1] - self.goal_y) <= POCKET_TOLERANCE + 0.01

    # -- views ---------------------------------------------------------------------------------------------------

    @property
    def goal_y(self) -> np.ndarray:
        """Height [N] of the pocket that the instruction names."""
        return self.pocket_y[np.arange(len(self.goal)), np.argmax(self.pocket_colour == self.goal[:, None], 1)]

    @property
    def instruction(self) -> list[str]:
        return [self.instructions[goal] for goal in self.goal]

    def state(self) -> PocketState:
        return PocketState(self.gripper.copy(), self.block.copy(), self.closed.copy(), self.held.copy())

    def backdrop(self) -> np.ndarray:
        if self._backdrop is None:
            self._backdrop = draw_backdrop(self.pocket_y, self.pocket_colour, self.look)
        return self._backdrop

    def observe(self) -> Observation:
        return Observation.of(self.render(), self.instruction)

    def render(self) -> np.ndarray:
        return draw(self.backdrop(), *self.state(), self.look)

    def positions(self) -> dict[str, np.ndarray]:
        """Centres [N, 2] of gripper and block, in pixels."""
        return {AGENT: self.gripper.copy(), "block": self.block.copy()}

    # -- the scripted expert -------------------------------------------------------------------------------------

    def expert_action(self, rng: np.random.Generator, noise: float = 0.2) -> np.ndarray:
        """Actions [N, 3] of a controller that sees the state; `noise` in pixels is added to its targets."""
        goal_y = self.goal_y
        aligned = (np.abs(self.gripper[:, 1] - goal_y) < 0.5) & (self.gripper[:, 0] > 6.5)
        self._inserting = self.held & (self._inserting | aligned)
        before_wall = np.stack([np.full(len(goal_y), 7.5), goal_y], 1)
        in_pocket = np.stack([np.full(len(goal_y), 14.5), goal_y], 1)
        target = np.where(self._inserting[:, None], in_pocket, before_wall)
        target = np.where(self.held[:, None], target, self.block)
        delta = target - self.gripper
        delta *= np.minimum(1.0, 1.5 / np.maximum(np.abs(delta).max(1, keepdims=True), 1e-6))
        goal = self.gripper + delta
        near = (np.abs(self.block - goal) < 0.6).all(1)
        half = FRAME_SIZE / 2
        position = (goal + rng.normal(0, noise, goal.shape) - half) / half
        grip = np.where((self.held | (near & ~self.closed)) & ~self._can_let_go(), 0.6, -0.6)
        grip = grip + rng.normal(0, 0.1, len(goal))
        return np.clip(np.concatenate([position, grip[:, None]], 1), -1, 1).astype(np.float32)

    def _can_let_go(self) -> np.ndarray:
        """Scenes [N] in which the block is where the task "place" wants it, with room to spare."""
        return (self.block[:, 0] >= SEATED_X + 0.5) & self._at_goal_height() & (self.task == "place")
