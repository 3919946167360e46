"""Rollouts of a policy or an expert in the real environment, and the success rate with its interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import Environment, FramesMode, Policy
from wmpo_ray.core.observations import Observation, Rollout
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.episodes import RaggedFrames, batch_within, concatenate_episodes
from wmpo_ray.environments.environment_world import EnvironmentState, EnvironmentWorld
from wmpo_ray.rollout.act import Move, SeedsOf, act, run
from wmpo_ray.rollout.replay import replay
from wmpo_ray.rollout.video_choice import NUM_VIDEOS, VideoChoice, has_recovered

Progress = Callable[[int], None]
Beat = Callable[[], None]
RECORDING_BYTES = 2**30  # of a batch's frames; the previous batch may still be in memory
MOST_TOGETHER = 64  # episodes of a policy in a batch


def rollout_policy(
    policy: Policy,
    environment: Environment | EnvironmentWorld,
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
    environment: Environment | EnvironmentWorld,
    seeds: Sequence[int] | np.ndarray,
    temperature: float,
    run_key: tuple,
    keep_frames: Callable[[], bool] = lambda: True,
    progress: Progress = lambda done: None,
) -> Iterator[Episodes]:
    """Act in the real environment from the given start states, a batch of episodes at a time.

    Sampling is keyed by (run_key, start seed, chunk), so a start gives the same episode in any batch. `keep_frames` is
    asked before each batch: without, only the frames that the policy observes are rendered, and the episodes hold the
    first one. Batches are the same either way, so that outcomes are.
    """
    world = _world(environment, policy.chunk_length)
    size = recording_batch(world.horizon, world.environment.frame_shape, MOST_TOGETHER)
    for first in range(0, len(seeds), size):
        part = np.asarray(seeds[first : first + size])
        episodes = rollout_batch(policy, world, part, temperature, run_key, keep_frames())
        progress(first + len(part))
        yield episodes


def recording_batch(horizon: int, frame_shape: Sequence[int], most: int) -> int:
    """How many episodes are recorded together: as many as `RECORDING_BYTES` of frames allow, `most` at most."""
    return batch_within((horizon + 1, *frame_shape), RECORDING_BYTES, max(1, most))


def rollout_outcomes(
    policy: Policy,
    environment: Environment | EnvironmentWorld,
    seeds: Sequence[int] | np.ndarray,
    temperature: float,
    run_key: tuple,
    num_videos: int = NUM_VIDEOS,
    progress: Progress = lambda done: None,
) -> tuple[Episodes, Episodes]:
    """(all episodes with their first frame only, some with all frames).

    Those are what `VideoChoice` chooses. Frames are kept of one batch at a time, and of none once there are enough
    successes and failures.
    """
    choice = VideoChoice(num_videos)
    outcomes, videos = [], []
    for episodes in rollout_batches(
        policy, environment, seeds, temperature, run_key, lambda: not choice.is_complete, progress
    ):
        if len(rows := choice.take(episodes.success, episodes.failures)):
            videos.append(in_memory(episodes.rows(rows)))
        outcomes.append(
            replace(episodes, frames=np.array(episodes.frames[:, :1]))
        )  # a copy, so that the other frames can be freed
    return concatenate_episodes(outcomes), successes_first(videos)


def successes_first(videos: Sequence[Episodes]) -> Episodes:
    chosen = concatenate_episodes(videos)
    return chosen.rows(np.argsort(~chosen.success, kind="stable"))


def is_recovery(episodes: Episodes) -> np.ndarray:
    """Which episodes [M] succeed after a failed attempt; none where the environment reports no failures."""
    return has_recovered(episodes.success, episodes.failures)


def rollout_batch(
    policy: Policy,
    world: EnvironmentWorld,
    seeds: np.ndarray,
    temperature: float,
    run_key: tuple,
    keep_frames: bool = True,
    beat: Beat = lambda: None,
) -> Episodes:
    """One batch of `rollout_batches`; `beat` is called after every chunk."""
    num_chunks, seeds_of = world.horizon // policy.chunk_length, _scene_seeds(seeds, run_key)
    frames: FramesMode = "all" if keep_frames else "last"
    starts = seeded_starts(seeds)
    made = act(policy, world, starts, num_chunks, temperature, seeds_of, frames=frames, progress=beat)
    return _episodes(made, seeds)


def in_memory(episodes: Episodes) -> Episodes:
    """Copies of the real frames, so that the rest of the batch can be freed."""
    videos = [episodes.frames[i, : length + 1].copy() for i, length in enumerate(episodes.lengths)]
    return replace(episodes, frames=RaggedFrames(videos, episodes.frames.shape[1] - 1, episodes.frames.shape[2:]))


def _scene_seeds(scenes: np.ndarray, run_key: tuple) -> SeedsOf:
    def seeds_of(purpose: str, chunk: int) -> list[int]:
        key = run_key if purpose == "act" else (*run_key, purpose)
        return [seed_for(*key, int(scene), chunk) for scene in scenes]

    return seeds_of


def rollout_expert(
    environment: Environment, seeds: Sequence[int] | np.ndarray, noise: float, run_key: tuple
) -> Episodes:
    """All demonstrations of `expert_batches`."""
    return concatenate_episodes(list(expert_batches(environment, seeds, noise, run_key)))


def expert_batches(
    environment: Environment, seeds: Sequence[int] | np.ndarray, noise: float, run_key: tuple
) -> Iterator[Episodes]:
    """Demonstrations by the environment's scripted expert with `noise` added to its targets, in as few batches as
    `RECORDING_BYTES` allows. The noise is drawn for a batch as a whole, so it depends on the batches.

    Raises ConfigError for an environment that has no expert.
    """
    size = recording_batch(environment.horizon, environment.frame_shape, len(seeds))
    for first in range(0, max(1, len(seeds)), size):
        yield expert_batch(environment, np.asarray(seeds[first : first + size]), noise, run_key, first)


def expert_batch(
    environment: Environment,
    seeds: np.ndarray,
    noise: float,
    run_key: tuple,
    first: int = 0,
    beat: Beat = lambda: None,
) -> Episodes:
    """One batch of `expert_batches`, whose first start has the place `first`; `beat` is called after every step.

    Raises ConfigError for an environment that has no expert.
    """
    if "expert" not in environment.abilities:
        raise ConfigError(
            "this environment has no scripted expert; bring recorded demonstrations instead, or change environment.kind"
        )
    world = EnvironmentWorld(environment, chunk_length=1)  # the script decides again after every step
    rng = np.random.default_rng(seed_for(*run_key, first) if first else seed_for(*run_key))

    def follow_script(state: EnvironmentState, _observation: Observation | None, _chunk: int) -> Move:
        state, transition = world.step_expert(state, rng, noise)
        assert state.chunk is not None
        return Move(state, transition, state.chunk)

    return _episodes(run(world, seeded_starts(seeds), world.horizon, follow_script, progress=beat), seeds)


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
    frames = rollout.frames
    if frames is None:
        assert rollout.observations is not None
        frames = rollout.observations.frames[:, :1].copy()  # without the others
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
