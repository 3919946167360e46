"""Episodes of the pocket task with random actions, as a run records them."""

import numpy as np

from wmpo_ray.core.types import Episodes
from wmpo_ray.environments.pocket.env import PocketEnvironment


def recorded_episodes(num: int, horizon: int, noise: float = 0.6) -> Episodes:
    """An expert with shaking hands, so that there are successes and failures; frames in memory."""
    environment = PocketEnvironment(horizon)
    rng, frames, actions = np.random.default_rng(0), [environment.reset(np.arange(num))], []
    lengths = np.zeros(num, np.int64)
    for _ in range(horizon):
        lengths += ~environment.terminated
        actions.append(environment.expert_action(rng, noise))
        frames.append(environment.step(actions[-1])[0])
    return Episodes(
        np.stack(frames, 1),
        np.stack(actions, 1),
        lengths,
        environment.success.copy(),
        tuple(environment.instruction),
        np.arange(num),
        {name: flags.copy() for name, flags in environment.failures.items()},
    )
