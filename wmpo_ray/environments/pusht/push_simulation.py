"""A copy of a PushT scene, for trying pushes in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

DT = 0.01  # seconds of a step of the physics
SUBSTEPS = 10  # of them in a step of the simulator
STIFFNESS, DAMPING = 100.0, 20.0  # of the controller that moves the agent to its target
FAR = 10_000.0  # away from everything


class Scene(NamedTuple):
    agent: tuple[float, float]
    velocity: tuple[float, float]
    block: tuple[float, float, float]  # x, y, angle


class PushSimulation:
    """The physics of PushT without its rewards and pictures.

    Scenes are put into one space one after the other; contacts of the one before are forgotten first.
    """

    def __init__(self, simulator: Any):
        """`simulator`: a `PushTEnv` that was reset, whose shapes are copied."""
        import pymunk

        self.space = pymunk.Space()
        self.space.damping = simulator.space.damping
        corners = (5, 5), (506, 5), (506, 506), (5, 506)
        for one, other in zip(corners, corners[1:] + corners[:1], strict=True):
            self.space.add(simulator.add_segment(self.space, one, other, 2))
        self.agent = simulator.add_circle(self.space, (256, 400), 15)
        self.block, _ = simulator.add_tee(self.space, (256, 300), 0)

    def push(self, agent: np.ndarray, block: tuple[float, float, float], move: np.ndarray, step: float) -> np.ndarray:
        """Poses [n + 1, 3] of the block from the first on, while the agent [2] goes by move [2], about `step` at a time."""
        self._place((float(agent[0]), float(agent[1])), block)
        num = max(1, round(float(np.hypot(*move)) / step))
        self.agent.velocity = (float(move[0]) / num / DT, float(move[1]) / num / DT)
        poses = [block]
        for _ in range(num):
            self.space.step(DT)
            poses.append(self._pose())
        return np.array(poses)

    def follow(self, scene: Scene, targets: np.ndarray, repeat: int) -> np.ndarray:
        """Pose [3] of the block after targets [n, 2], each held for `repeat` steps of the simulator."""
        self._place(scene.agent, scene.block)
        (x, y), (vx, vy) = scene.agent, scene.velocity
        for target_x, target_y in targets.tolist():
            for _ in range(repeat * SUBSTEPS):
                vx += (STIFFNESS * (target_x - x) - DAMPING * vx) * DT
                vy += (STIFFNESS * (target_y - y) - DAMPING * vy) * DT
                self.agent.velocity = (vx, vy)
                self.space.step(DT)
                x += vx * DT
                y += vy * DT
        return np.array(self._pose())

    def _place(self, agent: tuple[float, float], block: tuple[float, float, float]) -> None:
        """Put agent and block somewhere, at rest and without contacts."""
        self.agent.velocity = (0.0, 0.0)
        self.agent.position = (FAR, FAR)
        self.block.position = (-FAR, -FAR)
        for _ in range(self.space.collision_persistence + 1):  # contacts are remembered that long
            self.space.step(DT)
        self.agent.position = agent
        self.block.angle = block[2]  # it turns about the centre of gravity, so the position comes after it
        self.block.position = block[:2]

    def _pose(self) -> tuple[float, float, float]:
        return (*self.block.position, self.block.angle)
