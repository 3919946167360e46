"""The T of PushT as points: its outline, where its corners are, and how far points are from it.

Lengths are in units of the 512x512 board; a pose is (x, y, angle) of the body's origin, the middle of the bar's outer
edge.
"""

from __future__ import annotations

import numpy as np

BOARD = 512.0  # side of the board, in units
GOAL = np.array([256.0, 256.0, np.pi / 4])  # pose of the green T
CORNERS = np.array(
    [(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], np.float64
)  # [8, 2] in order, the interior on the left
RECTANGLES = np.array([((-60, 0), (60, 30)), ((-15, 30), (15, 120))], np.float64)  # [2, 2, 2] lower and upper corners
TEE_AREA = 6300.0  # square units
MIDDLE = np.array([0.0, 45.0])  # the centre of gravity
AREA_CENTRE = np.array([0.0, 285 / 7])  # of the T as a flat piece, whose two rectangles have areas as 4 to 3
AGENT_RADIUS = 15.0


def outline(spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, 2] on the edges of the T, about `spacing` apart, and the outward normals [P, 2] there."""
    points, normals = [], []
    for start, end in zip(CORNERS, np.roll(CORNERS, -1, 0), strict=True):
        edge = end - start
        length = float(np.hypot(*edge))
        num = max(1, round(length / spacing))
        share = (np.arange(num) + 0.5) / num
        points.append(start + share[:, None] * edge)
        normals.append(np.tile(np.array([edge[1], -edge[0]]) / length, (num, 1)))
    return np.concatenate(points), np.concatenate(normals)


def to_board(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points [P, 2] of the T at poses [..., 3] -> [..., P, 2] on the board."""
    return rotate(points, pose[..., 2:]) + pose[..., None, :2]


def rotate(vectors: np.ndarray, angle: np.ndarray | float) -> np.ndarray:
    """Vectors [P, 2] turned by angles [..., 1] (or one) -> [..., P, 2]."""
    cosine, sine = np.cos(angle), np.sin(angle)
    x, y = vectors[:, 0], vectors[:, 1]
    return np.stack([cosine * x - sine * y, sine * x + cosine * y], -1)


def distance_to_tee(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """How far points [P, 2] on the board are from the T at pose [3]; 0 inside of it. -> [P]."""
    local = rotate(points - pose[:2], -pose[2])
    outside = np.maximum(np.maximum(RECTANGLES[:, :1] - local, local - RECTANGLES[:, 1:]), 0.0)
    return np.hypot(outside[..., 0], outside[..., 1]).min(0)


def corner_error(pose: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Mean distance of the T's corners at poses [..., 3] from where they are at the goal pose [3]. -> [...]."""
    apart = to_board(CORNERS, pose) - to_board(CORNERS, goal)
    return np.hypot(apart[..., 0], apart[..., 1]).mean(-1)
