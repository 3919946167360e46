"""Rotations and angles of the scripted experts. Angles are in radians, rotations are matrices [3, 3]."""

from __future__ import annotations

import numpy as np

# The grip site of a hand that points straight down at yaw 0: its x, along which the fingers open, is the world's y.
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


def about_z(angle: float) -> np.ndarray:
    """Rotation [3, 3] about the world's z."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation [3, 3] about a unit axis [3]."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def axis_angle(rotation: np.ndarray) -> np.ndarray:
    """The rotation vector [3] of a rotation [3, 3], shorter than pi; about any axis where the angle is pi."""
    vector = np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    length = float(np.linalg.norm(vector))  # 2 sin(angle)
    angle = float(np.arctan2(length, np.trace(rotation) - 1))
    if length > 1e-9:
        return vector * (angle / length)
    if angle < 1:
        return vector / 2
    # Half a turn: R + 1 = 2 a aT, of which the column with the largest diagonal is read.
    axis = rotation[:, np.argmax(np.diag(rotation))] + np.eye(3)[np.argmax(np.diag(rotation))]
    return np.pi * axis / np.linalg.norm(axis)


def wrap(angle: float, period: float = 2 * np.pi) -> float:
    """The equivalent of an angle in [-period / 2, period / 2)."""
    return float((angle + period / 2) % period - period / 2)


def heading(rotation: np.ndarray) -> float:
    """Angle in the plane of the x of a body that stands upright, in (-pi, pi]."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def hand_yaw(rotation: np.ndarray) -> float:
    """How far a hand that points about downwards is turned from `DOWN`, in (-pi, pi]."""
    return heading(rotation @ DOWN.T)


def equivalents(yaw: float, period: float, limit: float) -> list[float]:
    """All angles yaw + k * period with a size of at most `limit`, in rising order."""
    first = np.ceil((-limit - yaw) / period)
    last = np.floor((limit - yaw) / period)
    return [yaw + k * period for k in np.arange(first, last + 1)]
