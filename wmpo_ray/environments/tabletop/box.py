"""The part of the room that small tabletop tasks show, and that their actions can name."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """Corners (x, y, z) in metres: x away from the robot, y to its left, z up; twice as wide in x and y as it is high."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @property
    def middle(self) -> np.ndarray:
        return (np.array(self.low) + self.high) / 2

    @property
    def height(self) -> float:
        return self.high[2] - self.low[2]

    def to_unit(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 3] in metres -> [..., 3] in [-1, 1] inside the box."""
        return (points - np.array(self.low)) / (np.array(self.high) - self.low) * 2 - 1

    def from_unit(self, points: np.ndarray) -> np.ndarray:
        return self.low + (points + 1) / 2 * (np.array(self.high) - self.low)
