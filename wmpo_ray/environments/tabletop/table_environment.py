"""What the small tabletop tasks share: robosuite's physics and gripper, two views of 24 x 12 pixels, ten actions a second.

An action is where the hand has to be within the box that is seen, and whether it closes. The arm and the hand are not
drawn, only fingers, cubes and table: a picture of 24 pixels has room for what decides.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from wmpo_ray.core.observations import StartState
from wmpo_ray.environments.robosuite.simulator import SceneState
from wmpo_ray.environments.simulators.saved_scenes import check_starts_are_scenes, pack_scene, unpack_scene
from wmpo_ray.environments.simulators.simulated_scenes import SimulatedScenes
from wmpo_ray.environments.tabletop.table_layout import ACTION_DIM, SIZE
from wmpo_ray.environments.tabletop.table_scene import TableScene
from wmpo_ray.environments.tabletop.table_view import Colour, TableView

NEW = {
    "terminated": False,
    "success": False,
    "no_grasp": True,
    "drop": False,
}  # what is known of a scene that was placed


class Script(Protocol):
    """What the expert remembers of one scene."""

    def act(self, scene: TableScene, rng: np.random.Generator, noise: float) -> np.ndarray:
        """Action [4] float32 in [-1, 1]; `noise`: standard deviation in metres of its target."""
        ...


class Player(Protocol):
    """Somebody who plays in one scene, and has random numbers of their own."""

    def act(self, scene: TableScene) -> np.ndarray:
        """Action [4] float32 in [-1, 1]."""
        ...


class Contacts(NamedTuple):
    """Where hand [N, 3] and cubes [N, cubes, 3] are, in metres, and whether the fingers hold the first one [N] bool."""

    hand: np.ndarray
    cubes: np.ndarray
    grasped: np.ndarray


class TableEnvironment(SimulatedScenes):
    """N scenes in one simulator (implements `wmpo_ray.core.interfaces.AbleEnvironment`).

    Failures:
        no_grasp: the fingers never held the cube
        drop: they held it, and then lost it; see `TableScene.dropped`
    """

    abilities: frozenset[str] = frozenset({"expert", "events", "restore", "render"})
    action_dim = ACTION_DIM
    frame_shape = (SIZE, SIZE, 3)
    colours: ClassVar[Mapping[str, Colour]]  # of the cubes, as for `TableView`

    def __init__(self, horizon: int, ends_on_success: bool = True):
        self.horizon, self.ends_on_success = horizon, ends_on_success
        self._scene: TableScene | None = None  # made when there is something to do: that takes a second
        self._view: TableView | None = None
        self._begin(0)

    @abstractmethod
    def make_scene(self) -> TableScene:
        """A simulator of the task."""

    @abstractmethod
    def make_script(self) -> Script:
        """An expert for one scene."""

    @property
    def scene(self) -> TableScene:
        if self._scene is None:
            self._scene = self.make_scene()
        return self._scene

    # -- episodes ------------------------------------------------------------------------------------------------

    def restore(self, starts: Sequence[StartState]) -> None:
        """One scene for each start: as `save` left it, else that of its seed. Raises ValueError for neither."""
        check_starts_are_scenes(starts)
        found = [self._scene_of(i, start) for i, start in enumerate(starts)]  # all of them, before any is taken over
        self._begin(len(starts))
        for i, (state, flags) in enumerate(found):
            self._states[i] = state
            self.terminated[i], self.success[i] = flags.pop("terminated"), flags.pop("success")
            for name, flag in flags.items():
                self.failures[name][i] = flag

    def _begin(self, n: int) -> None:
        super()._begin(n)
        self._states: list[SceneState] = [{} for _ in range(n)]
        self._scripts = [self.make_script() for _ in range(n)]
        self.failures = {"no_grasp": np.ones(n, bool), "drop": np.zeros(n, bool)}

    def advance(self, actions: np.ndarray) -> None:
        """Move every scene that has not ended for a tenth of a second; actions [N, 4] in [-1, 1] are clipped.

        Raises ValueError for another shape, and for numbers that are not finite.
        """
        if np.shape(actions) != (len(self._states), ACTION_DIM) or not np.isfinite(actions).all():
            raise ValueError(
                f"actions of shape {np.shape(actions)}: expected finite numbers of shape {(len(self._states), ACTION_DIM)}"
            )
        scene = self.scene
        for i in np.flatnonzero(~self.terminated):
            scene.load(self._states[i])
            scene.move(actions[i])
            self.failures["drop"][i] |= not self.failures["no_grasp"][i] and scene.dropped()
            self.failures["no_grasp"][i] &= not scene.grasped()
            self.success[i] |= scene.succeeded()
            self._states[i] = scene.state()
            self._changed(int(i))
        if self.ends_on_success:
            self.terminated |= self.success

    def save(self) -> list[bytes]:
        """Each scene as it is now, for `StartState.saved_state`."""
        return [pack_scene({**state, **self._flags(i)}) for i, state in enumerate(self._states)]

    def _flags(self, i: int) -> dict[str, np.ndarray]:
        return {"terminated": self.terminated[i], "success": self.success[i]} | {
            name: flags[i] for name, flags in self.failures.items()
        }

    def _scene_of(self, i: int, start: StartState) -> tuple[SceneState, dict[str, bool]]:
        """State and flags that start i begins with. Raises ValueError for what is no saved scene."""
        if start.saved_state is None:
            self.scene.place(int(start.seed or 0))
            return self.scene.state(), dict(NEW)
        like = self.scene.state()
        parts = unpack_scene(i, start.saved_state, {**like, **{name: np.zeros(()) for name in NEW}})
        if wrong := [name for name in like if not np.isfinite(parts[name]).all()]:
            raise ValueError(f"start {i}: its saved_state has numbers in {wrong[0]} that are not finite")
        if wrong := [name for name in NEW if parts[name] not in (0, 1)]:
            raise ValueError(f"start {i}: its saved_state says {parts[wrong[0]]:g} for {wrong[0]}, which is 0 or 1")
        return {name: parts[name] for name in like}, {name: bool(parts[name]) for name in NEW}

    # -- views ---------------------------------------------------------------------------------------------------

    def _draw(self, i: int) -> np.ndarray:
        if self._view is None:
            self._view = TableView(self.scene.simulator, self.scene.box, self.colours)
        self.scene.load(self._states[i])
        return self._view.frame()

    # -- scripts -------------------------------------------------------------------------------------------------

    def expert_action(self, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
        """Actions [N, 4] of the scripts; `noise`: standard deviation in metres of their targets."""
        return self._scripted(lambda i: self._scripts[i].act(self.scene, rng, noise))

    def play(self, players: Sequence[Player]) -> np.ndarray:
        """Actions [N, 4] of undirected play, one player for each scene."""
        return self._scripted(lambda i: players[i].act(self.scene))

    def contacts(self) -> Contacts:
        found = []
        for state in self._states:
            self.scene.load(state)
            found.append((self.scene.hand, self.scene.cube_positions, self.scene.grasped()))
        hand, cubes, grasped = zip(*found, strict=True)
        return Contacts(np.array(hand), np.array(cubes), np.array(grasped))

    def _scripted(self, act: Callable[[int], np.ndarray]) -> np.ndarray:
        actions = np.zeros((len(self._states), ACTION_DIM), np.float32)
        for i in np.flatnonzero(~self.terminated):
            self.scene.load(self._states[i])
            actions[i] = act(int(i))
        return actions
