"""What no environment steps with: numbers that are none."""

from __future__ import annotations

import numpy as np


def check_finite(actions: np.ndarray) -> None:
    """Raises ValueError, which names the first scene, for actions [N, D] that are not finite."""
    if not (finite := np.isfinite(actions).all(1)).all():
        wrong = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"the action of scene {wrong} is {actions[wrong].tolist()}; its numbers must be finite")
