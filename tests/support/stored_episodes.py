"""Episodes to store, and whether two sets are the same."""

from dataclasses import replace

import numpy as np

from wmpo_ray.core.types import Episodes


def make(num=3, horizon=4, size=(5, 6), action_dims=2, failures=("drop", "jam"), seed=0, instructions=None) -> Episodes:
    random = np.random.default_rng(seed)
    actions = random.standard_normal((num, horizon, action_dims)).astype(np.float32)
    if actions.size:
        actions.flat[0] = np.nan
    lengths = random.integers(0, horizon + 1, num)
    frames = random.integers(0, 256, (num, horizon + 1, *size, 3), np.uint8)
    return Episodes(
        frames[np.arange(num)[:, None], np.minimum(np.arange(horizon + 1), lengths[:, None])],
        actions,
        lengths,
        random.random(num) < 0.5,
        tuple(instructions or [f"put it in pocket {i}" for i in range(num)]),
        random.integers(-(2**63), 2**63 - 1, num),
        {name: random.random(num) < 0.5 for name in failures},
    )


def sound(num: int = 6, seed: int = 0) -> Episodes:
    """Episodes with at least a step, and actions in [-1, 1]."""
    episodes = make(num, seed=seed)
    lengths = np.maximum(episodes.lengths, 1)
    frames = episodes.frames[np.arange(num)[:, None], np.minimum(np.arange(5), lengths[:, None])]
    actions = np.clip(np.nan_to_num(episodes.actions), -1, 1)
    return replace(episodes, frames=frames, lengths=lengths, actions=actions)


def assert_same(a: Episodes, b: Episodes) -> None:
    assert a.instructions == b.instructions and list(a.failures) == list(b.failures)
    arrays = ("frames", "actions", "lengths", "success", "seeds")
    pairs = [(np.asarray(getattr(a, name)), np.asarray(getattr(b, name))) for name in arrays]
    assert (a.corrections is None) == (b.corrections is None)
    if a.corrections is not None:
        pairs.append((a.corrections, b.corrections))
    for x, y in pairs + [(a.failures[name], b.failures[name]) for name in a.failures]:
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
