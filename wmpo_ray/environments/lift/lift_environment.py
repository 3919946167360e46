"""A small Lift for machines without a GPU: robosuite's physics and gripper, two views of 24 x 12 pixels, 20 actions.

An action is where the hand has to be within the box that is seen, and whether it closes. The arm and the hand are not
drawn, only fingers, cube and table: a picture of 24 pixels has room for what decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.observations import Observation, StartState
from wmpo_ray.environments.lift.lift_play import LiftPlay
from wmpo_ray.environments.lift.lift_scene import LiftScene
from wmpo_ray.environments.lift.lift_script import LiftScript
from wmpo_ray.environments.lift.lift_settings import ACTION_DIM, INSTRUCTION, SIZE, LiftConfig
from wmpo_ray.environments.lift.lift_view import LiftView, cube_rows
from wmpo_ray.environments.robosuite.simulator import SceneState

FAILURES = ("no_grasp", "drop")
LIFTED_ROW, SEEN = 7.9, 1.2  # pixels from a view's top above which the cube is lifted; pixels of it that must be seen


class LiftEnvironment:
    """N scenes in one simulator (implements `wmpo_ray.core.interfaces.AbleEnvironment`).

    Success is the cube's middle more than 4 cm above the table after an action. Failures:
        no_grasp: the fingers never held the cube
        drop: they held it, and then did not
    """

    abilities: frozenset[str] = frozenset({"expert", "events", "restore", "render"})
    action_dim = ACTION_DIM
    frame_shape = (SIZE, SIZE, 3)
    instructions = (INSTRUCTION,)

    def __init__(self, horizon: int = 20, ends_on_success: bool = True):
        self.horizon, self.ends_on_success = horizon, ends_on_success
        self._scene: LiftScene | None = None  # made when there is something to do: that takes a second
        self._view: LiftView | None = None
        self._begin(0)

    @classmethod
    def from_config(cls, config: EnvironmentConfig) -> LiftEnvironment:
        assert isinstance(config, LiftConfig)
        return cls(config.horizon)

    @property
    def scene(self) -> LiftScene:
        if self._scene is None:
            self._scene = LiftScene()
        return self._scene

    # -- episodes ------------------------------------------------------------------------------------------------

    def restore(self, starts: Sequence[StartState]) -> None:
        """One scene for each start: as `save` left it, else that of its seed. Raises ValueError for neither."""
        for i, start in enumerate(starts):
            if start.seed is None and start.saved_state is None:
                raise ValueError(
                    f"start {i} has no scene (seed and saved_state are None), so that it cannot be rebuilt; start from "
                    'recorded episodes or set world_model.kind = "diffusion"'
                )
        self._begin(len(starts))
        for i, start in enumerate(starts):
            if start.saved_state is not None:
                self._unpack(i, start.saved_state)
            else:
                self.scene.place(int(start.seed or 0))
                self._states[i] = self.scene.state()

    def _begin(self, n: int) -> None:
        self._states: list[SceneState] = [{} for _ in range(n)]
        self._frames: list[np.ndarray | None] = [None] * n
        self._scripts = [LiftScript() for _ in range(n)]
        self.terminated, self.success = np.zeros((2, n), bool)
        self.failures = {"no_grasp": np.ones(n, bool), "drop": np.zeros(n, bool)}

    def advance(self, actions: np.ndarray) -> None:
        """Move every scene that has not ended for a tenth of a second; actions [N, 4] in [-1, 1] are clipped."""
        scene = self.scene
        for i in np.flatnonzero(~self.terminated):
            scene.load(self._states[i])
            scene.move(actions[i])
            grasped = scene.grasped()
            self.failures["drop"][i] |= not self.failures["no_grasp"][i] and not grasped
            self.failures["no_grasp"][i] &= not grasped
            self.success[i] |= scene.lifted()
            self._states[i], self._frames[i] = scene.state(), None
        if self.ends_on_success:
            self.terminated |= self.success

    def save(self) -> list[bytes]:
        """Each scene as it is now, for `StartState.saved_state`."""
        return [
            b"".join(np.asarray(part, np.float64).tobytes() for part in (*state.values(), *self._flags(i)))
            for i, state in enumerate(self._states)
        ]

    def _flags(self, i: int) -> list[np.ndarray]:
        return [np.array(flags[i], np.float64) for flags in (self.terminated, self.success, *self.failures.values())]

    def _unpack(self, i: int, saved: bytes) -> None:
        """Raises ValueError for what is no saved scene."""
        like = self.scene.state()
        sizes = [part.size for part in like.values()]
        flags = (self.terminated, self.success, *self.failures.values())
        if len(saved) != 8 * (sum(sizes) + len(flags)):
            raise ValueError(
                f"start {i}: its saved_state has {len(saved)} bytes, a scene has {8 * (sum(sizes) + len(flags))}"
            )
        numbers = np.frombuffer(saved, np.float64)
        *parts, own = np.split(numbers, np.cumsum(sizes))
        self._states[i] = {
            name: part.reshape(shape.shape).copy() for (name, shape), part in zip(like.items(), parts, strict=True)
        }
        for values, flag in zip(flags, own, strict=True):
            values[i] = bool(flag)

    # -- views ---------------------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        return Observation.of(self.render(), self.instructions * len(self.terminated))

    def render(self) -> np.ndarray:
        frames = [self._frame(i) for i in range(len(self._states))]
        return np.stack(frames) if frames else np.zeros((0, *self.frame_shape), np.uint8)

    def _frame(self, i: int) -> np.ndarray:
        found = self._frames[i]
        if found is None:
            if self._view is None:
                self._view = LiftView(self.scene.simulator)
            self.scene.load(self._states[i])
            found = self._frames[i] = self._view.frame()
        return found

    @staticmethod
    def detect_events(videos: np.ndarray) -> dict[str, np.ndarray]:
        """What frames [M, T+1, H, W, 3] show: `lift` [M], the cube's middle is up in a frame, in the mean of the views."""
        rows, mass = cube_rows(videos)
        seen = mass > SEEN
        mean = (rows * seen).sum(-1) / np.maximum(seen.sum(-1), 1)
        return {"lift": ((mean < LIFTED_ROW) & seen.any(-1)).any(1)}

    # -- scripts -------------------------------------------------------------------------------------------------

    def expert_action(self, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
        """Actions [N, 4] of `LiftScript`; `noise`: standard deviation in metres of its targets."""
        return self._scripted(lambda i: self._scripts[i].act(self.scene, rng, noise))

    def play(self, players: Sequence[LiftPlay]) -> np.ndarray:
        """Actions [N, 4] of undirected play, one player for each scene."""
        return self._scripted(lambda i: players[i].act(self.scene))

    def contacts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hand [N, 3] and cube [N, 3] in metres, and whether the fingers hold it [N] bool."""
        found = []
        for state in self._states:
            self.scene.load(state)
            found.append((self.scene.hand, self.scene.cube_position, self.scene.grasped()))
        hand, cube, grasped = zip(*found, strict=True)
        return np.array(hand), np.array(cube), np.array(grasped)

    def _scripted(self, act: Callable[[int], np.ndarray]) -> np.ndarray:
        actions = np.zeros((len(self._states), ACTION_DIM), np.float32)
        for i in np.flatnonzero(~self.terminated):
            self.scene.load(self._states[i])
            actions[i] = act(int(i))
        return actions
