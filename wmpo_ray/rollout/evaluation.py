"""Rollouts of a policy or an expert in the real environment, and the success rate with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wmpo_ray.core.interfaces import Environment, Policy
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.core.types import Episodes, Observation, Rollout
from wmpo_ray.environments.environment_world import EnvironmentState, EnvironmentWorld
from wmpo_ray.rollout.act import Move, SeedsOf, act, run
from wmpo_ray.rollout.replay import replay

Progress = Callable[[int], None]


def rollout_policy(
    policy: Policy,
    environment: Environment | EnvironmentWorld,
    seeds: Sequence[int] | np.ndarray,
    temperature: float,
    run_key: tuple,
    batch_size: int = 64,
    keep_frames: bool = True,
    progress: Progress = lambda done: None,
) -> Episodes:
    """Act in the real environment from the given start states.

    Sampling is keyed by (run_key, start seed, chunk), so a start gives the same episode in any batch. Without
    `keep_frames` only the frames that the policy looks at are rendered, and the episodes hold the first one.
    """
    world = _world(environment, policy.chunk_length)
    parts = []
    for first in range(0, len(seeds), batch_size):
        part = np.asarray(seeds[first : first + batch_size])
        rollout = act(
            policy,
            world,
            seeded_starts(part),
            world.horizon // policy.chunk_length,
            temperature,
            _scene_seeds(part, run_key),
            frames="all" if keep_frames else "last",
        )
        parts.append(_episodes(rollout, part))
        progress(first + len(part))
    return concatenate_episodes(parts)


def _scene_seeds(scenes: np.ndarray, run_key: tuple) -> SeedsOf:
    def seeds_of(purpose: str, chunk: int) -> list[int]:
        key = run_key if purpose == "act" else (*run_key, purpose)
        return [seed_for(*key, int(scene), chunk) for scene in scenes]

    return seeds_of


def rollout_expert(
    environment: Environment, seeds: Sequence[int] | np.ndarray, noise: float, run_key: tuple
) -> Episodes:
    """Demonstrations by the environment's scripted expert with `noise` added to its targets.

    Raises ValueError for an environment that has none.
    """
    if "expert" not in environment.abilities:
        raise ValueError("this environment has no scripted expert; bring recorded demonstrations instead")
    world = EnvironmentWorld(environment, chunk_length=1)  # the script decides anew after every step
    rng = np.random.default_rng(seed_for(*run_key))

    def follow_script(state: EnvironmentState, _observation: Observation | None, _chunk: int) -> Move:
        state, transition = world.step_expert(state, rng, noise)
        return Move(state, transition, state.chunks[-1])

    return _episodes(run(world, seeded_starts(seeds), world.horizon, follow_script), np.asarray(seeds))


def execute_actions(
    environment: Environment | EnvironmentWorld, seeds: Sequence[int] | np.ndarray, actions: np.ndarray
) -> np.ndarray:
    """Real outcome [M] bool of given actions [M, T, D] from the given start states."""
    world = _world(environment, actions.shape[1])
    rollout = replay(world, seeded_starts(seeds), actions, lambda purpose, chunk: [0] * len(actions), frames="none")
    assert rollout.success is not None
    return rollout.success


def _world(environment: Environment | EnvironmentWorld, chunk_length: int) -> EnvironmentWorld:
    return environment if isinstance(environment, EnvironmentWorld) else EnvironmentWorld(environment, chunk_length)


def _episodes(rollout: Rollout, seeds: np.ndarray) -> Episodes:
    frames: Any = rollout.frames
    if frames is None:
        assert rollout.observations is not None
        frames = rollout.observations.frames[:, :1]
    assert rollout.success is not None
    return Episodes(
        frames,
        rollout.flat_actions.astype(np.float32),
        rollout.lengths,
        rollout.success,
        rollout.instructions,
        np.asarray(seeds, np.int64),
        rollout.failures,
    )


def concatenate_episodes(parts: Sequence[Episodes]) -> Episodes:
    return Episodes(
        np.concatenate([p.frames for p in parts]),
        np.concatenate([p.actions for p in parts]),
        np.concatenate([p.lengths for p in parts]),
        np.concatenate([p.success for p in parts]),
        tuple(text for p in parts for text in p.instructions),
        np.concatenate([p.seeds for p in parts]),
        {name: np.concatenate([p.failures[name] for p in parts]) for name in parts[0].failures},
    )
