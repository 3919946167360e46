"""How the agent of PushT gets somewhere: the way around the T, and the targets that make it follow a way."""

from __future__ import annotations

import numpy as np

from wmpo_ray.environments.pusht.push_simulation import DAMPING, DT, STIFFNESS, SUBSTEPS
from wmpo_ray.environments.pusht.tee import AGENT_RADIUS, MIDDLE, distance_to_tee, to_board

SPEED = 500.0  # units a second, at most
CLEARANCE = AGENT_RADIUS + 2.0  # that the way keeps from the T
LEAVING = 6.0  # units at the start of a way where the agent may still touch the T
RING = 105.0  # radius of the way around the T's middle
RING_STEP = 0.2  # radians between its corners


def around(start: np.ndarray, end: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Corners [n, 2] of a way from start [2] to end [2] that keeps clear of the T at pose [3]."""
    if _is_clear(start, end, pose):
        return np.stack([start, end])
    middle = to_board(MIDDLE[None], pose)[0]
    first, last = _angle(start - middle), _angle(end - middle)
    turn = (last - first + np.pi) % (2 * np.pi) - np.pi
    angles = first + np.linspace(0, turn, max(2, round(abs(turn) / RING_STEP)))
    ring = middle + RING * np.stack([np.cos(angles), np.sin(angles)], 1)
    # Onto the ring as late as the start allows, and off it as soon as the end is in sight.
    entry = max((i for i, point in enumerate(ring) if _is_clear(start, point, pose)), default=0)
    ring = ring[entry:]
    leave = min((i for i, point in enumerate(ring) if _is_clear(point, end, pose)), default=len(ring) - 1)
    return np.concatenate([start[None], ring[: leave + 1], end[None]])


def way_length(way: np.ndarray) -> float:
    """Of the corners [n, 2] of a way, in units."""
    return float(np.hypot(*np.diff(way, axis=0).T).sum())


def point_ahead(way: np.ndarray, distance: float) -> np.ndarray:
    """The point [2] on a way [n, 2] that is `distance` from its beginning, or its end."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(way, axis=0).T))])
    return np.array([np.interp(distance, along, way[:, axis]) for axis in (0, 1)])


def targets_along(way: np.ndarray, repeat: int) -> np.ndarray:
    """Targets [n, 2], one for each action of `repeat` steps, that lead the agent along a way [m, 2] from rest to rest.

    The agent is a critically damped spring: it follows p exactly where its target is p + p' * damping / stiffness
    + p'' / stiffness, of which the mean over each action is taken. The way is gone with minimum jerk, whose highest speed
    is 15/8 of the mean one.
    """
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(way, axis=0).T))])
    ticks = SUBSTEPS * repeat  # steps of the physics in an action
    num = max(2, int(np.ceil(15 / 8 * along[-1] / SPEED / (ticks * DT))))
    time = np.clip(np.arange(-1, num * ticks + 2) / (num * ticks), 0, 1)
    done = along[-1] * time**3 * (10 - 15 * time + 6 * time**2)
    path = np.stack([np.interp(done, along, way[:, axis]) for axis in (0, 1)], 1)
    speed = np.gradient(path, DT, axis=0)
    target = path + speed * DAMPING / STIFFNESS + np.gradient(speed, DT, axis=0) / STIFFNESS
    return target[1:-2].reshape(num, ticks, 2).mean(1)


def _angle(vector: np.ndarray) -> float:
    return float(np.arctan2(vector[1], vector[0]))


def _is_clear(start: np.ndarray, end: np.ndarray, pose: np.ndarray) -> bool:
    """Whether the straight way from start to end keeps clear of the T."""
    length = float(np.hypot(*(end - start)))
    along = np.linspace(0, length, max(2, int(length / 4)))
    points = start + (along / max(length, 1e-9))[:, None] * (end - start)
    return bool((distance_to_tee(points[along > LEAVING], pose) >= CLEARANCE).all())
