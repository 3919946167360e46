"""The expert of PushT: it tries pushes in a copy of the scene and takes the one that brings the T nearest to its place.

A plan is the way around the T to a point beside it, and a straight push from there. Where the T goes hardly depends on
the agent's speed, because nothing slides, so that one long push of the copy shows all shorter ones as well. The best few
are then simulated as they would be carried out, way included, and the best of those is carried out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from wmpo_ray.environments.pusht.agent_path import around, targets_along, way_length
from wmpo_ray.environments.pusht.push_field import Field
from wmpo_ray.environments.pusht.push_simulation import PushSimulation, Scene
from wmpo_ray.environments.pusht.tee import (
    AGENT_RADIUS,
    corner_error,
    distance_to_tee,
    outline,
    rotate,
    to_board,
)

GAP = 4.0  # between agent and T at the start of a push
SPACING = 12.0  # of the points of the T's outline that are tried
TILTS = np.radians([0.0, 30.0, -30.0])  # of a push, from the normal of the outline
LONG_PUSH, LONG_STEP = 160.0, 4.0  # length that is tried, and the agent's way in a step of the physics
FINE_PUSH, FINE_STEP = 40.0, 1.0  # the same once the error is below
FINE_ERROR = 12.0
NUM_REHEARSED = 12  # plans that are simulated as they would be carried out
EFFORT = 0.02  # units of error that a unit of way is worth, while the error is LARGE_ERROR or more; less in proportion
LARGE_ERROR = 100.0
USUAL_WAY = 20.0  # units in a step of the simulator


class Push(NamedTuple):
    way: np.ndarray  # [n, 2], corners of the way to its start
    end: np.ndarray  # [2]
    score: float  # expected error and effort; lower is better


class PushPlanner:
    """Plans for scenes of a `PushTEnv`, whose actions are repeated `repeat` times. A plan depends on the scene alone."""

    def __init__(self, simulator: Any, repeat: int, field: Field):
        self.simulator, self.repeat, self.field = simulator, repeat, field
        self.goal = np.asarray(simulator.goal_pose, np.float64)

    def plan(self, scene: Scene) -> np.ndarray:
        """Targets [n, 2] of the agent on the board, one for each action; n is at least 1."""
        simulation = PushSimulation(self.simulator)
        error = float(corner_error(np.array(scene.block), self.goal))
        effort = EFFORT * min(1.0, error / LARGE_ERROR)
        best, best_score = np.array([scene.agent]), np.inf
        for push in sorted(self._pushes(simulation, scene, error, effort), key=lambda push: push.score)[:NUM_REHEARSED]:
            there = np.stack([push.way[-1], push.end])
            parts = [targets_along(way, self.repeat) for way in (push.way, there)]
            targets = self.field.clip(np.concatenate(parts))
            last = simulation.follow(scene, targets, self.repeat)
            score = float(corner_error(last, self.goal)) + effort * USUAL_WAY * self.repeat * len(targets)
            if score < best_score:
                best, best_score = targets, score
        return best

    def _pushes(self, simulation: PushSimulation, scene: Scene, error: float, effort: float) -> Iterator[Push]:
        """From each point beside the T and in each direction the push of the best length."""
        length, step = (FINE_PUSH, FINE_STEP) if error < FINE_ERROR else (LONG_PUSH, LONG_STEP)
        for start, normal in zip(*self._starts(np.array(scene.block)), strict=True):
            way = around(np.array(scene.agent), start, np.array(scene.block))
            for tilt in TILTS:
                direction = rotate(-normal[None], tilt)[0]
                poses = simulation.push(start, scene.block, direction * (GAP + length), step)[1:]
                along = np.linspace(0, GAP + length, len(poses) + 1)[1:]
                ends = start + along[:, None] * direction
                score = corner_error(poses, self.goal) + effort * (way_length(way) + along)
                score[~self.field.contains(ends, 1.0)] = np.inf
                best = int(np.argmin(score))
                if np.isfinite(score[best]):
                    yield Push(way, ends[best], float(score[best]))

    def _starts(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points [n, 2] beside the T where the agent has room, and the normals [n, 2] of the T's outline there."""
        points, normals = outline(SPACING)
        points, normals = to_board(points, pose), rotate(normals, pose[2:])
        starts = points + normals * (AGENT_RADIUS + GAP)
        usable = (distance_to_tee(starts, pose) > AGENT_RADIUS + 1) & self.field.contains(starts, 1.0)
        return starts[usable], normals[usable]
