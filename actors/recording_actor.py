"""A worker with a real environment: records and evaluates episodes, a batch of start states a call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.core.timeline import span
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.episodes import as_lazy
from wmpo_ray.data.store import save_episodes
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.registry import load_policy, make_environment
from wmpo_ray.rollout.evaluation import execute_actions, expert_batch, rollout_batch
from wmpo_ray.rollout.origins import simulator_versions
from wmpo_ray.rollout.video_choice import video_candidates


class EpisodeBatch(NamedTuple):
    """Consecutive start states that are stepped together; with the call, all that its episodes depend on."""

    first: int  # place of its first start in the whole
    seeds: np.ndarray  # [M] int64
    run_key: tuple[int | str, ...]  # with the start and the chunk, the seed of every random number


class Acting(NamedTuple):
    """Who acts: a saved policy."""

    policy_dir: str
    temperature: float


class Ended(NamedTuple):
    """How the M episodes of a batch ended."""

    success: np.ndarray  # [M] bool
    lengths: np.ndarray  # [M] int64: steps until the end
    failures: dict[str, np.ndarray]  # name -> [M] bool

    @classmethod
    def of(cls, episodes: Episodes) -> Ended:
        return cls(episodes.success, episodes.lengths, episodes.failures)


class RecordingActor:
    """Plain class; `cluster` wraps it where it is placed.

    It holds the frames of one batch and writes them before it answers, so that nobody else has to hold them and a batch
    that is done is never done again.
    """

    def __init__(self, config: Config):
        configure_process(config.cluster.threads_per_process)
        self.config = config
        self.environment = make_environment(config.environment)
        self.num_beats = 0
        self._world = EnvironmentWorld(self.environment, config.rollout.chunk_length)
        self._policy: tuple[str, Policy] | None = None  # the one that acted last, and its folder

    def demonstrate(self, batch: EpisodeBatch, path: str, provenance: Provenance) -> Ended:
        """Record the environment's expert in a trajectory file. Raises ConfigError where it has none."""
        noise = self.config.demos.action_noise
        episodes = expert_batch(self.environment, batch.seeds, noise, batch.run_key, batch.first, self.count_beat)
        return self._write(path, episodes, provenance)

    def record(self, batch: EpisodeBatch, acting: Acting, path: str, provenance: Provenance) -> Ended:
        """Record a policy in a trajectory file."""
        return self._write(path, self._episodes(batch, acting, keep_frames=True), provenance)

    def evaluate(self, batch: EpisodeBatch, acting: Acting, videos: str | None) -> Ended:
        """Evaluate a policy; with `videos`, those that may be shown are written to this trajectory file."""
        episodes = self._episodes(batch, acting, keep_frames=videos is not None)
        if videos is not None:
            with span("write"):
                rows = video_candidates(episodes.success, episodes.failures)
                shown = replace(episodes, frames=as_lazy(episodes)).rows(rows)  # without a copy of their frames
                save_episodes(Path(videos), shown)
        return Ended.of(episodes)

    def execute(self, seeds: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Real outcome [M] bool of given actions [M, T, D] from the given start states."""
        return execute_actions(self.environment, seeds, actions)

    def disrupted_starts(self, seeds: np.ndarray, disruption: str) -> np.ndarray:
        """First frames [M, H, W, 3] of the given start states under a disruption."""
        section = self.config.environment.model_copy(update={"disruption": disruption})
        environment: Any = make_environment(section)
        environment.restore(seeded_starts(seeds))
        frames = environment.render()
        if hasattr(environment, "close"):
            environment.close()
        return frames

    def abilities(self) -> frozenset[str]:
        """What the environment can do besides, see `World`."""
        return self.environment.abilities

    def detect_events(self, videos: np.ndarray) -> dict[str, np.ndarray]:
        """Events that frames [M, T+1, H, W, 3] show, name -> [M] bool. Needs the ability "events"."""
        return self._world.detect_events(videos)

    def count_beat(self) -> None:
        """Count progress after every chunk: a worker that makes progress is not hung, however long its batch."""
        self.num_beats += 1

    def _episodes(self, batch: EpisodeBatch, acting: Acting, keep_frames: bool) -> Episodes:
        if self._policy is None or self._policy[0] != acting.policy_dir:
            self._policy = acting.policy_dir, load_policy(self.config, acting.policy_dir)
        _, policy = self._policy
        return rollout_batch(
            policy, self._world, batch.seeds, acting.temperature, batch.run_key, keep_frames, self.count_beat
        )

    def _write(self, path: str, episodes: Episodes, provenance: Provenance) -> Ended:
        with span("write"):  # the simulator's versions are those of this process
            own = provenance.model_copy(update={"versions": simulator_versions()})
            save_episodes(Path(path), episodes, own)
        return Ended.of(episodes)
