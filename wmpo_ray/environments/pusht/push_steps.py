"""An expert of PushT without a memory: before every action it looks at the scene and decides anew.

A plan that is carried out to its end has a reason that no picture shows, and what is cloned from it is a mean of reasons.
Here the action is a function of the scene: the best push from there, and as a target the point a little ahead on its way.
A push that was begun is among those that are tried, from where the agent stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from wmpo_ray.environments.pusht.agent_path import around, point_ahead, way_length
from wmpo_ray.environments.pusht.push_field import Field
from wmpo_ray.environments.pusht.push_planner import Push
from wmpo_ray.environments.pusht.push_simulation import PushSimulation, Scene
from wmpo_ray.environments.pusht.tee import AGENT_RADIUS, corner_error, distance_to_tee, outline, rotate, to_board

GAP = 4.0  # between agent and T at the start of a push
TOUCHING = GAP + 4.0  # within which the agent may push from where it stands
SPACING = 22.0  # of the points of the T's outline that are tried
TILTS = np.radians([0.0, 30.0, -30.0])  # of a push, from the normal of the outline
LONGEST, STEP = 100.0, 4.0  # of a push, and the agent's way in a step of the physics
EFFORT = 0.05  # units of error that a unit of way is worth, while the error is LARGE_ERROR or more; less in proportion
LARGE_ERROR = 60.0
AHEAD = 45.0  # units that the target is ahead of the agent, at most
THERE = 5.0  # units from the start of a push within which it begins


class StepPlanner:
    """The next target in scenes of a `PushTEnv`, on a field of its board."""

    def __init__(self, simulator: Any, field: Field):
        self.simulator, self.field = simulator, field
        self.goal = np.asarray(simulator.goal_pose, np.float64)

    def target(self, scene: Scene) -> np.ndarray:
        """Where the agent shall go next [2], on the board; where it is, if no push is worth its way."""
        agent, error = np.array(scene.agent), float(corner_error(np.array(scene.block), self.goal))
        effort = EFFORT * min(1.0, error / LARGE_ERROR)
        simulation = PushSimulation(self.simulator)
        best = min(self._pushes(simulation, scene, effort), key=lambda push: push.score, default=None)
        if best is None or best.score >= error:
            return agent
        if way_length(best.way) <= THERE:
            return point_ahead(np.stack([agent, best.end]), AHEAD)
        return point_ahead(best.way, AHEAD)

    def _pushes(self, simulation: PushSimulation, scene: Scene, effort: float) -> Iterator[Push]:
        """From each point beside the T, and in each direction, the push of the best length."""
        agent, pose = np.array(scene.agent), np.array(scene.block)
        for start, normal, way in self._beginnings(agent, pose):
            for tilt in TILTS:
                direction = rotate(-normal[None], tilt)[0]
                poses = simulation.push(start, scene.block, direction * (GAP + LONGEST), STEP)[1:]
                along = np.linspace(0, GAP + LONGEST, len(poses) + 1)[1:]
                ends = start + along[:, None] * direction
                score = corner_error(poses, self.goal) + effort * (way_length(way) + along)
                score[~self.field.contains(ends, 1.0)] = np.inf
                best = int(np.argmin(score))
                if np.isfinite(score[best]):
                    yield Push(way, ends[best], float(score[best]))

    def _beginnings(self, agent: np.ndarray, pose: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Points [2] beside the T where the agent has room, the outline's normal [2] there, and the way to it [n, 2]."""
        points, normals = outline(SPACING)
        points, normals = to_board(points, pose), rotate(normals, pose[2:])
        if distance_to_tee(agent[None], pose)[0] < AGENT_RADIUS + TOUCHING:
            fine, their_normals = outline(4.0)
            nearest = int(np.argmin(np.hypot(*(to_board(fine, pose) - agent).T)))
            yield agent, rotate(their_normals[nearest : nearest + 1], pose[2:])[0], agent[None].repeat(2, 0)
        starts = points + normals * (AGENT_RADIUS + GAP)
        usable = (distance_to_tee(starts, pose) > AGENT_RADIUS + 1) & self.field.contains(starts, 1.0)
        for start, normal in zip(starts[usable], normals[usable], strict=True):
            yield start, normal, around(agent, start, pose)
