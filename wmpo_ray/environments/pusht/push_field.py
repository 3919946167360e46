"""The part of PushT's board that is seen and that actions name, and starts near the goal within it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from wmpo_ray.environments.pusht.tee import AGENT_RADIUS, AREA_CENTRE, BOARD, MIDDLE, distance_to_tee, rotate, to_board

ROOM = 6.0  # units between agent and T at a start near the goal
AGENT_DRAWN = np.array([50.0, 450.0])  # where the simulator draws the agent, along either side of the board


class Field(NamedTuple):
    """A square on the board, in units."""

    corner: np.ndarray  # [2] its left upper corner, whole numbers
    side: int

    def clip(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
        return np.clip(points, self.corner + margin, self.corner + self.side - margin)

    def contains(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """Which of the points [n, 2] are inside, by `margin`. -> [n] bool."""
        return np.all((points > self.corner + margin) & (points < self.corner + self.side - margin), axis=1)

    def to_board(self, actions: np.ndarray) -> np.ndarray:
        """Places [..., 2] that actions [..., 2] in [-1, 1] name."""
        return self.corner + (np.clip(actions.astype(np.float64), -1.0, 1.0) + 1) / 2 * self.side

    def to_actions(self, places: np.ndarray) -> np.ndarray:
        return np.clip(2 * (places - self.corner) / self.side - 1, -1, 1).astype(np.float32)

    def crop(self, image: np.ndarray) -> np.ndarray:
        """The field in a picture [S, S, 3] of the whole board with a pixel for each unit."""
        (left, top), side = self.corner.astype(int), self.side
        return image[top : top + side, left : left + side]


def field_around(goal: np.ndarray, side: int) -> Field:
    """The field with the T of the goal pose [3] in its middle, as far as the board allows."""
    centre = to_board(AREA_CENTRE[None], goal)[0]
    return Field(np.clip(np.round(centre - side / 2), 0, BOARD - side), side)


def start_near(
    goal: np.ndarray, agent: np.ndarray, pose: np.ndarray, spread: float, field: Field
) -> tuple[np.ndarray, np.ndarray]:
    """Agent [2] and T [3] of a start, from those that the simulator drew.

    The T stands at `spread` of the way from the goal pose to the drawn one, in place and angle; the agent where it was
    drawn, with the field for the board, and away from the T if it would touch it.
    """
    middle, aim = (to_board(MIDDLE[None], each)[0] for each in (pose, goal))
    turn = (pose[2] - goal[2] + np.pi) % (2 * np.pi) - np.pi
    angle = goal[2] + spread * turn
    place = aim + spread * (middle - aim) - rotate(MIDDLE[None], np.array([angle]))[0]
    near = np.array([*place, angle])
    low, high = AGENT_DRAWN
    there = field.corner + AGENT_RADIUS + (agent - low) / (high - low) * (field.side - 2 * AGENT_RADIUS)
    away = there - to_board(MIDDLE[None], near)[0]
    away = away / max(float(np.hypot(*away)), 1e-9)
    while distance_to_tee(there[None], near)[0] < AGENT_RADIUS + ROOM:
        there = there + away
    return there, near


def place(simulator: Any, agent: np.ndarray, pose: np.ndarray) -> None:
    """Put agent [2] and T [3] of a `PushTEnv` somewhere, at rest."""
    simulator.agent.velocity = (0.0, 0.0)
    simulator.agent.position = tuple(agent.tolist())
    simulator.block.angle = float(pose[2])  # it turns about the centre of gravity, so the position comes after it
    simulator.block.position = tuple(pose[:2].tolist())
    simulator.block.velocity, simulator.block.angular_velocity = (0.0, 0.0), 0.0
    simulator.space.step(simulator.dt)
