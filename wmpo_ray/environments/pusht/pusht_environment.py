"""PushT: a round agent pushes a T onto the green T in the middle of the board. The simulator is gym-pusht's.

An action is the place (x, y) that the agent moves to, over the field that is seen: the board, or a square of it. The T moves only while it is pushed. Where it
is touched, the physics keep numbers between steps that its bodies do not show (contact impulses, corrections of overlap), so
a scene is rebuilt from its seed and its actions and not from a saved state.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import gymnasium
import numpy as np

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.interfaces import AGENT
from wmpo_ray.environments.gymnasium.gymnasium_environment import GymnasiumEnvironment
from wmpo_ray.environments.gymnasium.gymnasium_settings import GymnasiumConfig
from wmpo_ray.environments.pusht import push_sight
from wmpo_ray.environments.pusht.push_field import field_around, place, start_near
from wmpo_ray.environments.pusht.push_planner import PushPlanner
from wmpo_ray.environments.pusht.push_sight import green_left
from wmpo_ray.environments.pusht.push_simulation import Scene
from wmpo_ray.environments.pusht.push_steps import StepPlanner
from wmpo_ray.environments.pusht.pusht_settings import ACTION_DIM, INSTRUCTION, PushTConfig
from wmpo_ray.environments.pusht.tee import AREA_CENTRE, BOARD, GOAL, TEE_AREA, corner_error, to_board

MODULE, ENVIRONMENT_ID = "gym_pusht", "gym_pusht/PushT-v0"
MOVED = 2.0  # units that the corners of a T have moved, on average, that was moved
HALF_DONE, PUSHED_OUT = 0.5, 0.25  # coverage that a T once had, and how much of it was lost, to be pushed out


class PushTEnvironment(GymnasiumEnvironment):
    """N scenes of PushT (implements `wmpo_ray.core.interfaces.AbleEnvironment`).

    Success is `success_coverage` of the green T covered after any step of the simulator. Failures:
        never_moved: the T is where it was at the start
        pushed_out: the T once covered half of the green T, and then a quarter of it less than at best
    """

    abilities: frozenset[str] = frozenset({"expert", "events", "render", "positions", "locate"})
    position_unit = "pixels"
    extra: ClassVar[str] = "pusht"

    def __init__(self, config: PushTConfig):
        self.success_coverage, self.spread, self.expert = config.success_coverage, config.start_spread, config.expert
        self.field = field_around(GOAL, config.field)
        shared = config.model_dump(include={"horizon", "image_size", "action_repeat"})
        super().__init__(
            GymnasiumConfig(
                id=ENVIRONMENT_ID,
                import_name=MODULE,
                make_arguments={
                    "obs_type": "state",  # nothing is drawn until it is looked at
                    "observation_width": int(BOARD),
                    "observation_height": int(BOARD),
                },
                action_dim=ACTION_DIM,
                instruction=INSTRUCTION,
                **shared,
            )
        )

    @classmethod
    def from_config(cls, config: EnvironmentConfig) -> PushTEnvironment:
        assert isinstance(config, PushTConfig)
        return cls(config)

    def _import(self) -> None:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame must not look for a screen
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        super()._import()

    def _make(self) -> gymnasium.Env:
        made = super()._make()
        inner: Any = made.unwrapped
        inner.success_threshold = self.success_coverage
        return made

    def _inner(self, i: int) -> Any:
        return self._simulators[i].unwrapped

    # -- episodes ------------------------------------------------------------------------------------------------

    def _begin(self, n: int) -> None:
        super()._begin(n)
        self.failures = {"never_moved": np.ones(n, bool), "pushed_out": np.zeros(n, bool)}
        self._first_pose = np.zeros((n, 3))
        self._best_coverage = np.zeros(n)
        self._plans: list[list[np.ndarray]] = [[] for _ in range(n)]  # targets that the expert has in mind

    def _placed(self, i: int) -> None:
        if self.spread < 1 or self.field.side < BOARD:
            agent, _, pose = (np.array(each) for each in self._scene(i))
            place(self._inner(i), *start_near(GOAL, agent, pose, self.spread, self.field))
        self._first_pose[i] = self._scene(i).block

    def _scaled(self, action: np.ndarray, space: gymnasium.spaces.Box) -> np.ndarray:
        return self.field.to_board(action).astype(space.dtype)

    def _note_failures(self, i: int, info: dict[str, Any]) -> None:
        coverage = float(info["coverage"])
        self._best_coverage[i] = best = max(self._best_coverage[i], coverage)
        moved = corner_error(np.array(self._scene(i).block), self._first_pose[i]) > MOVED
        self.failures["never_moved"][i] &= not (moved or self.success[i])
        self.failures["pushed_out"][i] |= best >= HALF_DONE and coverage <= best - PUSHED_OUT

    # -- views ---------------------------------------------------------------------------------------------------

    def scenes(self) -> list[Scene]:
        return [self._scene(i) for i in range(len(self.terminated))]

    def _scene(self, i: int) -> Scene:
        agent, block = self._inner(i).agent, self._inner(i).block
        return Scene(tuple(agent.position), tuple(agent.velocity), (*block.position, block.angle))

    def _picture(self, i: int) -> np.ndarray:
        inner = self._inner(i)
        inner.obs_type = "pixels"
        try:
            return self.field.crop(inner.get_obs())
        finally:
            inner.obs_type = "state"

    def positions(self) -> dict[str, np.ndarray]:
        """Centres [N, 2] of agent and T, in pixels of the frame."""
        scenes = self.scenes()
        agents = np.array([scene.agent for scene in scenes]).reshape(-1, 2)
        poses = np.array([scene.block for scene in scenes]).reshape(-1, 3)
        tees, scale = to_board(AREA_CENTRE[None], poses)[:, 0], self.config.image_size / self.field.side
        return {AGENT: (agents - self.field.corner) * scale, "tee": (tees - self.field.corner) * scale}

    @staticmethod
    def locate(frames: np.ndarray) -> dict[str, np.ndarray]:
        """The same read from frames [..., S, S, 3] -> [..., 2], NaN where nothing of it shows."""
        return push_sight.locate(frames)

    def detect_events(self, videos: np.ndarray) -> dict[str, np.ndarray]:
        """What frames [M, T+1, S, S, 3] show: `covered` [M], no more of the green T is left in a frame than success allows."""
        pixel = (self.field.side / videos.shape[-2]) ** 2
        return {"covered": (green_left(videos) * pixel <= (1 - self.success_coverage) * TEE_AREA).any(1)}

    # -- the expert ----------------------------------------------------------------------------------------------

    def expert_action(self, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
        """Actions [N, 2] of `PushPlanner`; `noise`, in pixels of the frame, is added to its targets."""
        targets = np.array([self._expert_target(i) for i in range(len(self.terminated))]).reshape(-1, ACTION_DIM)
        targets += rng.normal(0, 1, targets.shape) * noise * self.field.side / self.config.image_size
        return self.field.to_actions(targets)

    def _expert_target(self, i: int) -> np.ndarray:
        """The next target [2] of scene i, on the board."""
        if self.terminated[i]:
            return np.array(self._scene(i).agent)
        if self.expert == "steps":
            return StepPlanner(self._inner(i), self.field).target(self._scene(i))
        if not self._plans[i]:  # a plan is carried out to its end before the next is made
            planner = PushPlanner(self._inner(i), self.config.action_repeat, self.field)
            self._plans[i] = list(planner.plan(self._scene(i)))
        return self._plans[i].pop(0)
