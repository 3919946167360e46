"""Scenes of a task of Meta-World, of which one at a time is present in one simulator.

A compiled model takes 20 MB and half a second, so a hundred scenes share one. What a scene is besides the model fits into
a few hundred numbers: MuJoCo's state with the warm start of its solver, the places of bodies and sites, which Meta-World
moves in the model, and what its task remembers in Python. A scene that is brought back goes on to the last bit as it would
have. Meta-World's fields that are windows into MuJoCo's data stay what they are and follow it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from wmpo_ray.environments.metaworld.metaworld_pictures import ScenePainter
from wmpo_ray.environments.metaworld.metaworld_settings import ACTION_DIM
from wmpo_ray.environments.simulators.mujoco_module import load_mujoco

MOVED_IN_MODEL = ("body_pos", "site_pos")
TABLE, TILES = "table_wood", "basic_floor"  # materials that every task has
GREY = (0.45, 0.45, 0.45, 1.0)
FURNITURE = {"world", "tablelink", "RetainingWall", "base", "mocap"}  # "base" is the robot
NO_LIMIT = 10**9  # steps of an episode; the horizon ends it
Plain = bool | int | float | str | np.ndarray | None


@dataclass(frozen=True, eq=False)
class Scene:
    """All that a scene is; treated as constant."""

    physics: np.ndarray  # [S] float64, MuJoCo's mjSTATE_INTEGRATION
    places: dict[str, np.ndarray]  # of MOVED_IN_MODEL, [bodies or sites, 3] float64
    fields: dict[str, Plain]  # of the task
    seen: np.ndarray  # [39] float64: the task's observation, with the goal, which its scripted policy reads

    @property
    def object(self) -> np.ndarray:
        """Its place [3], in metres."""
        return self.seen[4:7]


class MetaWorldSimulator:
    """One task of Meta-World with its model; needs the package metaworld."""

    def __init__(self, task: str, camera: str, picture_size: int, disruption: str = "none"):
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        self._mujoco = mujoco = load_mujoco()
        self._env = env = ALL_V3_ENVIRONMENTS[task]()
        self.script = ENV_POLICY_MAP[task]()  # its policies decide by the observation alone
        env.max_path_length = NO_LIMIT
        env.seeded_rand_vec = env._set_task_called = True
        env._partially_observable = False  # the goal is part of the observation, as the scripted policies need it
        env.__dict__.pop("sawyer_observation_space", None)  # a cached property that depends on it
        _disrupt(env.model, disruption)
        self._camera, self._picture_size = camera, picture_size
        self._painter: ScenePainter | None = None
        self._state = mujoco.mjtState.mjSTATE_INTEGRATION.value
        self._pristine = self._scene(np.zeros(39))
        self._present: Scene | None = self._pristine

    def close(self) -> None:
        if self._painter is not None:
            self._painter.close()
        self._env.close()

    def place(self, seed: int) -> Scene:
        """The scene of a seed: its objects and goal are drawn, and then placed as Meta-World's benchmarks do."""
        env = self._env
        self._bring(self._pristine)
        self._present = None
        env.np_random = np.random.Generator(np.random.PCG64(seed))
        env._freeze_rand_vec = False
        env.reset_model()
        env._freeze_rand_vec = True
        env.reset()
        # Meta-World moves objects in the model and does not look again, so that they are seen where they were before.
        self._mujoco.mj_forward(env.model, env.data)
        seen = env._get_obs()
        seen[18:36] = seen[:18]
        env._prev_obs = seen[:18].copy()
        self._present = scene = self._scene(seen)
        return scene

    def step(self, scene: Scene, action: np.ndarray) -> tuple[Scene, dict[str, Any]]:
        """The scene after one step of an action [4] float32, and the simulator's info."""
        self._bring(scene)
        self._present = None
        seen, _, _, _, info = self._env.step(action)
        self._present = after = self._scene(seen)
        return after, info

    def draw(self, scene: Scene) -> np.ndarray:
        """[picture_size, picture_size, 3] uint8."""
        self._bring(scene, whole=True)
        if self._painter is None:
            self._painter = ScenePainter(self._env.model, self._camera, self._picture_size)
        return self._painter.paint(self._env.data)

    # -- bringing scenes in --------------------------------------------------------------------------------------

    def _scene(self, seen: np.ndarray) -> Scene:
        env = self._env
        physics = np.empty(self._mujoco.mj_stateSize(env.model, self._state))
        self._mujoco.mj_getState(env.model, env.data, physics, self._state)
        places = {name: np.array(getattr(env.model, name)) for name in MOVED_IN_MODEL}
        fields = {name: _copied(value) for name, value in vars(env).items() if _is_plain(value)}
        return Scene(physics, places, fields, np.array(seen))

    def _bring(self, scene: Scene, whole: bool = False) -> None:
        """Make it the present one; `whole`: with what MuJoCo derives from its state, which a step does anew."""
        if scene is self._present:
            return
        env, self._present = self._env, None
        for name, values in scene.places.items():
            getattr(env.model, name)[:] = values
        for name in [name for name, value in vars(env).items() if _is_plain(value) and name not in scene.fields]:
            delattr(env, name)  # made by a later scene
        for name, value in scene.fields.items():
            if name not in vars(env) or _is_plain(getattr(env, name)):
                setattr(env, name, _copied(value))
        self._mujoco.mj_setState(env.model, env.data, scene.physics, self._state)
        if whole:
            self._mujoco.mj_forward(env.model, env.data)  # which moves the warm start
            self._mujoco.mj_setState(env.model, env.data, scene.physics, self._state)
            self._present = scene

    # -- saved scenes --------------------------------------------------------------------------------------------

    def restore(self, saved: dict[str, Any], like: Scene) -> Scene:
        """The scene of `to_json`. Raises ValueError where it is none of the task of `like`, any scene that was placed."""
        try:
            physics, seen = _filled(like.physics, saved["physics"]), _filled(like.seen, saved["seen"])
            places = {name: _filled(values, saved["places"][name]) for name, values in like.places.items()}
            fields = {name: _read(value) for name, value in saved["fields"].items()}
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        for name, value in like.fields.items():
            if name not in fields or not _alike(value, fields[name]):
                raise ValueError(f"field {name} is missing or of another kind")
        if unknown := sorted(fields.keys() - like.fields.keys()):
            raise ValueError(f"field {unknown[0]} is unknown")
        return Scene(physics, places, fields, seen)


def to_json(scene: Scene) -> dict[str, Any]:
    """What `json` writes and `MetaWorldSimulator.restore` reads: every number to the last bit."""
    return {
        "physics": scene.physics.tolist(),
        "seen": scene.seen.tolist(),
        "places": {name: values.ravel().tolist() for name, values in scene.places.items()},
        "fields": {name: _written(value) for name, value in scene.fields.items()},
    }


class SceneEnv(gymnasium.Env):
    """One scene of a simulator that several share, with the interface of gymnasium."""

    action_space: gymnasium.spaces.Box = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def __init__(self, simulator: MetaWorldSimulator):
        self.simulator = simulator
        self.scene: Scene

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        assert seed is not None
        self.scene = self.simulator.place(seed)
        return self.scene.seen, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.scene, info = self.simulator.step(self.scene, action)
        return self.scene.seen, 0.0, False, False, info

    def render(self) -> Any:
        return self.simulator.draw(self.scene)


# -- looks -------------------------------------------------------------------------------------------------------


def _disrupt(model: Any, disruption: str) -> None:
    """`background`: the table is grey, without its wood; `texture`: the objects have the tiles of the floor."""
    if disruption == "background":
        table = model.mat(TABLE).id
        model.mat_texid[table] = -1
        model.mat_rgba[table] = GREY
    if disruption == "texture":
        for geom in range(model.ngeom):
            if model.body(model.body_rootid[model.geom_bodyid[geom]]).name not in FURNITURE:
                model.geom_matid[geom] = model.mat(TILES).id
                model.geom_rgba[geom] = (0.5, 0.5, 0.5, 1.0)  # which is MuJoCo's for "as the material"


# -- fields of a task --------------------------------------------------------------------------------------------


def _is_plain(value: Any) -> bool:
    """Numbers, strings and arrays that own their numbers; not a window into MuJoCo's data, nor any other object."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fib" and not _is_window(value)
    return value is None or isinstance(value, bool | int | float | str | np.generic)


def _is_window(value: np.ndarray) -> bool:
    base: Any = value
    while isinstance(base, np.ndarray):
        base = base.base
    return base is not None  # memory of MuJoCo's


def _copied(value: Any) -> Plain:
    return value.copy() if isinstance(value, np.ndarray) else value


def _written(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return {"dtype": value.dtype.name, "shape": list(value.shape), "values": np.ravel(value).tolist()}
    return value


def _read(written: Any) -> Plain:
    if not isinstance(written, dict):
        return written
    dtype = np.dtype({"float64": "f8", "float32": "f4", "int64": "i8", "int32": "i4", "bool": "?"}[written["dtype"]])
    values = np.array(written["values"], dtype).reshape(written["shape"])
    return values if written["shape"] else values[()]


def _filled(like: np.ndarray, values: Any) -> np.ndarray:
    found = np.array(values, like.dtype)
    if found.size != like.size:
        raise ValueError(f"{found.size} numbers instead of {like.size}")
    if not np.isfinite(found).all():
        raise ValueError("a number is not finite")
    return found.reshape(like.shape)


def _alike(one: Plain, other: Plain) -> bool:
    """Whether a field can have both values; Meta-World begins some with None and mixes kinds of numbers."""
    if one is None or other is None:
        return True
    return isinstance(one, str) == isinstance(other, str) and np.shape(one) == np.shape(other)  # type: ignore[arg-type]
