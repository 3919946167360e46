"""Actions for the embedded environment."""

import numpy as np


def random_actions(num_scenes: int, num_steps: int, seed: int) -> np.ndarray:
    """[T, N, 3]: targets that last three steps, mostly with a closed gripper."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (num_steps // 3 + 1, num_scenes, 3)).repeat(3, 0)[:num_steps]
    actions[..., 2] += 0.6
    return actions.clip(-1, 1)
