"""From the error of a pose to an action of OSC_POSE: proportional, and near the target with an integral.

An action's unit is `POSITION_UNIT` of way, `ROTATION_UNIT` of turn. The arm sags and lags by some millimetres, which the
integral takes away.
"""

from __future__ import annotations

import numpy as np

from wmpo_ray.environments.robosuite.experts.rotations import axis_angle

POSITION_UNIT, ROTATION_UNIT = 0.05, 0.5  # m, rad
GAIN = 1.5
INTEGRAL_RATE = 0.2  # share of the error that is added in each step
INTEGRAL_LIMIT = 0.02  # m, along each axis
NEAR = 0.03  # m; farther away nothing is added up


class PositionServo:
    """Brings one position to another; it remembers the integral, so that each motion has its own."""

    def __init__(self, gain: float = GAIN, cap: float = 1.0, integral_rate: float = INTEGRAL_RATE):
        """`cap`: largest size of an action along each axis, at most 1."""
        self.gain, self.cap, self.integral_rate = gain, cap, integral_rate
        self.integral = np.zeros(3)

    def action(self, error: np.ndarray) -> np.ndarray:
        """Position part [3] of the action for the target minus the position [3], m."""
        if np.linalg.norm(error) < NEAR:
            self.integral = np.clip(self.integral + self.integral_rate * error, -INTEGRAL_LIMIT, INTEGRAL_LIMIT)
        return np.clip((self.gain * error + self.integral) / POSITION_UNIT, -self.cap, self.cap)


def rotation_action(target: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Rotation part [3] of the action that turns a hand at `rotation` [3, 3] to `target` [3, 3]."""
    return np.clip(axis_angle(target @ rotation.T) / ROTATION_UNIT, -1, 1)
