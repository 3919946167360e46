"""Rollouts of a policy or an expert in the real environment, and the success rate with its interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from wmpo_ray.core.interfaces import Environment, Policy
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.episodes import RaggedFrames, RecordedFrames, batch_within, concatenate_episodes

Act = Callable[[np.ndarray, int], np.ndarray]
Progress = Callable[[int], None]
RECORDING_BYTES = 2**30  # of frames of a batch; while one is recorded the one before may still be there


def rollout_policy(
    policy: Policy,
    environment: Environment,
    seeds: Sequence[int] | np.ndarray,
    temperature: float,
    run_key: tuple,
    keep_frames: bool = True,
    progress: Progress = lambda done: None,
) -> Episodes:
    """All episodes of `rollout_batches`. Without `keep_frames` they hold the first frame only."""
    return concatenate_episodes(
        list(rollout_batches(policy, environment, seeds, temperature, run_key, lambda: keep_frames, progress))
    )


def rollout_batches(
    policy: Policy,
    environment: Environment,
    seeds: Sequence[int] | np.ndarray,
    temperature: float,
    run_key: tuple,
    keep_frames: Callable[[], bool] = lambda: True,
    progress: Progress = lambda done: None,
) -> Iterator[Episodes]:
    """Act in the real environment from the given start states, a batch of episodes at a time.

    Sampling is keyed by (run_key, start seed, chunk), so a start gives the same episode in any batch. `keep_frames` is
    asked before each batch: without, only the frames that the policy looks at are rendered, and the episodes hold the
    first one. Batches are the same either way, so that outcomes are.
    """
    batch_size = batch_within((environment.horizon + 1, *environment.frame_shape), RECORDING_BYTES)
    for first in range(0, len(seeds), batch_size):
        part = np.asarray(seeds[first : first + batch_size])
        episodes = _rollout_batch(policy, environment, part, temperature, run_key, keep_frames())
        progress(first + len(part))
        yield episodes


def rollout_outcomes(
    policy: Policy,
    environment: Environment,
    seeds: Sequence[int] | np.ndarray,
    temperature: float,
    run_key: tuple,
    num_videos: int = 4,
    progress: Progress = lambda done: None,
) -> tuple[Episodes, Episodes]:
    """(all episodes with their first frame only, the first `num_videos` successes and failures with all frames).

    Frames are kept of one batch at a time, and of none once there are enough of both.
    """
    missing = {True: num_videos, False: num_videos}
    outcomes, videos = [], []
    for episodes in rollout_batches(
        policy, environment, seeds, temperature, run_key, lambda: any(missing.values()), progress
    ):
        for success in missing:
            rows = np.flatnonzero(episodes.success == success)[: missing[success]]
            missing[success] -= len(rows)
            if len(rows):
                videos.append(_in_memory(episodes.rows(rows)))
        outcomes.append(replace(episodes, frames=episodes.frames[:, :1]))
    chosen = concatenate_episodes(videos)
    return concatenate_episodes(outcomes), chosen.rows(np.argsort(~chosen.success, kind="stable"))


def _in_memory(episodes: Episodes) -> Episodes:
    """Copies of the real frames, so that those of the batch around them can go."""
    videos = [episodes.frames[i, : length + 1].copy() for i, length in enumerate(episodes.lengths)]
    return replace(episodes, frames=RaggedFrames(videos, episodes.frames.shape[1] - 1, episodes.frames.shape[2:]))


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
    """All demonstrations of `expert_batches`."""
    return concatenate_episodes(list(expert_batches(environment, seeds, noise, run_key)))


def expert_batches(
    environment: Environment, seeds: Sequence[int] | np.ndarray, noise: float, run_key: tuple
) -> Iterator[Episodes]:
    """Demonstrations by the environment's scripted expert with `noise` added to its targets, in as few batches as
    `RECORDING_BYTES` allows. The noise is drawn for a batch as a whole, so it depends on the batches."""
    size = batch_within((environment.horizon + 1, *environment.frame_shape), RECORDING_BYTES, max(1, len(seeds)))
    for first in range(0, max(1, len(seeds)), size):
        key = (*run_key, first) if first else run_key
        yield _expert_batch(environment, np.asarray(seeds[first : first + size]), noise, key)


def _expert_batch(environment: Environment, seeds: np.ndarray, noise: float, run_key: tuple) -> Episodes:
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
        RecordedFrames(frames, lengths),
        np.stack(actions, 1).astype(np.float32),
        lengths.astype(np.int64),
        environment.success.copy(),
        tuple(environment.instruction),
        np.asarray(seeds, np.int64),
        failures,
    )
