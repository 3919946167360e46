"""Rollouts of a policy or an expert in the real environment, and the success rate with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wmpo_ray.core.interfaces import Environment, Policy
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import Episodes

Act = Callable[[np.ndarray, int], np.ndarray]
Progress = Callable[[int], None]


def rollout_policy(
    policy: Policy,
    environment: Environment,
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
    parts = []
    for first in range(0, len(seeds), batch_size):
        part = np.asarray(seeds[first : first + batch_size])
        parts.append(_rollout_batch(policy, environment, part, temperature, run_key, keep_frames))
        progress(first + len(part))
    return concatenate_episodes(parts)


def _rollout_batch(policy, environment, seeds, temperature, run_key, keep_frames) -> Episodes:
    present = environment.reset(seeds)
    frames, actions, ended = [present], [], []
    chunk_length = policy.chunk_length
    for chunk in range(environment.horizon // chunk_length):
        keys = [seed_for(*run_key, int(seed), chunk) for seed in seeds]
        decision = policy.act(present, environment.instruction, temperature, keys).actions.numpy()
        for k in range(chunk_length):
            frame, terminated = environment.step(decision[:, k], render=keep_frames or k == chunk_length - 1)
            actions.append(decision[:, k])
            ended.append(terminated)
            if keep_frames:
                frames.append(frame)
        present = frame
    return _episodes(environment, seeds, frames if keep_frames else frames[:1], actions, ended)


def rollout_expert(
    environment: Environment, seeds: Sequence[int] | np.ndarray, noise: float, run_key: tuple
) -> Episodes:
    """Demonstrations by the environment's scripted expert with `noise` added to its targets."""
    seeds = np.asarray(seeds)
    rng = np.random.default_rng(seed_for(*run_key))
    frames, actions, ended = [environment.reset(seeds)], [], []
    for _ in range(environment.horizon):
        action = environment.expert_action(rng, noise)
        frame, terminated = environment.step(action)
        frames.append(frame)
        actions.append(action)
        ended.append(terminated)
    return _episodes(environment, seeds, frames, actions, ended)


def execute_actions(environment: Environment, seeds: Sequence[int] | np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Real outcome [M] bool of given actions [M, T, D] from the given start states."""
    environment.reset(np.asarray(seeds), render=False)
    for t in range(actions.shape[1]):
        environment.step(actions[:, t], render=False)
    return environment.success.copy()


def _episodes(environment, seeds, frames, actions, ended) -> Episodes:
    done = np.stack(ended, 1)
    lengths = np.where(done.any(1), done.argmax(1) + 1, done.shape[1])
    failures = {name: flags.copy() for name, flags in getattr(environment, "failures", {}).items()}
    return Episodes(
        np.stack(frames, 1),
        np.stack(actions, 1).astype(np.float32),
        lengths.astype(np.int64),
        environment.success.copy(),
        tuple(environment.instruction),
        np.asarray(seeds, np.int64),
        failures,
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
